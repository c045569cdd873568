"""A step of one rank of a grid of any size, by the run's own engine, on one machine and in hardly any memory.

Three things are not real. *Tensors* are fake: they have shape, format and storage, and no numbers
(``torch._subclasses.fake_tensor``). *The other processes* are not there: torch's backend ``fake`` says at once that a
collective is done, and leaves the values as they are. *Numbers* that the code reads from a tensor and that nobody knows
are 1: the loss, the gradient norm. Layers, stages, DeepSpeed's engine and its schedule, autograd, the optimizer and
every call that sends something are those of a run.

Fake tensors rather than the device ``meta``, because they say ``cpu`` where they are asked and so take the kernels of a
run: on ``meta`` attention falls back to the one that writes out the scores.

Source: PyTorch ``torch/distributed/_tools/mem_tracker.py`` counts live storages in the same way.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_poro.config.derived import batch_plan
from megatron_poro.config.run import AttentionBackend, EngineKind, TrainConfig
from megatron_poro.data.batch import Batch
from megatron_poro.engine.build import build_engine
from megatron_poro.errors import ConfigError, EngineError
from megatron_poro.models import attention
from megatron_poro.models.init import weight_dtype
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Coordinate, Topology
from megatron_poro.simulation.live_bytes import LiveBytes
from megatron_poro.simulation.recording import Collective, Recording
from megatron_poro.train.next_token import NextToken

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SimulatedRank:
    """What one rank was seen to do.

    Attributes:
        rank: its number.
        topology: the grid.
        layers: roles of the layers that it computes, in the order of the model.
        num_parameters: numbers among its parameters.
        building: collectives of the engine's construction.
        step: collectives of one step, in order.
        peak_bytes: most bytes of tensors alive at a time during the step.
        parts: what they were: ``weights``, ``gradients``, ``optimizer``, ``head``, ``activations``.
        taken: whether the optimizer took the step.
    """

    rank: int
    topology: Topology
    layers: list[str]
    num_parameters: int
    building: list[Collective]
    step: list[Collective]
    peak_bytes: int
    parts: dict[str, int]
    taken: bool

    @property
    def coordinate(self) -> Coordinate:
        """Its place in the grid."""
        return self.topology.coordinate(self.rank)

    def axis(self, one: Collective) -> str:
        """Which processes a collective of this rank is among: the axis of the grid, the tie, one replica or all.

        Where the same processes are two things, as both ends of a pipeline of two are its whole, it is the first of
        ``tensor``, ``data``, ``tie``, ``pipeline``, ``replica``.
        """
        if one.kind in ("send", "recv"):
            return "pipeline"
        grid, here = self.topology, self.coordinate
        pipeline = grid.pipeline_ranks(here)
        groups = {
            "tensor": grid.tensor_ranks(here),
            "data": grid.data_ranks(here),
            "tie": [pipeline[0], pipeline[-1]] if one.kind == "allreduce" else [],
            "pipeline": pipeline,
            "replica": grid.replica_ranks(here),
        }
        members = sorted(one.ranks)
        return next((axis for axis, ranks in groups.items() if sorted(ranks) == members), "world")


def simulate_rank(config: TrainConfig, *, rank: int, world_size: int, backend: AttentionBackend) -> SimulatedRank:
    """Builds the engine of one rank and takes a step. Needs a process without a process group, and leaves none.

    Args:
        config: what ``config.validate`` accepts for this number of processes.
        rank: which process.
        world_size: how many there would be.
        backend: the attention kernel, not ``auto``.

    Raises:
        ConfigError: for a rank outside the grid, an engine that has no grid, or exact sums.
        EngineError: where stages would not fit together.
    """
    require_simulable(config, rank=rank, world_size=world_size)
    # what a compiler makes of a block is not seen: the blocks run as they are written
    config = replace(config, engine=replace(config.engine, attention=backend, compile=False))
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict("os.environ"))  # where DeepSpeed notes which process it is
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of names that DeepSpeed uses and torch has better ones for
            for context in (_empty_caches(), _assigned_conversions(), FakeTensorMode(), _UnknownIsOne()):  # type: ignore[no-untyped-call]
                stack.enter_context(context)
            return observe_rank(config, assume_neighbours=True)
    finally:
        dist.destroy_process_group()


def require_simulable(config: TrainConfig, *, rank: int, world_size: int) -> None:
    """Refuses what cannot be simulated.

    Raises:
        ConfigError: for a rank outside the grid, an engine that has no grid, or exact sums.
    """
    if config.engine.kind is EngineKind.LOCAL:
        raise ConfigError(
            "engine.kind=local is one process and has no rank to simulate. Use engine.kind=deepspeed, or leave "
            "--simulate-rank out."
        )
    if config.engine.reproducible:
        raise ConfigError(
            "engine.reproducible=true cannot be simulated: its exact sums are laid out by numbers that all processes "
            "exchange, and here is one. Use engine.reproducible=false with --simulate-rank."
        )
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"--simulate-rank {rank} is outside the grid of {world_size} processes. Use 0 to {world_size - 1}."
        )


def observe_rank(config: TrainConfig, *, assume_neighbours: bool = False) -> SimulatedRank:
    """Builds this process's engine, takes one step and watches both; in a dry run as in a run of real processes.

    Collective, in the default process group.

    Args:
        config: the run.
        assume_neighbours: tells the engine what its neighbours would, where there are none.

    Raises:
        EngineError: if a stage sends activations or gradients of another shape than its neighbours expect.
    """
    batch, parallel, model = batch_plan(config, dist.get_world_size()), config.parallel, config.model
    topology = Topology(tensor=parallel.tensor, pipeline=parallel.pipeline, data=batch.data_size)
    samples, length = batch.microbatch_samples, config.data.sequence_length
    between = (samples, length // (parallel.tensor if parallel.sequence else 1), model.hidden_size)
    microbatches = [_microbatch(samples, length) for _ in range(batch.microbatches)]  # on the host, so not counted

    def part_of(tensor: Tensor) -> str:
        is_head = tensor.dim() > 1 and tensor.shape[-1] == model.vocab_size // parallel.tensor
        return "head" if is_head else "activations"

    with Recording() as recording, LiveBytes(part_of) as live:
        groups = ParallelGroups.create(topology)
        engine = build_engine(config, groups=groups, objective=NextToken, num_sources=1, device=_CPU)
        # DeepSpeed takes seconds to load, and build_engine has told it by now that there is no GPU
        from megatron_poro.engine.dry_run import assume_received, held_for_good, layer_roles

        if assume_neighbours:
            assume_received(engine, between, weight_dtype(config.engine.precision))
        weights = []
        for part, tensor in held_for_good(engine):
            live.relabel(tensor, part)
            if part == "weights":
                weights.append(tensor)
        building = recording.take()
        live.restart()
        result = engine.train_step(
            microbatches if engine.needs_data else [], learning_rate=config.schedule.learning_rate, consumed_samples=0
        )
    found = SimulatedRank(
        rank=groups.world.rank,
        topology=topology,
        layers=layer_roles(engine),
        num_parameters=sum(weight.numel() for weight in weights),
        building=building,
        step=recording.take(),
        peak_bytes=live.peak,
        parts=dict(live.at_peak),
        taken=result.taken,
    )
    _require_shapes(found, between)
    return found


def _require_shapes(found: SimulatedRank, expected: tuple[int, ...]) -> None:
    """What stages send is what their neighbours expect; vectors are messages about shapes and lengths."""
    for one in found.step:
        if one.kind in ("send", "recv") and len(one.shape) > 1 and one.shape != expected:
            raise EngineError(
                f"rank {found.rank} has a {one.kind} of shape {list(one.shape)} with rank "
                f"{next(rank for rank in one.ranks if rank != found.rank)}, which expects {list(expected)}: microbatch "
                "samples, tokens, hidden size. Correct the layer at the end of the stage."
            )


def _microbatch(samples: int, length: int) -> Batch:
    """A microbatch whose tokens all count."""
    tokens = torch.zeros(samples, length, dtype=torch.int64)
    return Batch(tokens, tokens.clone(), torch.ones(samples, length), torch.zeros(samples, dtype=torch.int64))


class _UnknownIsOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers that the code reads from a tensor and that nobody knows are 1, so that a step is finite and taken."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            assert func is torch.ops.aten._local_scalar_dense.default, f"{func} needs numbers, a dry run has none"
            return 1.0 if args[0].is_floating_point() else 1


@contextlib.contextmanager
def _assigned_conversions() -> Iterator[None]:
    """Lets ``Module.to`` assign converted parameters.

    For fake tensors torch swaps the objects instead, and refuses to where somebody has a weak reference; the fake mode
    itself has one.
    """

    def convert(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children():
            child._apply(change)  # type: ignore[no-untyped-call]
        for parameter in module.parameters(recurse=False):
            parameter.data = change(parameter.data)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, change(buffer))
        return module

    with mock.patch.object(nn.Module, "_apply", convert):
        yield


@contextlib.contextmanager
def _empty_caches() -> Iterator[None]:
    """Makes tensors anew that a process makes once: no fake ones stay behind, and no real ones are met."""
    future = functools.lru_cache(attention._future.__wrapped__)
    with mock.patch.object(attention, "_future", future):
        yield
