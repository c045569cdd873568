"""A run that has been built: everything the loop needs, as one value. :mod:`megatron_poro.train.build` makes it."""

from dataclasses import dataclass, field

from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.run import TrainConfig
from megatron_poro.data.loading import BatchLoader
from megatron_poro.engine.engine import Engine
from megatron_poro.metrics.tracker import Position, Tracker
from megatron_poro.schedule.plan import RunPlan
from megatron_poro.schedule.progress import Progress
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.train.control import STOPPING, Control
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.lineage import Lineage
from megatron_poro.train.processes import Processes
from megatron_poro.train.profiling import Profile
from megatron_poro.train.step_guard import StepGuard
from megatron_poro.train.stragglers import Stragglers


@dataclass(frozen=True)
class Validation:
    """The validation samples, and how they are read.

    Attributes:
        batches: loader whose one step is all validation samples.
        microbatches: forward passes of each replica over them.
    """

    batches: BatchLoader
    microbatches: int


@dataclass
class Run:
    """What a run is made of; only those with a default change while it runs.

    Attributes:
        config: the resolved configuration.
        processes: all processes of the run.
        folder: where it lives on disk.
        plan: all its steps in advance.
        tokenizer: of its text.
        engine: runs the steps.
        batches: the training mixture, by samples consumed.
        first_batches: the same without reading ahead, for the loss of the run's first samples.
        validation: the validation mixture; ``None`` when validation is off.
        store: its checkpoints.
        saver: writes them while the run goes on.
        tracker: collects metrics.
        control: what is asked from outside, alike on all processes.
        lineage: its id, its rewinds, and the steps that it must not learn from.
        guard: judges single steps.
        stragglers: compares how long processes compute.
        profile: measures where the time of steps goes.
        progress: what has been consumed.
        optimizer_lag: steps of ``progress`` that the optimizer has not counted (its moments were started afresh).
        saved_step: step of the newest checkpoint.
        has_stepped: whether this process has computed a step.
        skipped_steps: steps up to ``progress`` whose samples were not learned from.
    """

    config: TrainConfig
    processes: Processes
    folder: RunFolder
    plan: RunPlan
    tokenizer: Tokenizer
    engine: Engine
    batches: BatchLoader
    first_batches: BatchLoader
    validation: Validation | None
    store: CheckpointStore
    saver: BackgroundSaver
    tracker: Tracker
    control: Control
    lineage: Lineage
    guard: StepGuard
    stragglers: Stragglers
    profile: Profile
    progress: Progress = field(default_factory=Progress)
    optimizer_lag: int = 0
    saved_step: int = 0
    has_stepped: bool = False
    skipped_steps: list[int] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The step after which this process ends: of the run, or ``run.stop_after_steps``."""
        stop = self.config.run.stop_after_steps
        return self.plan.total_steps if stop is None else min(stop, self.plan.total_steps)

    @property
    def position(self) -> Position:
        """Where the run is, for metrics."""
        progress = self.progress
        return Position(progress.step, progress.samples, progress.tokens, lineage=self.lineage.number)

    def phase(self, name: str) -> None:
        """Tells the watchdog that this process gets on, and with what. All processes call it alike."""
        self.processes.watchdog.phase(f"{name} after step {self.progress.step}")

    def is_stopping(self) -> bool:
        """Whether any process was asked to stop. All processes call it."""
        return bool(self.control.agree() & STOPPING)

    def close(self) -> None:
        """Writes what the tracker still holds and lets go of files and threads; nothing is communicated or saved."""
        self.saver.close()
        self.processes.watchdog.closing()
        self.tracker.flush(self.position)
        self.tracker.close()
        self.batches.close()
        if self.validation is not None:
            self.validation.batches.close()
        self.folder.release()
        self.profile.drop()
