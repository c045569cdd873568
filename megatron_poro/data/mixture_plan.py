"""What a mixture will read of each source, worked out from the weights and the lengths of the corpora alone.

Nothing is built and no token is read: a plan of a trillion tokens takes as long as opening six files, and where there
are no files yet it says what they must hold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_poro.config.data import SourceConfig
from megatron_poro.data.blending import normalised
from megatron_poro.data.indexed import IndexedDataset, open_index
from megatron_poro.data.indexed_format import bin_path, idx_path
from megatron_poro.data.samples import document_range, require_tokens
from megatron_poro.errors import ConfigError


class SourcePlan(NamedTuple):
    """What a run reads of one source.

    Attributes:
        name: of the source.
        weight: its share of the samples; those of a mixture sum to 1.
        samples: samples that come from it, to within what ``blending`` says of any prefix.
        tokens_read: tokens of those samples.
        tokens_available: tokens in its part of the dataset; None where there is no index.
        remark: why ``tokens_available`` is None, or that only the index is there; empty otherwise.
    """

    name: str
    weight: float
    samples: int
    tokens_read: int
    tokens_available: int | None
    remark: str

    @property
    def epochs(self) -> float | None:
        """Times that part is read; None where its length is not known."""
        return None if self.tokens_available is None else self.tokens_read / self.tokens_available


def plan_mixture(sources: Sequence[SourceConfig], *, num_samples: int, sequence_length: int) -> tuple[SourcePlan, ...]:
    """The plan of every source, in order.

    Args:
        sources: of the mixture; a missing dataset is no error, a damaged one is.
        num_samples: samples of the whole run.
        sequence_length: tokens the model sees per sample.

    Raises:
        ConfigError: if there are no sources or a weight is not a positive number.
        DataError: if a dataset is damaged or holds no tokens.
    """
    weights = normalised([source.weight for source in sources])
    plans = []
    for source, weight in zip(sources, weights.tolist(), strict=True):
        available, remark = _available(source)
        samples = round(weight * num_samples)
        plans.append(SourcePlan(source.name, weight, samples, samples * sequence_length, available, remark))
    return tuple(plans)


def require_epochs(plans: Sequence[SourcePlan], max_epochs: float | None) -> None:
    """Refuses a plan that reads a source more often than ``max_epochs``; None allows anything.

    Raises:
        ConfigError: names every such source, its epochs, and what would help.
    """
    if max_epochs is None:
        return
    beyond = [(plan, plan.epochs) for plan in plans if plan.epochs is not None and plan.epochs > max_epochs]
    if beyond:
        named = "; ".join(
            f"{plan.name} would be read {epochs:.2f} times ({plan.tokens_read:,} of {plan.tokens_available:,} tokens)"
            for plan, epochs in beyond
        )
        raise ConfigError(
            f"data.max_epochs={max_epochs:g}, but {named}. Add text, lower the weight, train for fewer tokens, or "
            "raise data.max_epochs."
        )


def _available(source: SourceConfig) -> tuple[int | None, str]:
    """Tokens of a source, and what is missing of its dataset."""
    prefix = Path(source.path)
    if not idx_path(prefix).exists():
        return None, f"{idx_path(prefix)} does not exist"
    has_tokens = bin_path(prefix).exists()
    index = IndexedDataset(prefix) if has_tokens else open_index(prefix)
    documents = document_range(len(index.sizes), start=source.start, end=source.end)
    is_whole = len(documents) == len(index.sizes)
    part = index.sizes[documents.start : documents.stop]
    tokens = index.num_tokens if is_whole else int(part.sum(dtype=np.int64))
    require_tokens(prefix, tokens, is_whole=is_whole)
    return tokens, "" if has_tokens else f"{bin_path(prefix)} does not exist; its .idx does"
