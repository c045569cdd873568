"""Which checkpoint a path means: a run folder, a folder of checkpoints, or one checkpoint. Needs no torch."""

from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.store import CheckpointStore, step_of
from megatron_poro.errors import CheckpointError

CHECKPOINTS_FOLDER = "checkpoints"
EXPORTS_FOLDER = "exports"


def store_at(path: Path | str) -> CheckpointStore:
    """The checkpoints of a run folder, or of a folder that holds step folders.

    Raises:
        CheckpointError: if there are none.
    """
    path = Path(path)
    for folder in (path / CHECKPOINTS_FOLDER, path):
        store = CheckpointStore(folder)
        if store.steps():
            return store
    raise CheckpointError(
        f"{path} has no checkpoints. Give a run folder, its {CHECKPOINTS_FOLDER} folder, or one step_... folder in it."
    )


def checkpoint_at(path: Path | str, *, step: int | None = None) -> Path:
    """One checkpoint: the step folder itself, the given step of a run, or the newest that is complete.

    Files are compared by size only; who reads the tensors decides whether to hash them.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    path = Path(path)
    if step_of(path) is not None and path.is_dir():
        if step not in (None, step_of(path)):
            raise CheckpointError(f"{path} is not step {step}: give its run folder.")
        return path
    store = store_at(path)
    if step is not None:
        if step not in store.steps():
            known = ", ".join(map(str, sorted(store.steps())))
            raise CheckpointError(f"{store.folder} has no checkpoint of step {step}; it has {known}.")
        return store.path(step)
    newest, damaged = store.newest_valid(lambda folder: manifest.problems(folder, checksums=False))
    if newest is None:
        raise CheckpointError(f"no checkpoint in {store.folder} is complete ({'; '.join(map(str, damaged))}).")
    return newest


def exports_folder(checkpoint: Path) -> Path | None:
    """Where the exports of a run go, if the checkpoint lies in a run folder."""
    if checkpoint.parent.name != CHECKPOINTS_FOLDER:
        return None
    return checkpoint.parent.parent / EXPORTS_FOLDER
