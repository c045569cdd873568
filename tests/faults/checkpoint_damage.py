"""Damage to any file of a checkpoint: flipped bits, cuts, zeros, strange bytes, files that are gone or swapped."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.faults.tally import Budget, Tally
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state

CLAIM = (
    "Damage to a file of the newest checkpoint is found before anything is loaded, the file is named, and the run goes "
    "on from the checkpoint before, each of its bits"
)
OLDER, NEWEST = 1, 2

Mutation = Callable[[Path, list[str], random.Random], set[str]]
"""Damages a checkpoint that has these files; returns the names of which one at least must be told."""


def flip_a_bit(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    name, content = _pick(folder, names, rng)
    position = rng.randrange(len(content))
    content[position] ^= 1 << rng.randrange(8)
    (folder / name).write_bytes(content)
    return {name}


def cut_off(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    name, content = _pick(folder, names, rng)
    (folder / name).write_bytes(content[: rng.randrange(len(content))])
    return {name}


def zero_a_range(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    """As a sector that was never written reads; at least one byte of it was something else."""
    name, content = _pick(folder, names, rng)
    position = rng.choice([index for index, byte in enumerate(content) if byte])
    begin, end = max(0, position - rng.randrange(512)), position + 1 + rng.randrange(512)
    content[begin:end] = bytes(len(content[begin:end]))
    (folder / name).write_bytes(content)
    return {name}


def overwrite_a_range(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    name, content = _pick(folder, names, rng)
    begin = rng.randrange(len(content))
    before = bytes(content)
    content[begin : begin + 64] = rng.randbytes(len(content[begin : begin + 64]))
    if bytes(content) == before:
        content[begin] ^= 255
    (folder / name).write_bytes(content)
    return {name}


def append(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    name, content = _pick(folder, names, rng)
    (folder / name).write_bytes(bytes(content) + rng.randbytes(rng.randint(1, 64)))
    return {name}


def remove(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    name = rng.choice(names)
    (folder / name).unlink()
    return {name}


def swap(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    """Two files change places; where one of them is the manifest, it is what is told."""
    one, other = rng.sample(names, 2)
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    assert first != second, f"{one} and {other} are equal"
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    return {one, other}


def of_another_step(folder: Path, names: list[str], rng: random.Random) -> set[str]:
    """A file of the checkpoint before, whole and of the same size or nearly, in place of this one's."""
    differing = [n for n in names if (folder / n).read_bytes() != (_older(folder) / n).read_bytes()]
    name = rng.choice(differing)
    shutil.copy(_older(folder) / name, folder / name)
    # a manifest of another step is whole in itself: then it is the files that do not agree with it
    return set(differing) if name == manifest.MANIFEST_NAME else {name}


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit,
    cut_off,
    zero_a_range,
    overwrite_a_range,
    append,
    remove,
    swap,
    of_another_step,
)


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial damages the newest of two checkpoints in one way and resumes. Its kind is the way and the file."""
    store = CheckpointStore(folder / "checkpoints")
    for step in (OLDER, NEWEST):
        save(store, FakeEngine(salt=f"step {step}"), run_state(step), tokenizer=byte_tokenizer())
    newest, intact = store.path(NEWEST), folder / "intact"
    shutil.copytree(newest, intact)
    names = [*manifest.read(newest), manifest.MANIFEST_NAME]

    def trial(number: int) -> str:
        mutation = MUTATIONS[number % len(MUTATIONS)]
        suspects = mutation(newest, names, rng)
        try:
            path, (damaged,) = store.newest_valid()
            assert (path, damaged.path) == (store.path(OLDER), newest), f"{path} is taken for the newest valid one"
            found = damaged.problems
            told = [name for name in suspects if any(problem.startswith(f"{name} ") for problem in found)]
            assert told, f"{sorted(suspects)} not named in {found}"
            if number % _RESUME_EVERY == 0:
                _require_older_resumed(store)
        finally:
            for name in names:  # what one mutation touches is put back
                if not (newest / name).exists() or (newest / name).read_bytes() != (intact / name).read_bytes():
                    shutil.copy(intact / name, newest / name)
        return f"{mutation.__name__.replace('_', ' ')} in {told[0]}"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["of them resumed and compared"] = -(-tally.trials // _RESUME_EVERY)
    return tally


_RESUME_EVERY = 25
"""Every so many trials the checkpoint that was found valid is also loaded, which takes far longer than the rest."""


def _require_older_resumed(store: CheckpointStore) -> None:
    engine = FakeEngine(filled=False)
    state = resume(store, engine, config=CONFIG, tokenizer_fingerprint="ab" * 32)
    assert state is not None
    assert state.step == OLDER, "the damaged checkpoint was loaded"
    assert engine.wrong_fragments(f"step {OLDER}") == []


def _pick(folder: Path, names: list[str], rng: random.Random) -> tuple[str, bytearray]:
    name = rng.choice(names)
    return name, bytearray((folder / name).read_bytes())


def _older(newest: Path) -> Path:
    return CheckpointStore(newest.parent).path(OLDER)
