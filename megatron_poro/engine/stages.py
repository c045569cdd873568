"""Our plan as DeepSpeed's pipeline module: which layers a process builds, and what its parameters are called.

DeepSpeed names parameters by list position; ours keep their canonical names because every layer is built by
:func:`megatron_poro.models.init.build_layer`, which notes the name on the parameter. Stage boundaries come from the
plan, so that they are known without DeepSpeed and do not change with its version.
"""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.comm import init_distributed
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from megatron_poro.config.derived import stages_of_pipeline
from megatron_poro.config.run import PipelineSchedule
from megatron_poro.models.init import build_layer
from megatron_poro.models.plan import LayerEntry, LayerPlan
from megatron_poro.parallel.stages import stage_boundaries
from megatron_poro.parallel.topology import Topology

Builder = Callable[[LayerEntry], nn.Module]


class BuiltStages(NamedTuple):
    """What a process has built.

    Attributes:
        module: DeepSpeed's, with the layers of this process.
        parameters: of these layers in the order of the model; a tied weight has the place of its first use. DeepSpeed's
            own list begins with tied weights, the head's before the blocks of its stage.
    """

    module: PipelineModule
    parameters: tuple[nn.Parameter, ...]


class PlannedLayer(LayerSpec):  # type: ignore[misc]
    """A layer that is built on its stage only."""

    def __init__(self, entry: LayerEntry, builder: Builder) -> None:
        super().__init__(entry.module)
        self.entry, self.builder = entry, builder

    def build(self, log: bool = False) -> nn.Module:
        """Makes the layer; called by DeepSpeed, on the owning stage only."""
        return self.builder(self.entry)


class PlannedTiedLayer(TiedLayerSpec):  # type: ignore[misc]
    """A layer whose weight lives on more than one stage, or twice on one."""

    def __init__(self, entry: LayerEntry, builder: Builder) -> None:
        super().__init__(entry.owner, entry.module, forward_fn=entry.forward, tied_weight_attr="weight")
        self.entry, self.builder = entry, builder

    def build(self, log: bool = False) -> nn.Module:
        """Makes the layer; called by DeepSpeed, on the owning stage only."""
        return self.builder(self.entry)


class PlannedModule(PipelineModule):  # type: ignore[misc]
    """The stages of a plan, cut where the plan says."""

    def __init__(self, specs: list[LayerSpec], *, stage_weights: Sequence[float], **options: Any) -> None:
        self.stage_weights = stage_weights
        super().__init__(specs, **options)

    def _partition_layers(self, method: str = "planned") -> None:
        # DualPipeV has doubled num_stages by now: each process holds two of them
        self.parts = list(stage_boundaries(self.stage_weights, self.num_stages))
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def _synchronize_tied_weights(self) -> None:
        # without no_grad the broadcast enters the weight's autograd history, and backward warns on every process
        with torch.no_grad():
            super()._synchronize_tied_weights()


def build_stages(
    plan: LayerPlan,
    *,
    topology: Topology,
    stage_weights: Sequence[float],
    schedule: PipelineSchedule,
    loss: Callable[..., torch.Tensor],
    seed: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> BuiltStages:
    """Builds this process's layers. A collective call.

    Args:
        plan: the whole model.
        topology: the process grid.
        stage_weights: one per layer of the plan, see :func:`megatron_poro.parallel.stages.stage_boundaries`.
        schedule: says how many stages a process has.
        loss: ``loss(logits, targets)``, called on the last stage.
        seed: of the initial weights, ``None`` to leave them empty.
        device: where the weights live.
        dtype: their format.

    Raises:
        TopologyError: if there are fewer layers than stages.
    """
    built: list[nn.Module] = []

    def builder(entry: LayerEntry) -> nn.Module:
        built.append(build_layer(entry, seed=seed, device=device, dtype=dtype))
        return built[-1]

    tied = plan.tied_roles
    specs = [
        PlannedTiedLayer(entry, builder) if entry.owner in tied else PlannedLayer(entry, builder)
        for entry in plan.entries
    ]
    # raised here, before any process group of DeepSpeed's exists
    stage_boundaries(stage_weights, stages_of_pipeline(schedule, topology.pipeline))
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even when there is one process
    # DeepSpeed asks this table whether it may compile a shared-memory kernel for inference on CPUs, and fills it by
    # test compilations in every process. Training needs none of its kernels: an empty table answers no at once.
    deepspeed.ops.__compatible_ops__ = {}
    init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)  # wraps the existing one
    kind: type[PlannedModule] = PlannedModule
    if schedule is PipelineSchedule.DUALPIPEV:
        from megatron_poro.engine.dualpipev import PlannedDualModule  # only newer DeepSpeeds have it

        kind = PlannedDualModule
    with quiet():
        module = kind(
            specs,
            stage_weights=stage_weights,
            topology=PipeModelDataParallelTopology(
                num_pp=topology.pipeline, num_mp=topology.tensor, num_dp=topology.data
            ),
            loss_fn=loss,
        )
    return BuiltStages(module, tuple(parameter for layer in built for parameter in layer.parameters()))


@contextlib.contextmanager
def quiet():  # type: ignore[no-untyped-def]
    """Keeps DeepSpeed's start-up prints off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
