"""Proves that an exported folder is the model of its checkpoint. The only file that imports transformers.

Three things are compared. The settings: each field of ``config.json`` is read back and must be what the checkpoint
says. The tensors: each one in the files must be its rounded master bit for bit, and transformers must place all of
them. The computation: fp32 logits of our model, made from the masters after the same rounding, against fp32 logits of
``BloomForCausalLM`` on the same tokens. fp32, because in bf16 transformers rounds its ALiBi bias by up to 4.0 at
position 2047 and no tolerance would mean anything.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from megatron_poro.checkpoint.hf_export import Proof
from megatron_poro.checkpoint.hf_files import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    config_json,
    generation_config_json,
)
from megatron_poro.checkpoint.hf_format import format_of, special_ids
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.state import TOKENIZER_FOLDER
from megatron_poro.config.identity import ABSENT
from megatron_poro.config.model import AlibiForm
from megatron_poro.models.causal_lm import whole_model
from megatron_poro.tokenizer.tokenizer import Tokenizer

TOLERANCE = 1e-5
"""Largest difference of a logit that passes, as a share of the largest logit (or of 1, if that is less)."""

SEED = 1973
BATCHES = 2
BATCH_SAMPLES = 2
BATCH_TOKENS = 128
"""Seeded batches: two of two samples of 128 tokens; long enough for the steepest and the flattest ALiBi slope."""


@dataclass(frozen=True)
class Logits:
    """What one model says about the fixed batches.

    Attributes:
        logits: fp32 ``[b, s, v]`` per batch.
        loss: mean cross entropy of each next token, over all batches.
    """

    logits: list[Tensor]
    loss: float


def prove_parity(reader: CheckpointReader, folder: Path, *, text: str | None = None) -> Proof:
    """Compares an exported folder with the checkpoint it was made from.

    Args:
        reader: the checkpoint.
        folder: the export.
        text: compared as well, beside the seeded tokens.
    """
    written = Tokenizer.load(folder)
    tokenizer = reader.tokenizer if (reader.path / TOKENIZER_FOLDER).is_dir() else written
    batches = fixed_batches(reader.model.vocab_size, tokenizer, text=text)
    wrong = differing_tokenizer(reader, written) or differing_settings(reader, folder, tokenizer)
    if wrong:  # the logits of another model would only hide the cause
        return Proof(met=False, verdict=f"{'; '.join(wrong)}.", measurements={"settings": wrong})
    unequal = differing_tensors(reader, folder)
    if unequal:
        verdict = f"{len(unequal)} tensors are not the rounded masters: {', '.join(unequal[:3])}."
        return Proof(met=False, verdict=verdict, measurements={"differing_tensors": unequal})
    ours = _logits_here(reader, batches)
    theirs, unloaded = _logits_there(folder, batches)
    return judge(ours, theirs, unloaded=unloaded)


def differing_settings(reader: CheckpointReader, folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Settings in the folder's files that are not the checkpoint's, as they are written and as transformers reads them.

    Args:
        reader: the checkpoint.
        folder: the export.
        tokenizer: the checkpoint's.
    """
    wrong = []
    for name, expected in (
        (CONFIG_NAME, config_json(reader, tokenizer)),
        (GENERATION_CONFIG_NAME, generation_config_json(tokenizer)),
    ):
        written = json.loads((folder / name).read_text(encoding="utf-8"))
        wrong += _differences(name, written, expected)
    return wrong or _read_otherwise(reader, folder, tokenizer)


def _read_otherwise(reader: CheckpointReader, folder: Path, tokenizer: Tokenizer) -> list[str]:
    """What transformers makes of the files, where it is not what the checkpoint says."""
    special = special_ids(tokenizer)
    ids = {f"{role}_token_id": token_id for role, token_id in special._asdict().items()}
    dtype = str(reader.dtype).removeprefix("torch.")
    config: Any = transformers.AutoConfig.from_pretrained(str(folder))
    wanted = format_of(reader.model.family).as_read(reader.model, dtype=dtype, special=special)
    found = {key: getattr(config, key, ABSENT) for key in wanted}
    wrong = _differences("transformers reads a config that", {**found, "dtype": str(config.dtype)[6:]}, wanted)
    generation: Any = transformers.GenerationConfig.from_pretrained(str(folder))
    wrong += _differences("transformers reads a generation config that", {k: getattr(generation, k) for k in ids}, ids)
    loaded: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
    return wrong + _differences("transformers reads a tokenizer that", {k: getattr(loaded, k) for k in ids}, ids)


