"""The model card of a milestone: sections made of facts, put in order by a template that may be replaced.

A section about which nothing is known is left out with its heading. A template is Markdown with ``$names`` of
:data:`SECTIONS`; prose of its own may stand anywhere in it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from megatron_poro.config.run import TrainConfig
from megatron_poro.config.typed import enumerate_words
from megatron_poro.errors import ConfigError
from megatron_poro.hub import card_tables as tables
from megatron_poro.hub.card_tables import short
from megatron_poro.hub.details import CardDetails
from megatron_poro.hub.facts import MilestoneFacts, RunFacts
from megatron_poro.hub.seal import sealed

_PACKAGED_TEMPLATE = Path(__file__).with_name("card_template.md")


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        repository: ``owner/name``.
        run: the run.
        details: what the run does not know.
        label: the milestone.
        report: ``export_report.json`` of its export.
        listed: labels of the milestones that the card lists, oldest first.
    """

    repository: str
    run: RunFacts
    details: CardDetails
    label: str
    report: Mapping[str, Any]
    listed: Sequence[str]

    @property
    def milestone(self) -> MilestoneFacts:
        """Its facts."""
        return self.run.milestones[self.label]

    @property
    def title(self) -> str:
        """Name of the model."""
        return self.details.title or self.repository.split("/")[-1]


def render(subject: Subject) -> str:
    """The card.

    Raises:
        ConfigError: if the template cannot be read, or has a name in it that is none of a section.
    """
    path = Path(subject.details.template) if subject.details.template else _PACKAGED_TEMPLATE
    parts = {name: make(subject) for name, make in SECTIONS.items()}
    try:
        text = Template(path.read_text(encoding="utf-8")).substitute(parts)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"card template {path} cannot be read: {error}.") from error
    except KeyError as error:
        raise ConfigError(
            f"card template {path} asks for ${error.args[0]}; there is {enumerate_words(sorted(SECTIONS), 'and')}."
        ) from error
    except ValueError as error:
        raise ConfigError(f"card template {path}: {error}; write a dollar sign as $$.") from error
    if not text.startswith("---\n"):
        raise ConfigError(f"card template {path} must begin with $front_matter.")
    return sealed(re.sub(r"\n{3,}", "\n\n", text))


def _front_matter(subject: Subject) -> str:
    details = subject.details
    data = {
        "language": details.languages,
        "license": details.license,
        "license_name": details.license_name,
        "license_link": details.license_link,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys([*details.tags, subject.run.config.model.family, "megatron_poro"])),
        "datasets": details.hub_datasets,
    }
    given = {key: value for key, value in data.items() if value}
    return f"---\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}---"


def _progress(subject: Subject) -> str:
    milestone = subject.milestone
    if milestone.step >= subject.run.total_steps:
        return ""
    share = milestone.step / subject.run.total_steps
    return (
        f"> **A checkpoint of an unfinished run.** It has seen {short(milestone.tokens)} of "
        f"{short(subject.run.config.schedule.total_tokens)} tokens ({share:.0%}); its learning rate has not come down "
        "yet, and later checkpoints are better."
    )


def _overview(subject: Subject) -> str:
    model, config = subject.run.config.model, subject.run.config
    rows = [
        ("architecture", f"{model.family.upper()}, decoder only, ALiBi positions"),
        ("parameters", f"{short(subject.report['model']['parameters'])} ({subject.report['model']['parameters']:,})"),
        ("layers", f"{model.num_layers}"),
        ("attention heads", f"{model.num_heads}"),
        ("hidden size", f"{model.hidden_size:,}"),
        ("feed-forward size", f"{4 * model.hidden_size:,}"),
        ("vocabulary", f"{model.vocab_size:,}"),
        ("sequence length", f"{config.data.sequence_length:,}"),
        ("weights", str(subject.report["model"]["dtype"])),
    ]
    return _section("Model overview", tables.two_columns("property", rows))


def _checkpoints(subject: Subject) -> str:
    listed = [subject.run.milestones[label] for label in subject.listed if label in subject.run.milestones]
    text = (
        "Each milestone of the run is a branch of this repository; `main` is the newest one. A branch appears when "
        "every file in it has been verified, and its weights never change after that."
    )
    code = f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

