"""The pretraining objective against torch's own cross entropy."""

import torch
from torch.nn import functional as F

from megatron_poro.data.batch import Batch
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.train.next_token import NextToken


def _batch(*, mask: list[list[float]]) -> Batch:
    generator = torch.Generator().manual_seed(3)
    loss_mask = torch.tensor(mask)
    ids = torch.randint(0, 11, (2, *loss_mask.shape), generator=generator)
    return Batch(tokens=ids[0], labels=ids[1], loss_mask=loss_mask, sources=torch.tensor([1, 0]))


def test_loss_is_the_sum_of_cross_entropies_where_the_mask_is_set() -> None:
    batch = _batch(mask=[[1, 1, 0, 1], [0, 1, 1, 0]])
    objective = NextToken(AxisGroup.single())
    tokens, targets = objective.split(batch)
    logits = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(4), requires_grad=True)
    parts = objective.loss(logits, targets)
    plain = F.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none") * batch.loss_mask
    torch.testing.assert_close(parts.loss_sum, plain.sum())
    torch.testing.assert_close(parts.sample_loss_sums, plain.sum(dim=1).detach())
    assert parts.loss_sum.requires_grad
    assert not parts.sample_loss_sums.requires_grad
    assert torch.equal(tokens, batch.tokens)
    assert torch.equal(targets.sources, batch.sources)


def test_weight_is_the_number_of_loss_tokens() -> None:
    objective = NextToken(AxisGroup.single())
    _, targets = objective.split(_batch(mask=[[1, 1, 0, 1], [0, 1, 1, 0]]))
    assert objective.weight(targets).item() == 5.0


def test_masked_positions_have_no_gradient() -> None:
    objective = NextToken(AxisGroup.single())
    _, targets = objective.split(_batch(mask=[[1, 0, 0, 1], [0, 0, 1, 0]]))
    logits = torch.randn(2, 4, 11, requires_grad=True)
    objective.loss(logits, targets).loss_sum.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, targets.loss_mask > 0)
