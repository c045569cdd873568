"""Every metric of a training run: key, unit, how several steps become one number, and what it means.

This is the only place where a key is spelt. A metric per source has ``<source>`` in its key; :meth:`Metric.of` puts
the source's name there. :func:`metrics_table` renders the whole list for the documentation.
"""

from dataclasses import dataclass
from enum import Enum

_SOURCE = "<source>"


class Reduction(str, Enum):
    """How the steps of one logging interval become one number."""

    TOKEN_MEAN = "mean over loss tokens"
    STEP_MEAN = "mean over steps"
    SUM = "sum"
    LAST = "last"
    RATE = "total / seconds"
    MAXIMUM = "maximum"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: name in every sink; may contain ``<source>``.
        unit: unit of the value.
        reduction: how the steps since the last line become one value.
        meaning: one sentence for the documentation.
    """

    key: str
    unit: str
    reduction: Reduction
    meaning: str

    def of(self, source: str) -> str:
        """The key of this metric for one source of the mixture."""
        assert _SOURCE in self.key, f"{self.key} is not a metric per source"
        return self.key.replace(_SOURCE, source)


STEP = Metric("train/step", "steps", Reduction.LAST, "Optimizer steps done since the start of the run.")
TOKENS = Metric("train/tokens", "tokens", Reduction.LAST, "Tokens consumed since the start of the run.")
SAMPLES = Metric("train/samples", "samples", Reduction.LAST, "Samples consumed since the start of the run.")
UNIX_SECONDS = Metric(
    "train/unix_seconds", "s", Reduction.LAST, "Wall clock when the line was written, since 1970 UTC."
)
LINEAGE = Metric(
    "train/lineage", "rewinds", Reduction.LAST, "How often the run had been rewound when it took the step."
)
SKIPPED_STEPS = Metric(
    "train/skipped_steps", "steps", Reduction.SUM, "Steps since the last line whose samples were not learned from."
)
LOSS = Metric("train/loss", "nats/token", Reduction.TOKEN_MEAN, "Mean loss over the loss tokens of the global batch.")

LEARNING_RATE = Metric("optim/learning_rate", "1", Reduction.LAST, "Learning rate of the last step.")
GRAD_NORM = Metric("optim/grad_norm", "1", Reduction.STEP_MEAN, "Global L2 norm of the gradient before clipping.")

SOURCE_LOSS = Metric(
    "data/<source>/loss", "nats/token", Reduction.TOKEN_MEAN, "Training loss on one source; absent if it gave no token."
)
SOURCE_TOKENS = Metric(
    "data/<source>/tokens", "tokens", Reduction.SUM, "Loss tokens of one source since the last line."
)
SOURCE_CONSUMED_TOKENS = Metric(
    "data/<source>/consumed_tokens", "tokens", Reduction.LAST, "Tokens of one source read so far."
)
SOURCE_EPOCHS = Metric(
    "data/<source>/epochs", "epochs", Reduction.LAST, "How many times one source has been read so far."
)
SOURCE_VALIDATION_LOSS = Metric(
    "data/<source>/validation_loss",
    "nats/token",
    Reduction.LAST,
    "Validation loss on one source of the validation mixture.",
)
VALIDATION_LOSS = Metric(
    "validation/loss", "nats/token", Reduction.LAST, "Mean loss over the loss tokens of the validation samples."
)

STEP_SECONDS = Metric(
    "perf/step_seconds", "s", Reduction.STEP_MEAN, "Wall time of a step, without validation and checkpoints."
)
DATA_WAIT_SECONDS = Metric(
    "perf/data_wait_seconds", "s", Reduction.STEP_MEAN, "Part of a step that rank 0 waited for its batches."
)
TOKENS_PER_SECOND = Metric(
    "perf/tokens_per_second", "tokens/s", Reduction.RATE, "Tokens of all replicas per second of step time."
)
MODEL_TFLOPS = Metric(
    "perf/model_tflops", "TFLOP/s/device", Reduction.RATE, "Floating-point operations the model needs, per device."
)
HARDWARE_TFLOPS = Metric(
    "perf/hardware_tflops",
    "TFLOP/s/device",
    Reduction.RATE,
    "The same with the operations done twice by recomputation.",
)
MFU = Metric("perf/mfu", "fraction", Reduction.RATE, "perf/model_tflops as a fraction of metrics.peak_tflops.")
SLOWEST_PROCESS = Metric(
    "perf/slowest_process",
    "ratio",
    Reduction.MAXIMUM,
    "Compute time of the slowest process over that of the others of its stage; absent where a stage has one process.",
)
CHECKPOINT_SECONDS = Metric(
    "checkpoint/seconds", "s", Reduction.SUM, "Time since the last line that training stood still for checkpoints."
)
FAILED_CHECKPOINTS = Metric(
    "checkpoint/failures", "checkpoints", Reduction.SUM, "Checkpoints since the last line that could not be written."
)
PEAK_MEMORY = Metric(
    "perf/peak_memory_bytes", "bytes", Reduction.MAXIMUM, "Most device memory that rank 0 held; absent without a GPU."
)

ALL_METRICS: tuple[Metric, ...] = (
    STEP,
    TOKENS,
    SAMPLES,
    UNIX_SECONDS,
    LINEAGE,
    SKIPPED_STEPS,
    LOSS,
    LEARNING_RATE,
    GRAD_NORM,
    SOURCE_LOSS,
    SOURCE_TOKENS,
    SOURCE_CONSUMED_TOKENS,
    SOURCE_EPOCHS,
    SOURCE_VALIDATION_LOSS,
    VALIDATION_LOSS,
    STEP_SECONDS,
    DATA_WAIT_SECONDS,
    TOKENS_PER_SECOND,
    MODEL_TFLOPS,
    HARDWARE_TFLOPS,
    MFU,
    SLOWEST_PROCESS,
    CHECKPOINT_SECONDS,
    FAILED_CHECKPOINTS,
    PEAK_MEMORY,
)


def metrics_table() -> str:
    """The list of metrics as a Markdown table, one row per metric, in the order of :data:`ALL_METRICS`."""
    rows = ["| key | unit | over several steps | meaning |", "|---|---|---|---|"]
    rows += [f"| `{m.key}` | {m.unit} | {m.reduction.value} | {m.meaning} |" for m in ALL_METRICS]
    return "\n".join(rows) + "\n"
