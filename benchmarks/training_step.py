"""A training step on a CPU, ours beside its peers': tokens per second, memory, share of a matrix product's speed.

Run from the checkout, on an idle machine: ``python -m benchmarks.training_step`` (options: ``--sequence 512 --batch 4
--vocabulary 32000 --precision bf16 --variants ...``). The model has 8 layers, width 512, 8 heads and a tied head. Each
variant lives in a process of its own and they take turns (:mod:`benchmarks.turns`). All predict the same tokens of the
same batches, keep fp32 masters and moments, clip the gradient at 1 and use fused AdamW; all flush denormal numbers and
keep memory that was freed, as ``poro train`` does, but for ``ours, memory given back``.

``ours, compiled`` is ``engine.compile=true``. What is compared with:

- ``transformers``: its BLOOM, which computes attention eagerly; ``transformers, compiled`` is the same as one graph of
  ``torch.compile``. Compiling belongs to the warm-up; the memory that it takes is part of the peak.
- ``megatron-core``: its GPTModel with the local layer specification, tensor and pipeline size 1 on gloo. It has no
  ALiBi, so it computes without positions, and no norm behind the embedding: both are work that it is spared. GELU is
  BLOOM's, the tanh one. Of its fusions those that a CPU can run made it no faster here, and are off. Two of its calls
  want a GPU: the current device is given as the CPU, and its random states, needed for dropout alone, as nothing.
"""

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.our_step import BATCHES, HEADS, HIDDEN, LAYERS, LEARNING_RATE, Shape, our_step, token_batches
from benchmarks.turns import Peer, Step, race, require
from megatron_poro.cli.host_memory import keep_freed_memory
from megatron_poro.config.run import Precision, Recompute
from megatron_poro.metrics.throughput import step_flops
from megatron_poro.units import format_bytes


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--precision", type=Precision, default=Precision.BF16, choices=list(Precision))
    parser.add_argument("--variants", nargs="+", default=["ours", "transformers"], choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each variant in a round")
    arguments = parser.parse_args()
    shape = Shape(arguments.sequence, arguments.batch, arguments.precision, arguments.vocabulary)
    variants = {name: VARIANTS[name] for name in arguments.variants}
    require({name: variant.peer for name, variant in variants.items() if variant.peer is not None})
    products: list[float] = []
    turns, peaks = race(
        {name: partial(variant.build, shape) for name, variant in variants.items()},
        rounds=arguments.rounds,
        steps=arguments.steps,
        before_round=lambda: products.append(_product_flops(shape.dtype)),
    )
    print(
        f"{shape.precision.value}, batch {shape.batch} x {shape.sequence}, {shape.vocabulary:,} ids, "
        f"{torch.get_num_threads()} threads; a step predicts {shape.tokens:,} tokens in every variant"
    )
    print("| variant | tokens/s (slowest to fastest round) | times the last's | of a matrix product | peak memory |")
    print("|---|---|---|---|---|")
    last = list(turns.values())[-1]
    for name, ours in turns.items():
        taken = [turn.seconds for turn in ours]
        ratio = statistics.median(theirs.seconds / mine.seconds for mine, theirs in zip(ours, last, strict=True))
        share = _flops(shape) / statistics.median(taken) / statistics.median(products)
        print(
            f"| {name} | {shape.tokens / statistics.median(taken):,.0f} ({shape.tokens / max(taken):,.0f} to "
            f"{shape.tokens / min(taken):,.0f}) | {ratio:.2f} | {share:.2f} | {format_bytes(peaks[name])} |"
        )


# --- variants --------------------------------------------------------------------------------------------------------


def _transformers(shape: Shape, *, compiled: bool = False) -> Step:
    from transformers import BloomConfig as TheirConfig
    from transformers import BloomForCausalLM

    keep_freed_memory()
    config = TheirConfig(
        vocab_size=shape.vocabulary,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        use_cache=False,
        dtype=shape.dtype,
    )
    model = BloomForCausalLM(config).to(shape.dtype).train()
    forward: Callable[..., Any] = torch.compile(model, dynamic=False, fullgraph=True) if compiled else model

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        # without shift_labels it shifts the labels itself, and predicts one token of a sample less
        computed: Tensor = forward(input_ids=tokens, labels=labels, shift_labels=labels).loss
        return computed

    return _peer_step(loss, model.parameters(), shape)


def _megatron_core(shape: Shape) -> Step:
    warnings.filterwarnings("ignore", module=r"megatron\.core")  # that it lacks libraries for GPUs, and its own names
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.transformer_config import TransformerConfig

    class NoRandomStates(random.CudaRNGStatesTracker):  # type: ignore[misc]
        def fork(self, name: str = "") -> contextlib.nullcontext[None]:
            return contextlib.nullcontext()

    keep_freed_memory()
    random._CUDA_RNG_STATE_TRACKER, random._CUDA_RNG_STATE_TRACKER_INITIALIZED = NoRandomStates(), True
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    config = TransformerConfig(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        ffn_hidden_size=4 * HIDDEN,
        activation_func=partial(nn.functional.gelu, approximate="tanh"),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=shape.dtype,
        bf16=shape.precision is Precision.BF16,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        attention_softmax_in_fp32=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=shape.vocabulary,
        max_sequence_length=shape.sequence,
        position_embedding_type="none",
        share_embeddings_and_output_weights=True,
    )
    model.to(shape.dtype).train()
    positions = torch.arange(shape.sequence).expand(shape.batch, -1)
    masked = torch.ones(shape.sequence, shape.sequence, dtype=torch.bool).triu(1)[None, None]

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        losses: Tensor = model(input_ids=tokens, position_ids=positions, attention_mask=masked, labels=labels)
        return losses.mean()

    return _peer_step(loss, model.parameters(), shape)


class Variant(NamedTuple):
    """How a step is made, and the library that it needs besides ours."""

    build: Callable[[Shape], Step]
    peer: Peer | None = None


TRANSFORMERS = Peer("transformers", "transformers>=5.0")
VARIANTS: dict[str, Variant] = {
    "ours": Variant(our_step),
    "ours, compiled": Variant(partial(our_step, compiled=True)),
    "ours, memory given back": Variant(partial(our_step, keeps=False)),
    "transformers": Variant(_transformers, TRANSFORMERS),
    "transformers, compiled": Variant(partial(_transformers, compiled=True), TRANSFORMERS),
    "megatron-core": Variant(_megatron_core, Peer("megatron.core", "megatron-core==0.16.1")),
}


def _peer_step(loss_of: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[nn.Parameter], shape: Shape) -> Step:
    """A step of another library's model, with masters, clipping and AdamW of torch.

    Args:
        loss_of: mean loss of tokens ``[b, s]`` and labels ``[b, s]``.
        parameters: of the model.
        shape: what a step computes.
    """
    weights: list[Tensor] = list(parameters)
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, fused=True)
    batches = [(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) for tokens in token_batches(shape)]
    taken = 0

    def step() -> float:
        nonlocal taken
        loss = loss_of(*batches[taken % BATCHES])
        taken += 1
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
                weight.grad = None
            torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
            optimizer.step()
            torch._foreach_copy_(weights, masters)
        for master in masters:
            master.grad = None
        return float(loss.detach())

    return step


def _flops(shape: Shape) -> float:
    """Of the model in one step, without recomputation."""
    return step_flops(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        vocab_size=shape.vocabulary,
        sequence_length=shape.sequence,
        samples=shape.batch,
        recompute=Recompute.NONE,
    ).model


def _product_flops(dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the best of a few."""
    size = 2048
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / min(seconds))


if __name__ == "__main__":
    main()
