"""AdamW and who decays: everything but norms and biases, that is every tensor with more than one dimension."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megatron_poro.config.run import OptimizerConfig

_IS_DECAYED = "is_decayed"
"""Key of a group: says which of the two it is also where weight decay is 0."""


def parameter_groups(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups, decayed and not decayed, in the order of the parameters.

    Decided by the shape of the full tensor, not of the shard; the embedding is decayed. Empty groups are left out.
    """
    listed = list(parameters)
    return groups_of(
        decayed=[parameter for parameter in listed if decays(parameter)],
        kept=[parameter for parameter in listed if not decays(parameter)],
        config=config,
    )


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies."""
    return parameter.dim() > 1


def groups_of(*, decayed: Sequence[Tensor], kept: Sequence[Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The groups of tensors that decay and that do not, where there are any."""
    groups = [
        {"params": list(decayed), "weight_decay": config.weight_decay, _IS_DECAYED: True},
        {"params": list(kept), "weight_decay": 0.0, _IS_DECAYED: False},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: list[dict[str, Any]], config: OptimizerConfig, *, reproducible: bool = False) -> torch.optim.AdamW:
    """AdamW; the learning rate is set before each step.

    Args:
        groups: from :func:`groups_of`.
        config: its settings.
        reproducible: whether an element's new value must not depend on where the tensors are cut. The fused kernel on
            CPUs rounds the last elements of a tensor, which fill no vector, differently from the others.
    """
    kernel = {"foreach": True} if reproducible else {"fused": True}
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, **kernel)


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes the moments of every tensor the optimizer updates, so that they can be saved and loaded before step 1."""
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            state = optimizer.state[tensor]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
                state["exp_avg"] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(tensor, memory_format=torch.preserve_format)


def decayed_tensors(optimizer: torch.optim.Optimizer) -> set[int]:
    """Identities (``id``) of the tensors in the decayed group: what the optimizer does, not what was asked of it."""
    return {id(tensor) for group in optimizer.param_groups if group[_IS_DECAYED] for tensor in group["params"]}


def set_step_count(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets the number of steps that bias correction counts."""
    for state in optimizer.state.values():
        state["step"].fill_(float(step))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def moments(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of a tensor the optimizer updates."""
    state = optimizer.state[tensor]
    return state["exp_avg"], state["exp_avg_sq"]