repository, branch = "{subject.repository}", "{subject.label}"
tokenizer = AutoTokenizer.from_pretrained(repository, revision=branch)
model = AutoModelForCausalLM.from_pretrained(repository, revision=branch, dtype="auto")
```"""
    return _section("Checkpoints", text, tables.checkpoints(subject.repository, listed), code)


def _training(subject: Subject) -> str:
    config, milestone = subject.run.config, subject.milestone
    layout = subject.report["checkpoint"]["layout"]
    devices = layout["tensor"] * layout["pipeline"] * layout["data"]
    accumulation = config.schedule.global_batch_samples // (config.engine.microbatch_samples * layout["data"])
    rows = [
        (
            "layout",
            f"{devices:,} processes: tensor {layout['tensor']} x pipeline {layout['pipeline']} x data {layout['data']}",
        ),
        ("microbatch", f"{config.engine.microbatch_samples} x {accumulation} accumulation steps"),
        ("activations recomputed", _recomputed(config)),
    ]
    if milestone.tokens_per_second is not None:
        rows.append(("throughput", f"{milestone.tokens_per_second:,.0f} tokens/s (median)"))
    if milestone.model_tflops is not None:
        share = "" if milestone.mfu is None else f", {milestone.mfu:.1%} of its peak"
        rows.append(("per device", f"{milestone.model_tflops:.3g} TFLOP/s{share}"))
    versions = subject.report["checkpoint"]["versions"]
    rows.append(("software", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return _section("Training", subject.details.hardware or "", tables.two_columns("", rows))


def _recomputed(config: TrainConfig) -> str:
    counts = config.engine.recompute_blocks
    some = "" if counts is None else f", in {', '.join(map(str, counts))} blocks of the pipeline ranks"
    return config.engine.recompute.value + some


def _hyperparameters(subject: Subject) -> str:
    return _section("Training hyperparameters", tables.hyperparameters(subject.run.config))


def _tokenizer(subject: Subject) -> str:
    config = subject.run.config
    kind = {"bloom": "byte-level BPE behind BLOOM's pre-tokenizer", "sentencepiece": "BPE with byte fallback"}
    text = (
        f"{kind[config.tokenizer.kind.value]}, {config.model.vocab_size:,} entries; fingerprint "
        f"`{subject.report['tokenizer_fingerprint'][:16]}`."
    )
    return _section("Tokenizer", text[0].upper() + text[1:], subject.details.tokenizer or "")


def _dataset(subject: Subject) -> str:
    milestone = subject.milestone
    table = tables.datasets(milestone.consumption, subject.details.datasets)
    text = f"Read up to this checkpoint, {short(milestone.tokens)} tokens in all:"
    return _section("Dataset", subject.details.dataset or "", text, table)


def _evaluation(subject: Subject) -> str:
    judged = [
        subject.run.milestones[label]
        for label in subject.listed
        if label in subject.run.milestones and subject.run.milestones[label].results
    ]
    return _section("Evaluation", tables.evaluations(judged)) if judged else ""


def _provenance(subject: Subject) -> str:
    parity, checkpoint = subject.report["parity"], subject.report["checkpoint"]
    proof = (
        "It was not compared with the checkpoint."
        if parity is None
        else f"Compared with the checkpoint in fp32: {str(parity['verdict']).rstrip('.')}."
    )
    text = (
        f"Exported from the checkpoint of step {checkpoint['step']:,} ({checkpoint['consumed_tokens']:,} tokens), "
        f"saved {checkpoint['created']}. {proof} Checksums of all files are in `export_report.json`."
    )
    return _section("Provenance", text)


def _license(subject: Subject) -> str:
    details = subject.details
    name = details.license_name or details.license
    linked = f"[{name}]({details.license_link})" if details.license_link else name
    lines = [
        f"Licence: {linked}." if name else "",
        f"Developed by {details.developed_by}." if details.developed_by else "",
        f"Contact: {details.contact}." if details.contact else "",
    ]
    return _section("Licence and contact", "\n\n".join(filter(None, lines)))


def _sections(subject: Subject) -> str:
    return "\n\n".join(_section(section.title, section.text) for section in subject.details.sections)


def _section(title: str, *parts: str) -> str:
    """A heading and what stands under it; nothing if nothing does."""
    body = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    return f"## {title}\n\n{body}" if body else ""


SECTIONS = {
    "front_matter": _front_matter,
    "title": lambda subject: subject.title,
    "summary": lambda subject: subject.details.summary or "",
    "progress": _progress,
    "overview": _overview,
    "checkpoints": _checkpoints,
    "intended_use": lambda subject: _section("Intended use", subject.details.intended_use or ""),
    "limitations": lambda subject: _section("Limitations", subject.details.limitations or ""),
    "training": _training,
    "hyperparameters": _hyperparameters,
    "tokenizer": _tokenizer,
    "dataset": _dataset,
    "evaluation": _evaluation,
    "sections": _sections,
    "provenance": _provenance,
    "license": _license,
}
"""What a template may ask for."""
