"""A plan run whole in one process: the control of every proof, the model of evaluation, generation and export."""

import torch
from torch import Tensor, nn

from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import AttentionBackend, Recompute
from megatron_poro.models.bloom import BlockOptions
from megatron_poro.models.families import family
from megatron_poro.models.init import build_layer
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.groups import AxisGroup


class CausalLM(nn.Module):
    """All layers of a plan; ``named_parameters()`` gives the canonical names.

    Args:
        plan: the layers; tensor-parallel plans work too, inside their group.
        seed: of the initial weights; ``None`` leaves them empty.
        device: where the weights live (``meta`` for counting).
        dtype: their format.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        seed: int | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.plan = plan
        for entry in plan.entries:
            if entry.tied_to is None:
                self._attach(entry.role, build_layer(entry, seed=seed, device=device, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 ``[b, s]`` -> logits ``[b, s, v/tp]``."""
        hidden = tokens
        for entry in self.plan.entries:
            layer = self.get_submodule(entry.owner)
            hidden = layer(hidden) if entry.forward is None else entry.forward(layer, hidden)
        return hidden

    def _attach(self, role: str, layer: nn.Module) -> None:
        """Registers a layer under a dotted role, so that its parameters' names start with it."""
        *path, name = role.split(".")
        parent: nn.Module = self
        for step in path:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(name, layer)


def whole_model(
    model: BloomConfig,
    *,
    seed: int | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: AttentionBackend = AttentionBackend.EAGER,
    recompute: Recompute = Recompute.NONE,
) -> CausalLM:
    """A model in one process without any process group, by default with the reference attention."""
    options = BlockOptions(backend=backend, recompute=recompute)
    plan = family(model.family).plan(model, group=AxisGroup.single(), options=options)
    return CausalLM(plan, seed=seed, device=device, dtype=dtype)
