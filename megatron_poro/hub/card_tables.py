"""The tables of a model card."""

from collections.abc import Sequence

from megatron_poro.config.derived import batch_plan, decay_tokens
from megatron_poro.config.run import LearningRateKind, TrainConfig
from megatron_poro.hub.details import DatasetDetails
from megatron_poro.hub.facts import Consumption, MilestoneFacts

_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))


def short(number: int) -> str:
    """A count for reading, rounded to four digits: ``34.22B``, ``541.6B``, ``1T``, ``512``."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{float(f'{number / size:.4g}'):g}{unit}"
    return str(number)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars and line breaks in cells are made harmless."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def two_columns(name: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table of properties."""
    return markdown((name, "value"), rows)


def checkpoints(repository: str, milestones: Sequence[MilestoneFacts]) -> str:
    """A row for each branch; losses where they are known."""
    has_loss = any(milestone.loss is not None for milestone in milestones)
    has_validation = any(milestone.validation_loss is not None for milestone in milestones)
    head = ["branch", "step", "tokens"] + ["training loss"] * has_loss + ["validation loss"] * has_validation
    rows = [
        [
            f"[{milestone.label}](https://huggingface.co/{repository}/tree/{milestone.label})",
            f"{milestone.step:,}",
            f"{milestone.tokens:,}",
            *([_number(milestone.loss)] * has_loss),
            *([_number(milestone.validation_loss)] * has_validation),
        ]
        for milestone in milestones
    ]
    return markdown(head, rows)


def hyperparameters(config: TrainConfig) -> str:
    """What the optimizer was told."""
    optimizer, schedule, model = config.optimizer, config.schedule, config.model
    batch = batch_plan(config)
    rate = f"{short(schedule.warmup_tokens)} tokens of warm-up, " if schedule.warmup_tokens else ""
    if schedule.kind is LearningRateKind.COSINE:
        rate += f"then cosine to {schedule.min_learning_rate:g} at {short(decay_tokens(config))} tokens"
    else:
        rate += "then constant"
    clipping = f"global norm {optimizer.clip_norm:g}" if optimizer.clip_norm else "none"
    rows = [
        ("precision", config.engine.precision.value, "fp32 masters, moments and gradient sums"),
        ("optimizer", "AdamW", f"betas {optimizer.beta1:g}, {optimizer.beta2:g}, epsilon {optimizer.epsilon:g}"),
        ("learning rate", f"{schedule.learning_rate:g}", rate),
        ("weight decay", f"{optimizer.weight_decay:g}", "norms and biases are not decayed"),
        ("gradient clipping", clipping, ""),
        (
            "batch size",
            f"{batch.samples_per_step:,}",
            f"{batch.samples_per_step:,} samples x {config.data.sequence_length:,} tokens = "
            f"{batch.tokens_per_step:,} tokens",
        ),
        ("dropout", f"{model.hidden_dropout:g}", f"attention {model.attention_dropout:g}"),
        ("length", f"{short(schedule.total_tokens)} tokens", f"seed {config.run.seed}"),
    ]
    return markdown(("hyperparameter", "value", "comment"), rows)


def datasets(consumption: Sequence[Consumption], details: Sequence[DatasetDetails]) -> str:
    """A row for each dataset: what was read of it, as counted."""
    total = sum(entry.tokens for entry in consumption)
    by_name = {entry.source: entry for entry in consumption}
    described = [row for row in details if any(name in by_name for name in row.sources)]
    named = {name for row in described for name in row.sources}
    rows = [
        (
            f"[{row.title}]({row.url})" if row.url else row.title,
            row.notes,
            [by_name[name] for name in row.sources if name in by_name],
        )
        for row in described
    ]
    rows += [(entry.source, "", [entry]) for entry in consumption if entry.source not in named]
    return markdown(
        ("dataset", "notes", "percentage", "epochs", "tokens"),
        [
            (
                title,
                notes,
                f"{sum(entry.tokens for entry in parts) / max(total, 1):.2%}",
                _epochs(parts),
                short(sum(entry.tokens for entry in parts)),
            )
            for title, notes, parts in rows
        ],
    )


def evaluations(judged: Sequence[MilestoneFacts]) -> str:
    """A row for each benchmark, a column for each milestone that has results."""
    keys = list(
        dict.fromkeys(
            (result.benchmark, result.metric, result.shots) for milestone in judged for result in milestone.results
        )
    )
    columns = [
        {(result.benchmark, result.metric, result.shots): result.value for result in milestone.results}
        for milestone in judged
    ]
    rows = [
        [
            benchmark,
            metric,
            "" if shots is None else str(shots),
            *(f"{column[key]:.4g}" if key in column else "" for column in columns),
        ]
        for key in keys
        for benchmark, metric, shots in [key]
    ]
    return markdown(["benchmark", "metric", "shots", *(milestone.label for milestone in judged)], rows)


def _epochs(parts: Sequence[Consumption]) -> str:
    """Times that the parts together have been read."""
    known = [(part.tokens, part.epochs) for part in parts if part.epochs is not None]
    if len(known) < len(parts):
        return ""
    length = sum(tokens / epochs for tokens, epochs in known if epochs)
    return f"{sum(tokens for tokens, _ in known) / length:.2f}" if length else "0.00"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
