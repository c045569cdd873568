"""The pretraining objective: predict the next token."""

from torch import Tensor

from megatron_poro.data.batch import Batch
from megatron_poro.engine.objective import LossParts, Targets
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.vocab import vocab_parallel_cross_entropy


class NextToken:
    """Cross entropy of each next token, summed over the tokens that count.

    A microbatch weighs as many loss tokens as its mask holds, so the step's loss is a true mean over the tokens of
    the global batch, whatever the lengths and masks of its samples.

    Args:
        group: tensor group over which the logits' vocabulary is cut.
        compiles: whether the loss is compiled, as ``engine.compile`` has it.
    """

    def __init__(self, group: AxisGroup, compiles: bool = False) -> None:
        self._group, self._compiles = group, compiles

    def split(self, batch: Batch) -> tuple[Tensor, Targets]:
        """Tokens ``[b, s]`` for the model; labels, mask and sources for the loss."""
        return batch.tokens, Targets(batch.labels, batch.loss_mask, batch.sources)

    def weight(self, targets: Targets) -> Tensor:
        """Number of loss tokens, scalar fp32."""
        return targets.loss_mask.sum()

    def loss(self, logits: Tensor, targets: Targets) -> LossParts:
        """Sum of the masked cross entropies of logits ``[b, s, v/tp]``; called by every rank of the tensor group."""
        losses = vocab_parallel_cross_entropy(logits, targets.labels, self._group, compiles=self._compiles)
        losses = losses * targets.loss_mask  # [b, s]
        per_sample = losses.sum(dim=-1)  # [b]
        return LossParts(loss_sum=per_sample.sum(), sample_loss_sums=per_sample.detach())
