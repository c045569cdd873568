"""What a run says of itself: its settings, what it had consumed at a milestone, how fast it was, how it was judged.

Read from the run folder and from reports of exports, never typed. Everything said of a milestone is a function of what
happened up to its step, so that its card does not change when the run goes on.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.config.load import from_yaml
from megatron_poro.config.run import TrainConfig
from megatron_poro.errors import CheckpointError, DataError
from megatron_poro.metrics import names
from megatron_poro.schedule.milestones import Milestone
from megatron_poro.schedule.plan import plan_run

CONFIG_NAME = "resolved.yaml"
METRICS_NAME = "metrics.jsonl"
EVALUATIONS_FOLDER = "evaluations"
_SPEED_KEYS = (names.TOKENS_PER_SECOND.key, names.MODEL_TFLOPS.key, names.MFU.key)


@dataclass(frozen=True)
class Result:
    """One number of an evaluation.

    Attributes:
        benchmark: what was asked.
        metric: what the number is.
        value: the number.
        shots: examples in each question, or None if that has no meaning.
    """

    benchmark: str
    metric: str
    value: float
    shots: int | None = None


@dataclass(frozen=True)
class Consumption:
    """What had been read of one source.

    Attributes:
        source: its name in the mixture.
        tokens: tokens read.
        epochs: how many times it had been read, or None if that is not known.
    """

    source: str
    tokens: int
    epochs: float | None


@dataclass(frozen=True)
class MilestoneFacts:
    """What there is to say of a milestone.

    Attributes:
        label: its name.
        step: optimizer steps done.
        tokens: tokens consumed.
        consumption: of each source, in the mixture's order.
        loss: training loss of the last line of metrics, or None.
        validation_loss: of the last validation, or None.
        tokens_per_second: median over the lines of metrics, all replicas, or None.
        model_tflops: the same, per device, or None.
        mfu: the same, as a fraction of the device's peak, or None.
        results: of its evaluation.
    """

    label: str
    step: int
    tokens: int
    consumption: Sequence[Consumption]
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    model_tflops: float | None = None
    mfu: float | None = None
    results: Sequence[Result] = ()


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes:
        config: as it was last started.
        total_steps: length of the run.
        milestones: facts of each milestone that the schedule or an export knows, by label, oldest first.
    """

    config: TrainConfig
    total_steps: int
    milestones: Mapping[str, MilestoneFacts]


def read_run(run: Path, exported: Mapping[str, tuple[int, int]]) -> RunFacts:
    """Everything that a run folder says.

    Args:
        run: the folder.
        exported: step and tokens of milestones that reports tell of; they win over what the schedule says.

    Raises:
        ConfigError: if there is no ``resolved.yaml``.
        DataError: if the metrics or an evaluation cannot be read.
    """
    config = from_yaml(run / CONFIG_NAME)
    plan = plan_run(config)
    known = {milestone.label: (milestone.step, milestone.tokens) for milestone in plan.milestones} | dict(exported)
    in_order = sorted((Milestone(label, *at) for label, at in known.items()), key=lambda milestone: milestone.tokens)
    seen = _scan(run / METRICS_NAME, in_order)
    return RunFacts(
        config=config,
        total_steps=plan.total_steps,
        milestones={
            milestone.label: _milestone_facts(
                config, milestone, *seen[milestone.label], read_results(run, milestone.label)
            )
            for milestone in in_order
        },
    )


def read_results(run: Path, label: str) -> list[Result]:
    """The evaluation of a milestone, from ``evaluations/<label>.json``; empty if there is none.

    Raises:
        DataError: if the file is not such a list.
    """
    path = run / EVALUATIONS_FOLDER / f"{label}.json"
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["results"]
        results = [
            Result(
                str(entry["benchmark"]),
                str(entry["metric"]),
                float(entry["value"]),
                None if entry.get("shots") is None else int(entry["shots"]),
            )
            for entry in entries
        ]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} is not an evaluation ({error!r}): it must be {{"results": [{{"benchmark": ..., "metric": ..., '
            '"value": ..., "shots": ...}, ...]}.'
        ) from error
    if wrong := [result.benchmark for result in results if not math.isfinite(result.value)]:
        raise DataError(f"{path} has no number for {wrong[0]}: take the benchmark out, or evaluate it again.")
    return results


def _scan(path: Path, milestones: Iterable[Milestone]) -> dict[str, tuple[dict[str, Any], list[dict[str, float]]]]:
    """For each milestone the newest value of each metric up to its step, and the speeds of the lines up to there."""
    waiting = list(milestones)
    newest: dict[str, Any] = {}
    speeds: list[dict[str, float]] = []
    found: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {}
    for line in _lines(path):
        while waiting and line[names.STEP.key] > waiting[0].step:
            found[waiting.pop(0).label] = (dict(newest), list(speeds))
        newest.update({key: value for key, value in line.items() if value is not None})
        speed = {key: line[key] for key in _SPEED_KEYS if line.get(key) is not None}
        if speed:
            speeds.append(speed)
    for milestone in waiting:
        found[milestone.label] = (newest, speeds)
    return found


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a metrics file; one that a running job has only begun to write is left out."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                line = json.loads(raw)
                if isinstance(line.get(names.STEP.key), int):
                    yield line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): it must hold one JSON object a line.") from error


def _milestone_facts(
    config: TrainConfig,
    milestone: Milestone,
    newest: Mapping[str, Any],
    speeds: Sequence[Mapping[str, float]],
    results: Sequence[Result],
) -> MilestoneFacts:
    def median(key: str) -> float | None:
        values = [speed[key] for speed in speeds if key in speed]
        return statistics.median(values) if values else None

    reached = newest.get(names.STEP.key, 0) >= milestone.step
    return MilestoneFacts(
        label=milestone.label,
        step=milestone.step,
        tokens=milestone.tokens,
        consumption=_consumption(config, milestone.tokens, newest if reached else {}),
        loss=newest.get(names.LOSS.key) if reached else None,
        validation_loss=newest.get(names.VALIDATION_LOSS.key) if reached else None,
        tokens_per_second=median(names.TOKENS_PER_SECOND.key),
        model_tflops=median(names.MODEL_TFLOPS.key),
        mfu=median(names.MFU.key),
        results=results,
    )


def _consumption(config: TrainConfig, tokens: int, newest: Mapping[str, Any]) -> list[Consumption]:
    """As the metrics say, or where they do not, by the weights of the mixture."""
    total_weight = math.fsum(source.weight for source in config.data.train)
    rows = []
    for source in config.data.train:
        counted = newest.get(names.SOURCE_CONSUMED_TOKENS.of(source.name))
        epochs = newest.get(names.SOURCE_EPOCHS.of(source.name))
        rows.append(
            Consumption(source.name, round(tokens * source.weight / total_weight), None)
            if counted is None
            else Consumption(source.name, int(counted), epochs)
        )
    return rows


def require_run(run: Path) -> None:
    """Raises a CheckpointError if a folder is not that of a run."""
    if not (run / CONFIG_NAME).is_file():
        raise CheckpointError(f"{run} is not the folder of a run: it has no {CONFIG_NAME}.")
