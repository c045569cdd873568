"""Continuing from a checkpoint: any layout in, any layout out.

Before a byte is read into the engine, the checkpoint is held against its manifest and against the run that asks for it:
its parameters, its tokenizer and every setting that makes the run the run it is. Where they differ the run is refused
with both values, because a run that silently became another one is found out weeks later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.fragment import chunked_tensors, split_key
from megatron_poro.checkpoint.phases import phase
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.identity import ABSENT, Difference, identity
from megatron_poro.config.run import TrainConfig
from megatron_poro.engine.engine import Engine, FragmentKind
from megatron_poro.errors import CheckpointError
from megatron_poro.logs import get_logger
from megatron_poro.parallel.agreement import World

logger = get_logger(__name__)


def resume(
    store: CheckpointStore, engine: Engine, *, config: TrainConfig, tokenizer_fingerprint: str
) -> RunState | None:
    """Loads the newest valid checkpoint of a run into the engine. All processes call it.

    Damaged checkpoints are passed over, each with a warning that says what is wrong with it.

    Args:
        store: the run's checkpoints.
        engine: filled with the checkpoint's masters and moments.
        config: of this run.
        tokenizer_fingerprint: of this run's tokenizer.

    Returns:
        Where the run stands, or None if it has no checkpoint yet.

    Raises:
        CheckpointError: on every process alike, if there are checkpoints but none is valid (starting again from step 0
            would throw them away), or as :func:`load`.
    """
    world = engine.groups.world
    steps: list[int] = []
    with phase(world, lambda error: f"{store.folder} cannot be read: {_reason(error)}."):
        steps = store.steps()
    path, damaged = store.newest_valid(lambda folder: _problems(folder, world), steps=world.gather(steps)[0])
    if world.is_first:
        for one in damaged:
            logger.warning("checkpoint %s is damaged and is passed over: %s", one.path, "; ".join(one.problems))
    if path is not None:
        return _load(path, engine, world, config=config, tokenizer_fingerprint=tokenizer_fingerprint)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {store.folder} is valid ({'; '.join(map(str, damaged))}). Repair or remove them, or "
            "start anew under another run.name."
        )
    return None


def load(path: Path | str, engine: Engine, *, config: TrainConfig, tokenizer_fingerprint: str) -> RunState:
    """Loads one checkpoint into the engine, whatever layout wrote it. All processes call it.

    Args:
        path: a step folder.
        engine, config, tokenizer_fingerprint: as in :func:`resume`.

    Raises:
        CheckpointError: on every process alike, if the checkpoint is damaged, or the run's model, tokenizer or settings
            are not those of the checkpoint. Nothing has been written into the engine then.
    """
    world = engine.groups.world
    found = _problems(Path(path), world)
    if found:
        raise CheckpointError(f"{path} is not a valid checkpoint: {'; '.join(found)}. Use another one.")
    return _load(Path(path), engine, world, config=config, tokenizer_fingerprint=tokenizer_fingerprint)


def differing_values(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """Values of a run's identity that are not the same in a checkpoint and in the run that asks for it.

    A key that only one of them knows is not compared: it belongs to an earlier or a later release, or the checkpoint
    was imported and knows its model only. An element that a list lost or gained is a difference.
    """
    known = {_owner(key) for key in saved} & {_owner(key) for key in current}
    pairs = [
        Difference(key, saved.get(key, ABSENT), current.get(key, ABSENT))
        for key in (*saved, *(key for key in current if key not in saved))
        if _owner(key) in known
    ]
    return [pair for pair in pairs if pair.left != pair.right]


def _load(path: Path, engine: Engine, world: World, *, config: TrainConfig, tokenizer_fingerprint: str) -> RunState:
    """:func:`load` of a folder that is known to be intact."""
    with phase(world, lambda error: f"checkpoint {path} cannot be read: {_reason(error)}."):
        reader = CheckpointReader(path)
        _require_same_tokenizer(reader, tokenizer_fingerprint)
        _require_same_run(reader, config)
        targets = chunked_tensors(engine.fragments())
    held = world.gather({split_key(key): tuple(tensor.shape) for key, tensor in targets.items()})
    with phase(world):
        _require_same_parameters(reader, {key: shape for part in held for key, shape in part.items()})
    with phase(world, lambda error: f"checkpoint {path} cannot be read: {_reason(error)}."):
        reader.fill(dict(targets), distributed=world.size > 1)
    engine.load_finished(reader.state.optimizer_step)
    return reader.state


def _problems(folder: Path, world: World) -> list[str]:
    """What is wrong with a checkpoint; each process hashes a share of its files."""
    shares = world.gather(manifest.problems(folder, rank=world.rank, size=world.size))
    return list(dict.fromkeys(problem for share in shares for problem in share))


def _require_same_tokenizer(reader: CheckpointReader, fingerprint: str) -> None:
    saved = reader.state.tokenizer_fingerprint
    if saved != fingerprint:
        raise CheckpointError(
            f"checkpoint {reader.path} was trained with the tokenizer of fingerprint {saved[:12]}, tokenizer.path has "
            f"{fingerprint[:12]}: the same ids would mean other text. Set tokenizer.path to the tokenizer of the run."
        )


def _require_same_run(reader: CheckpointReader, config: TrainConfig) -> None:
    differing = differing_values(reader.state.identity, identity(config))
    if differing:
        listed = "; ".join(f"{one.key} was {one.left}, is now {one.right}" for one in differing)
        raise CheckpointError(
            f"checkpoint {reader.path} belongs to a run with other settings: {listed}. Set them back, or start a new "
            "run under another run.name."
        )


def _require_same_parameters(reader: CheckpointReader, shapes: dict[tuple[FragmentKind, str], tuple[int, ...]]) -> None:
    """Compares names and shapes with those that all processes hold together."""
    saved = reader.tensors
    complaints = [
        *(f"it has no {_spell(key)}" for key in sorted(shapes.keys() - saved.keys())),
        *(f"its {_spell(key)} is not in the model" for key in sorted(saved.keys() - shapes.keys())),
        *(
            f"its {_spell(key)} is {list(saved[key])}, the model's is {list(shapes[key])}"
            for key in sorted(shapes.keys() & saved.keys())
            if saved[key] != shapes[key]
        ),
    ]
    if complaints:
        more = f" (and {len(complaints) - 3} more)" if len(complaints) > 3 else ""
        raise CheckpointError(
            f"checkpoint {reader.path} is of another model: {'; '.join(complaints[:3])}{more}. Set model.* to what it "
            "was."
        )


def _spell(key: tuple[FragmentKind, str]) -> str:
    return f"{key[1]} ({key[0].value})"


def _owner(key: str) -> str:
    """The list that an element's key belongs to (``data.train`` of ``data.train[0].name``), or the key itself."""
    return key.partition("[")[0]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
