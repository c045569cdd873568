"""What a run has passed over, kept for a person to look at: ``<run>/skipped/step_00000123.jsonl``.

The first line says why; each of the others is a sample: its number in the run, its source, the parts of documents it is
made of, and its text. Damaged documents are found by reading them.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_poro.data.mixture import Mixture
from megatron_poro.engine.engine import StepResult
from megatron_poro.logs import get_logger
from megatron_poro.train.run import Run

SKIPPED_FOLDER = "skipped"

_SHOWN_SAMPLES = 3
_SHOWN_CHARACTERS = 160

logger = get_logger(__name__)


def report_skipped(run: Run, result: StepResult, *, reason: str) -> None:
    """Logs and writes down the step that comes after ``run.progress``. The first process calls it.

    A disk that refuses is logged and does not end the run.

    Args:
        run: before the step is counted.
        result: of the step.
        reason: what is wrong with it.
    """
    step, first = run.progress.step + 1, run.progress.samples
    losses = source_losses(result, run.batches.mixture)
    told = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
    samples = range(first, first + run.plan.samples_per_step)
    path = run.folder.path / SKIPPED_FOLDER / f"step_{step:08d}.jsonl"
    logger.warning(
        "step %d is passed over: %s. Losses: %s. Its samples %d to %d are in %s",
        step,
        reason,
        told,
        first,
        samples[-1],
        path,
    )
    shown = 0
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            heading = {"step": step, "reason": reason, "loss": str(float(result.loss))}
            heading |= {
                "grad_norm": str(float(result.grad_norm)),
                "source_losses": {n: str(v) for n, v in losses.items()},
            }
            print(json.dumps(heading, ensure_ascii=False), file=file)
            for record in _records(run, samples):
                print(json.dumps(record, ensure_ascii=False), file=file)
                if shown < _SHOWN_SAMPLES and record["source"] == _most_suspect(losses):
                    shown += 1
                    text = record["text"][:_SHOWN_CHARACTERS]
                    logger.warning("sample %d of %s begins: %r", record["sample"], record["source"], text)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error.strerror)


def source_losses(result: StepResult, mixture: Mixture) -> dict[str, float]:
    """Mean loss of a step on each source that gave any loss token."""
    sums, weights = result.source_loss_sums.tolist(), result.source_weights.tolist()
    pairs = zip(mixture.names, sums, weights, strict=False)  # an engine may count more sources than the mixture has
    return {name: loss_sum / weight for name, loss_sum, weight in pairs if weight != 0}


def _most_suspect(losses: Mapping[str, float]) -> str | None:
    """The source whose loss is not a number, or else the highest."""
    return max(losses, key=lambda name: (losses[name] != losses[name], losses[name]), default=None)


def _records(run: Run, samples: range) -> Iterator[dict[str, Any]]:
    mixture = run.batches.mixture
    for number in samples:
        sample, source = mixture.sample(number)
        yield {
            "sample": number,
            "source": mixture.names[source],
            "documents": [piece._asdict() for piece in mixture.pieces(number)],
            "text": run.tokenizer.decode(sample.tokens.tolist()),
        }
