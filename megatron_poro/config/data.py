"""Where the tokens come from."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass(kw_only=True)
class SourceConfig:
    """One corpus of a mixture."""

    name: str = MISSING
    """Short name, used in metrics (data/<name>/loss)."""

    path: str = MISSING
    """Prefix of an indexed dataset: <path>.bin and <path>.idx must exist."""

    weight: float = MISSING
    """Share of the samples; the weights of a mixture are normalised to sum 1."""

    start: float = 0.0
    """Where in the dataset the source begins, as a fraction of its documents."""

    end: float = 1.0
    """Where it ends, as a fraction of the documents; 0 and 1 are the whole dataset. Two sources may share a dataset."""

    published_tokens: int | None = field(default=None, metadata={"count": True})
    """Tokens that the publication of a run says were read from this corpus; `poro data plan` compares its own number.
    null where nothing is published."""

    remark: str | None = None
    """What `poro data plan` says below its table, such as what is wrong with a published number."""


@dataclass(kw_only=True)
class DataConfig:
    """Training and validation mixtures."""

    folder: str = "."
    """Folder of the indexed datasets; a mixture names its paths below it, so that moving the data is one override."""

    sequence_length: int = MISSING
    """Tokens the model sees per sample; a sample holds one more, for the last label."""

    train: list[SourceConfig] = field(default_factory=list)
    """Training mixture. The order decides ties of the greedy blend, so it is part of the run."""

    validation: list[SourceConfig] = field(default_factory=list)
    """Validation mixture; empty switches validation off."""

    index_cache: str = MISSING
    """Folder for the document, sample and shuffle indices; built once, then memory-mapped."""

    max_epochs: float | None = None
    """Times that a training source may be read at most; a run that would read one more often does not start. null sets
    no limit."""

    shuffle_seed: int = 42
    """Seed of the document and sample shuffles."""
