"""Death before and in the middle of every file operation of a save, and loss of power there, retention included."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_poro.checkpoint import manifest
from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.parallel.agreement import World
from megatron_poro.tokenizer.bytes import byte_tokenizer
from tests.faults.tally import Budget, Tally
from tests.support.deaths import in_child
from tests.support.faulty_disk import DEAD, FaultyDisk, Journal, die, lose_power, save_journal
from tests.unit.checkpoint.fake_engine import CONFIG, FakeEngine, run_state

CLAIM = (
    "A save that dies at any of its file operations leaves the checkpoint before or the new one, each of its bits, and "
    "nothing stands in the way of the next save; after a completed save a loss of power leaves the new one"
)
OLD, NEW, NEXT = 2, 3, 4
FINGERPRINT = "ab" * 32
_TOKENIZER = byte_tokenizer()


def saved_at_once(store: CheckpointStore, step: int) -> None:
    """A save that training waits for."""
    save(store, FakeEngine(salt=f"step {step}"), run_state(step), tokenizer=_TOKENIZER)


def saved_in_background(store: CheckpointStore, step: int) -> None:
    """A save beside which training changes every value."""
    engine, saver = FakeEngine(salt=f"step {step}"), BackgroundSaver(store, World())
    saver.start(engine, run_state(step), tokenizer=_TOKENIZER)
    for fragment in engine.fragments():
        fragment.flat.fill_(7.0)
    saver.finish()


WAYS: dict[str, Callable[[CheckpointStore, int], None]] = {
    "synchronous": saved_at_once,
    "asynchronous": saved_in_background,
}


class Deaths:
    """Trials of one way to save; each dies at the next operation, and begins again after the last.

    Args:
        way: one of :data:`WAYS`.
        power: whether the power goes as well, so that what was not synced is lost.
        folder: an empty folder.
    """

    def __init__(self, way: str, *, power: bool, folder: Path) -> None:
        self.way, self.power, self.folder = way, power, folder
        for step in (1, OLD):
            saved_at_once(CheckpointStore(folder / "before", keep_last=2), step)
        shutil.copytree(folder / "before", folder / "counted")
        with FaultyDisk(folder / "counted") as disk:
            self._save(folder / "counted")
        self.kinds = [operation.kind for operation in disk.operations]

    @property
    def count(self) -> int:
        """Trials that are different: one for each operation, and one for the time after the last."""
        return len(self.kinds) + 1

    def trial(self, number: int, rng: random.Random) -> str:
        """Dies, loads and saves again; returns the kind of trial.

        Raises:
            AssertionError: if the claim is wrong.
        """
        at = number % self.count
        store, journal = CheckpointStore(self.folder / str(number), keep_last=2), self.folder / f"{number}.journal"
        backups = self.folder / f"{number}.backups"
        shutil.copytree(self.folder / "before", store.folder)
        backups.mkdir()

        def save_and_die() -> None:
            with FaultyDisk(store.folder, at=at, fault=die(journal), backups=backups) as disk:
                self._save(store.folder)
            save_journal(disk.journal, journal)

        done = in_child(save_and_die)
        assert done == (0 if at == self.count - 1 else DEAD), f"the save ended with {done} at operation {at}"
        if self.power:
            lose_power(Journal.read(journal), rng)
        step = loaded_step(store)
        if done == 0:
            assert step == NEW, "a completed save is gone"
        saved_at_once(store, NEXT)
        assert loaded_step(store) == NEXT
        assert all(manifest.problems(path) == [] for path in (store.path(NEXT), store.path(step)))
        leftovers = [path.name for path in store.folder.iterdir() if path.suffix in (".tmp", ".removed", ".partial")]
        assert leftovers == [], f"{leftovers} are left"
        shutil.rmtree(store.folder)
        shutil.rmtree(backups)
        os.unlink(journal)
        what = "after the last" if done == 0 else self.kinds[at]
        return f"{self.way}{', power lost' if self.power else ''}: {what}, {'new' if step == NEW else 'old'} loaded"

    def _save(self, folder: Path) -> None:
        WAYS[self.way](CheckpointStore(folder, keep_last=2), NEW)


def loaded_step(store: CheckpointStore) -> int:
    """The step a run would resume from, with every bit of it checked: no mix of two."""
    engine = FakeEngine(filled=False)
    state = resume(store, engine, config=CONFIG, tokenizer_fingerprint=FINGERPRINT)
    assert state is not None, "no checkpoint is left"
    assert engine.wrong_fragments(f"step {state.step}") == [], f"step {state.step} holds other values"
    return state.step


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """Goes through every operation of every way to save, without and with loss of power, and over again.

    Loss of power draws what is lost, so the same operation is another trial each time.
    """
    deaths = [Deaths(way, power=power, folder=folder / f"{way} {power}") for power in (False, True) for way in WAYS]
    rounds = [(one, at) for one in deaths for at in range(one.count)]

    def trial(number: int) -> str:
        one, at = rounds[number % len(rounds)]
        return one.trial(number // len(rounds) * one.count + at, rng)

    tally = Tally(CLAIM).run(budget, trial)
    for one in deaths:
        tally.facts[f"operations of a save, {one.way}{', power lost' if one.power else ''}"] = one.count - 1
    tally.facts["trials of one round"] = len(rounds)
    return tally
