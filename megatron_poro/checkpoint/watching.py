"""Exports the milestones of a run as they appear, in a process of its own: the training never waits for an export.

Nothing is remembered in a file: what is due is what the folder of checkpoints has and the folder of exports has not. So
a watch that was killed, or several milestones that fell due while none was running, need no repair.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from megatron_poro.checkpoint.hf_export import UnprovenError
from megatron_poro.checkpoint.state import META_NAME, RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.load import from_hydra
from megatron_poro.errors import CheckpointError, ConfigError, PoroError
from megatron_poro.locks import hold
from megatron_poro.logs import get_logger
from megatron_poro.schedule.plan import plan_run

LOCK_NAME = ".watch.lock"

logger = get_logger(__name__)


class KeptMilestone(NamedTuple):
    """A milestone whose checkpoint is there.

    Attributes:
        label: its tokens, ``100B``.
        checkpoint: its step folder.
        output: where its export is, or is to go.
    """

    label: str
    checkpoint: Path
    output: Path

    @property
    def is_exported(self) -> bool:
        """Whether its export is complete; none has this name before it is."""
        return self.output.exists()


def kept_milestones(store: CheckpointStore, exports: Path) -> tuple[list[KeptMilestone], list[CheckpointError]]:
    """The milestones of a run, oldest first, and what is wrong with checkpoints that cannot say if they are one."""
    found, unreadable = [], []
    for step in sorted(store.steps()):
        checkpoint = store.path(step)
        try:
            label = RunState.read(checkpoint / META_NAME).milestone
        except CheckpointError as error:
            if checkpoint.exists():  # else it was removed since we looked
                unreadable.append(error)
            continue
        if label is not None:
            found.append(KeptMilestone(label, checkpoint, exports / label))
    return found, unreadable


@dataclass
class Watch:
    """The milestones of one run, from now until its last.

    Attributes:
        store: the run's checkpoints; its folder may not be there yet.
        exports: where exports go.
        export: makes one export, or raises a PoroError.
        failed: what became of the milestones that could not be exported, by label.
    """

    store: CheckpointStore
    exports: Path
    export: Callable[[KeptMilestone], None]
    failed: dict[str, PoroError] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def run(self, pause: Callable[[], None]) -> None:
        """Exports every milestone, in order, and returns when the last one of the run has had its turn.

        One that fails keeps no other from its turn. It is tried again when another one falls due, unless its export was
        made and found not to be the model: that would end the same.

        Args:
            pause: waits until it is time for another look.

        Raises:
            CheckpointError: if another process watches the run.
        """
        self.exports.mkdir(parents=True, exist_ok=True)
        in_use = CheckpointError(
            f"{self.exports} is being watched by another `poro export --watch`: one is enough, stop either."
        )
        with hold(self.exports / LOCK_NAME, in_use):
            while not self._look():
                pause()
            self._tell_of_gaps()

    def _look(self) -> bool:
        """Exports what is due now; says whether it was the last."""
        milestones, unreadable = kept_milestones(self.store, self.exports)
        for error in unreadable:
            self._tell(str(error))
        due = [milestone for milestone in milestones if not milestone.is_exported]
        if any(milestone.label not in self.failed for milestone in due):
            for milestone in due:
                if not isinstance(self.failed.get(milestone.label), UnprovenError):
                    self._export(milestone)
        planned = self._planned()
        kept = {milestone.label for milestone in milestones}
        return bool(planned) and (planned[-1] in kept or (self.exports / planned[-1]).exists())

    def _export(self, milestone: KeptMilestone) -> None:
        self.failed.pop(milestone.label, None)
        try:
            self.export(milestone)
        except PoroError as error:
            self.failed[milestone.label] = error
            logger.error("milestone %s was not exported: %s", milestone.label, error)

    def _planned(self) -> list[str]:
        """Labels of all milestones of the run, as its newest checkpoint plans them; empty if that cannot be known."""
        for step in self.store.steps():
            try:
                saved = OmegaConf.create(RunState.read(self.store.path(step) / META_NAME).config)
                assert isinstance(saved, DictConfig), f"the config of step {step} is a list"
                config = from_hydra(saved)
            except CheckpointError:
                continue
            except ConfigError as error:
                # an import has no schedule; the run that goes on from it writes one into its first checkpoint
                self._tell(f"{self.store.path(step)} does not say when its run ends: {error}")
                return []
            return [milestone.label for milestone in plan_run(config).milestones]
        return []

    def _tell_of_gaps(self) -> None:
        kept = {milestone.label for milestone in kept_milestones(self.store, self.exports)[0]}
        for label in self._planned():
            if label not in kept and not (self.exports / label).exists():
                logger.warning("milestone %s has neither a checkpoint nor an export.", label)

    def _tell(self, what: str) -> None:
        """A warning, the first time."""
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s", what)