def _differences(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One phrase for each key; compared as texts: 56.0 is not 56 to every reader."""
    texts = {key: (repr(found.get(key, ABSENT)), repr(wanted.get(key, ABSENT))) for key in found.keys() | wanted.keys()}
    return [f"{where} has {key}={a}, the checkpoint {b}" for key, (a, b) in sorted(texts.items()) if a != b]


def differing_tokenizer(reader: CheckpointReader, written: Tokenizer) -> list[str]:
    """What keeps the folder's tokenizer from being the checkpoint's; its definition makes the ids of a text."""
    if written.fingerprint == reader.state.tokenizer_fingerprint:
        return []
    return [
        f"tokenizer.json has fingerprint {written.fingerprint[:12]}, the checkpoint's tokenizer "
        f"{reader.state.tokenizer_fingerprint[:12]}"
    ]


def differing_tensors(reader: CheckpointReader, folder: Path) -> list[str]:
    """Tensors in the folder's files that are not bit for bit the rounded masters; one is in memory at a time."""
    canonical = {name.hugging_face: name.canonical for name in format_of(reader.model.family).tensors(reader.model)}
    differing = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            opened: Any = file
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name in canonical:
                    wanted = reader.tensor(canonical.pop(name)).to(reader.dtype)
                    written = opened.get_tensor(name)
                    same = written.dtype == wanted.dtype and torch.equal(written, wanted)
                else:
                    same = False
                if not same:
                    differing.append(name)
    return sorted([*differing, *canonical])


def judge(ours: Logits, theirs: Logits, *, unloaded: list[str]) -> Proof:
    """The verdict on two sets of logits.

    Args:
        ours: of the checkpoint.
        theirs: of the export.
        unloaded: tensors that transformers did not find, or did not know.
    """
    difference = max(_difference(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))
    largest = max(logits.abs().max().item() for logits in ours.logits)
    tolerance = TOLERANCE * max(1.0, largest)
    agreeing = [_same_choice(a, b, tolerance) for a, b in zip(ours.logits, theirs.logits, strict=True)]
    agreement = torch.cat(agreeing).float().mean().item()
    met = difference <= tolerance and agreement == 1.0 and not unloaded
    measurements = {
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "largest_logit": largest,
        "argmax_agreement": agreement,
        "positions": sum(part.numel() for part in agreeing),
        "loss_checkpoint": ours.loss,
        "loss_export": theirs.loss,
        "unloaded_tensors": unloaded,
        "format": "fp32",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    verdict = (
        f"logits differ by at most {difference:.3g} (tolerance {tolerance:.3g}), argmax agrees at {agreement:.2%} of "
        f"{measurements['positions']} positions, loss {ours.loss:.6f} and {theirs.loss:.6f}"
    )
    if unloaded:
        verdict += f", tensors not matched by transformers: {', '.join(unloaded[:3])}"
    return Proof(met=met, verdict=f"{verdict}.", measurements=measurements)


def fixed_batches(vocab_size: int, tokenizer: Tokenizer, *, text: str | None) -> list[Tensor]:
    """Token ids int64 ``[b, s]`` that are the same on every machine, and those of a text."""
    generator = torch.Generator().manual_seed(SEED)
    batches = [torch.randint(vocab_size, (BATCH_SAMPLES, BATCH_TOKENS), generator=generator) for _ in range(BATCHES)]
    if text is not None:
        ids = tokenizer.encode(text)[:BATCH_TOKENS]
        if len(ids) > 1:
            batches.append(torch.tensor([ids]))
    return batches


def _logits_here(reader: CheckpointReader, batches: list[Tensor]) -> Logits:
    """Our model, made from the masters; it is gone from memory when the other one is loaded."""
    # The export computes the distance form; the historic one is a rounding of it that fp32 does not have.
    sizes = replace(reader.model, alibi=AlibiForm.DISTANCE)
    model = whole_model(sizes, seed=None).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, full in reader.masters():
            parameters.pop(name).copy_(full.to(reader.dtype))
        assert not parameters, f"not in the checkpoint: {', '.join(parameters)}"
        return _evaluate(model, batches)


def _logits_there(folder: Path, batches: list[Tensor]) -> tuple[Logits, list[str]]:
    """The model of transformers, and the tensors it could not place."""
    with _no_progress_bar():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True
        )
    model, info = loaded
    unloaded = [str(key) for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[part]]

    def logits(tokens: Tensor) -> Tensor:
        found: Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        return found

    with torch.no_grad():
        model.eval()
        return _evaluate(logits, batches), unloaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing on a terminal that is not its own."""
    library: Any = transformers.utils.logging
    drawn = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            library.enable_progress_bar()


def _evaluate(model: Any, batches: list[Tensor]) -> Logits:
    logits = [model(tokens).float() for tokens in batches]
    losses = [
        F.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        for scores, tokens in zip(logits, batches, strict=True)
    ]
    return Logits(logits, torch.cat(losses).mean().item())


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of a logit; a NaN anywhere is a difference without end."""
    worst = (ours - theirs).abs().max().item()
    return math.inf if math.isnan(worst) else worst


def _same_choice(ours: Tensor, theirs: Tensor, tolerance: float) -> Tensor:
    """Where the other model's first choice is ours too, ``[b*s]``; choices that are level within rounding are one."""
    chosen = ours.gather(-1, theirs.argmax(dim=-1, keepdim=True)).squeeze(-1)
    return (chosen >= ours.amax(dim=-1) - 2 * tolerance).flatten()
