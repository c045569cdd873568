"""Continuing from a checkpoint: any layout in, any layout out.

Before a byte is read into the engine, the checkpoint is held against its manifest and against the run that asks for it:
its parameters, its tokenizer and its settings (:mod:`megatron_poro.config.continuation` says which may differ). A run
that silently became another one is found out weeks later, so what must not differ refuses the run with both values, and
every other difference is told.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.fragment import chunked_tensors, decayed_names, split_key
from megatron_poro.checkpoint.phases import phase
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.continuation import OPTIMIZER_GROUPS, Continuation, compare_settings
from megatron_poro.config.identity import Difference
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


def _load(path: Path, engine: Engine, world: World, *, config: TrainConfig, tokenizer_fingerprint: str) -> RunState:
    """:func:`load` of a folder that is known to be intact."""
    with phase(world, lambda error: f"checkpoint {path} cannot be read: {_reason(error)}."):
        reader = CheckpointReader(path)
        _require_same_tokenizer(reader, tokenizer_fingerprint)
        fragments = list(engine.fragments())
        targets = chunked_tensors(fragments)
    decayed = decayed_names(fragments, world)
    held = world.gather({split_key(key): tuple(tensor.shape) for key, tensor in targets.items()})
    shapes = {key: shape for part in held for key, shape in part.items()}
    with phase(world):
        known = reader.shapes.keys() & {name for _, name in shapes}
        moved = _group_differences(reader.state.decayed, decayed, known)
        continuation = compare_settings(reader.config, reader.state.identity, config, others=moved)
        _require_same_run(reader, continuation)
        _require_same_parameters(reader, shapes)
    if world.is_first:
        _tell(reader, continuation)
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


def _require_same_run(reader: CheckpointReader, continuation: Continuation) -> None:
    """Raises for what must not differ, and for what was not said to."""
    if continuation.defining:
        raise CheckpointError(
            f"checkpoint {reader.path} belongs to a run with other settings: {_listed(continuation.defining)}. Set "
            "them back, or start a new run under another run.name."
        )
    if continuation.to_accept:
        keys = ",".join(dict.fromkeys(one.key for one in continuation.to_accept))
        raise CheckpointError(
            f"checkpoint {reader.path} was saved with other settings: {_listed(continuation.to_accept)}. Set them "
            f"back, or say that they are meant: resume.accept=[{keys}]."
        )


def _tell(reader: CheckpointReader, continuation: Continuation) -> None:
    """One line for each setting that differs; the new value is the one that counts."""
    for difference in continuation.accepted:
        logger.warning("accepted since %s: %s", reader.path.name, _spelt(difference))
    for difference in continuation.free:
        logger.info("changed since %s: %s", reader.path.name, _spelt(difference))


def _group_differences(
    saved: Collection[str] | None, current: Collection[str], known: Collection[str]
) -> list[Difference]:
    """Which of the parameters ``known`` to both have moved between the optimizer's groups."""
    if saved is None:
        return []
    words = {True: "decayed", False: "not decayed"}
    return [
        Difference(OPTIMIZER_GROUPS, f"{name} {words[name in saved]}", f"{name} {words[name in current]}")
        for name in sorted(known)
        if (name in saved) != (name in current)
    ]


def _listed(differences: Sequence[Difference]) -> str:
    more = f" (and {len(differences) - 10} more)" if len(differences) > 10 else ""
    return "; ".join(map(_spelt, differences[:10])) + more


def _spelt(difference: Difference) -> str:
    return f"{difference.key} was {difference.left}, is now {difference.right}"


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


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
