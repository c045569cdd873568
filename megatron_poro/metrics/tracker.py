"""Collects what steps report and hands one line of metrics per interval to the sinks.

A step's numbers stay on the device until :meth:`Tracker.flush`, which moves the whole interval in one transfer: the
only place where training waits for the device in order to report. Values are the same on every process already, so
nothing is communicated here; processes without sinks record nothing.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_poro.metrics import names
from megatron_poro.metrics.names import Metric
from megatron_poro.metrics.sinks import Number, Sink
from megatron_poro.metrics.throughput import SpeedOfRun


@dataclass(frozen=True)
class Position:
    """Where a run is when a line is written: steps, samples, tokens since its start, and how often it was rewound."""

    step: int
    samples: int
    tokens: int
    lineage: int = 0


class Tracker:
    """Records steps and validations, and writes one line for all that happened since the last line.

    Args:
        sinks: where lines go; empty on every process but one.
        sources: names of the training mixture's sources, in its order.
        validation_sources: the same for the validation mixture.
        speed: turns seconds into tokens/s and TFLOP/s.
        consumption: for a number of samples of the run, the tokens and epochs read of each source.
        peak_memory: most device memory held so far in bytes, or ``None`` where that has no meaning.
        clock: monotonic seconds.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        sources: Sequence[str],
        validation_sources: Sequence[str] = (),
        speed: SpeedOfRun,
        consumption: Callable[[int], Sequence[tuple[int, float]]] = lambda samples: (),
        peak_memory: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._sinks = tuple(sinks)
        self._sources = tuple(sources)
        self._validation_sources = tuple(validation_sources)
        self._speed = speed
        self._consumption = consumption
        self._peak_memory = peak_memory
        self._clock = clock
        self._wall_clock = wall_clock
        self._steps: list[Tensor] = []
        self._skipped = 0
        self._skipped_computed = 0
        self._slowest_process: float | None = None
        self._failed_saves = 0
        self._saving_seconds = 0.0
        self._validation: Tensor | None = None
        self._learning_rate = 0.0
        self._data_wait_seconds = 0.0
        self._interval_began = clock()
        self._seconds_outside = 0.0

    def record_step(
        self,
        *,
        loss: Tensor,
        grad_norm: Tensor,
        source_loss_sums: Tensor,
        source_weights: Tensor,
        learning_rate: float,
    ) -> None:
        """Notes one optimizer step; does not wait for the device.

        Args:
            loss: scalar, mean over the global batch's loss tokens.
            grad_norm: scalar, before clipping.
            source_loss_sums: ``[num_sources]``; an engine may count more sources than the mixture has.
            source_weights: ``[num_sources]``, loss tokens per source.
            learning_rate: the step's learning rate.
        """
        if not self._sinks:
            return
        num_sources = len(self._sources)
        numbers = (loss.view(1), grad_norm.view(1), source_loss_sums[:num_sources], source_weights[:num_sources])
        self._steps.append(torch.cat([number.detach().float() for number in numbers]))  # [2 + 2 * num_sources], a copy
        self._learning_rate = learning_rate

    def record_skipped(self, *, computed: bool) -> None:
        """Notes a step whose samples were not learned from.

        Args:
            computed: whether it was computed and then refused, so that it took the time of a step.
        """
        self._skipped += 1
        self._skipped_computed += computed

    def record_slowest_process(self, ratio: float) -> None:
        """Notes how much longer the slowest process computes than the others of its stage."""
        self._slowest_process = max(ratio, self._slowest_process or 0.0)

    def record_failed_save(self) -> None:
        """Notes a checkpoint that could not be written."""
        self._failed_saves += 1

    def record_validation(self, source_loss_sums: Tensor, source_weights: Tensor) -> None:
        """Notes one validation: loss sums and loss tokens per source of its mixture, ``[num_sources]`` each."""
        if self._sinks:
            values = torch.stack([source_loss_sums.detach().float(), source_weights.detach().float()])
            self._validation = values[:, : len(self._validation_sources)]

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """What runs inside is the part of a step that waits for its batches."""
        began = self._clock()
        yield
        self._data_wait_seconds += self._clock() - began

    @contextmanager
    def outside_step(self) -> Iterator[None]:
        """What runs inside (validation, checkpoints) is not counted as step time.

        The steps recorded before are awaited first: on a device that works asynchronously their time would else be
        counted as time outside.
        """
        if self._steps:
            self._steps[-1].cpu()
        began = self._clock()
        yield
        self._seconds_outside += self._clock() - began

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What runs inside keeps training from going on because of a checkpoint; not counted as step time."""
        with self.outside_step():
            began = self._clock()
            yield
            self._saving_seconds += self._clock() - began

    def flush(self, position: Position) -> None:
        """Writes one line for everything recorded since the last one; nothing if nothing was."""
        if not self._steps and not self._skipped and self._validation is None:
            return
        line: dict[str, Number] = {
            names.STEP.key: position.step,
            names.TOKENS.key: position.tokens,
            names.SAMPLES.key: position.samples,
            names.UNIX_SECONDS.key: round(self._wall_clock(), 3),
            names.LINEAGE.key: position.lineage,
        }
        if self._steps:
            line |= self._step_metrics()
        if self._steps or self._skipped:
            line[names.SKIPPED_STEPS.key] = self._skipped
            line[names.CHECKPOINT_SECONDS.key] = self._saving_seconds
            line[names.FAILED_CHECKPOINTS.key] = self._failed_saves
            line |= self._consumption_metrics(position.samples)
        if self._slowest_process is not None:
            line[names.SLOWEST_PROCESS.key] = self._slowest_process
        if self._validation is not None:
            line |= self._validation_metrics(self._validation)
        if (memory := self._peak_memory()) is not None:
            line[names.PEAK_MEMORY.key] = memory
        for sink in self._sinks:
            sink.write(position.step, position.tokens, line)
        self._begin_interval()

    def rewound(self, position: Position) -> None:
        """The run has gone back to a position; what was recorded since the last :meth:`flush` is forgotten."""
        for sink in self._sinks:
            sink.rewound(position.step, position.lineage)
        self._begin_interval()

    def close(self) -> None:
        """Closes the sinks. Call once, after the last :meth:`flush`."""
        for sink in self._sinks:
            sink.close()

    def _begin_interval(self) -> None:
        self._steps.clear()
        self._skipped = self._skipped_computed = 0
        self._failed_saves = 0
        self._saving_seconds = 0.0
        self._slowest_process = None
        self._validation = None
        self._data_wait_seconds = 0.0
        self._interval_began = self._clock()
        self._seconds_outside = 0.0

    def _step_metrics(self) -> dict[str, Number]:
        """Reduces the recorded steps to one value per metric."""
        rows = torch.stack(self._steps).cpu().tolist()
        seconds = self._clock() - self._interval_began - self._seconds_outside
        num_sources = len(self._sources)
        losses = [row[0] for row in rows]
        grad_norms = [row[1] for row in rows]
        sums = [row[2 : 2 + num_sources] for row in rows]
        weights = [row[2 + num_sources :] for row in rows]
        tokens = [math.fsum(row) for row in weights]
        line: dict[str, Number] = {
            names.LOSS.key: _weighted_mean(losses, tokens),
            names.LEARNING_RATE.key: self._learning_rate,
            names.GRAD_NORM.key: math.fsum(grad_norms) / len(rows),
        }
        line |= _per_source(names.SOURCE_LOSS, self._sources, _column_sums(sums), _column_sums(weights))
        for source, count in zip(self._sources, _column_sums(weights), strict=True):
            line[names.SOURCE_TOKENS.of(source)] = int(count)
        return line | self._speed_metrics(seconds, len(rows) + self._skipped_computed)

    def _consumption_metrics(self, samples: int) -> dict[str, Number]:
        """Where the run stands in each source; also sources that gave nothing lately are told."""
        line: dict[str, Number] = {}
        for source, (tokens, epochs) in zip(self._sources, self._consumption(samples), strict=False):
            line[names.SOURCE_CONSUMED_TOKENS.of(source)] = tokens
            line[names.SOURCE_EPOCHS.of(source)] = round(epochs, 6)
        return line

    def _speed_metrics(self, seconds: float, steps: int) -> dict[str, Number]:
        speed = self._speed.of(seconds, steps)
        line: dict[str, Number] = {
            names.STEP_SECONDS.key: speed.step_seconds,
            names.DATA_WAIT_SECONDS.key: self._data_wait_seconds / steps,
            names.TOKENS_PER_SECOND.key: speed.tokens_per_second,
            names.MODEL_TFLOPS.key: speed.model_tflops,
            names.HARDWARE_TFLOPS.key: speed.hardware_tflops,
        }
        if speed.mfu is not None:
            line[names.MFU.key] = speed.mfu
        return line

    def _validation_metrics(self, validation: Tensor) -> dict[str, Number]:
        sums, weights = validation.cpu().tolist()
        line: dict[str, Number] = {names.VALIDATION_LOSS.key: math.fsum(sums) / max(math.fsum(weights), 1.0)}
        return line | _per_source(names.SOURCE_VALIDATION_LOSS, self._validation_sources, sums, weights)


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean by weight; of a single value, exactly that value."""
    if len(values) == 1:
        return values[0]
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def _column_sums(rows: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def _per_source(
    metric: Metric, sources: Sequence[str], sums: Sequence[float], weights: Sequence[float]
) -> dict[str, Number]:
    """The metric's value for each source that has any weight."""
    return {
        metric.of(source): loss_sum / weight
        for source, loss_sum, weight in zip(sources, sums, weights, strict=True)
        if weight > 0
    }
