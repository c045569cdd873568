"""Process groups of the grid as values: what a layer needs of its group travels in an argument, never in a global."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.distributed as dist

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.step_clock import Part, StepClock
from megatron_poro.parallel.topology import Coordinate, Topology


@dataclass(frozen=True)
class AxisGroup:
    """The processes along one axis that this process belongs to.

    ``process_group`` is ``None`` exactly when ``size`` is 1: nothing is to be communicated, so no distributed
    runtime is needed to build or run a layer. ``clock`` counts the time of its collectives to ``part``.
    """

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None
    part: Part = Part.OTHER
    clock: StepClock = field(default_factory=StepClock, compare=False, repr=False)

    @classmethod
    def single(cls) -> "AxisGroup":
        """A group of this process alone."""
        return cls()


@dataclass(frozen=True)
class ParallelGroups:
    """The grid, this process's place in it, and its group along each axis.

    Attributes:
        tensor: processes that share this stage's layers for the same samples.
        pipeline: the stages of this replica, first stage first.
        data: replicas of this process's parameters.
        replica: every process of one model replica (all stages, all tensor ranks).
        world: every process of the grid; what they tell each other of flags and failures goes through it.
        clock: measures this process's steps; the groups count to it.
    """

    topology: Topology = field(default_factory=Topology)
    coordinate: Coordinate = field(default_factory=lambda: Coordinate(0, 0, 0))
    tensor: AxisGroup = field(default_factory=AxisGroup)
    pipeline: AxisGroup = field(default_factory=AxisGroup)
    data: AxisGroup = field(default_factory=AxisGroup)
    replica: AxisGroup = field(default_factory=AxisGroup)
    world: World = field(default_factory=World)
    clock: StepClock = field(default_factory=StepClock, compare=False, repr=False)

    @classmethod
    def single(cls) -> "ParallelGroups":
        """The grid of one process; needs no distributed runtime."""
        return cls()

    @classmethod
    def create(cls, topology: Topology, *, world: World | None = None) -> "ParallelGroups":
        """Makes every group of the grid. A collective call: every process of the default group must make it.

        Args:
            topology: sizes of the grid.
            world: the processes of the default group, where flags and failures travel over another group than tensors.

        Raises:
            TopologyError: if the number of processes is not the grid's.
        """
        world = World.default() if world is None else world
        if world.size != topology.world_size:
            raise TopologyError(
                f"the grid {topology} needs {topology.world_size} processes, {world.size} are running. "
                f"Start {topology.world_size} (torchrun --nproc-per-node {topology.world_size}) or change parallel.*."
            )
        here, clock = topology.coordinate(world.rank), StepClock()
        return cls(
            topology=topology,
            coordinate=here,
            tensor=_axis_group(topology, topology.tensor_ranks, here.tensor, Part.TENSOR, clock),
            pipeline=_axis_group(topology, topology.pipeline_ranks, here.pipeline, Part.PIPELINE, clock),
            data=_axis_group(topology, topology.data_ranks, here.data, Part.DATA, clock),
            replica=_axis_group(
                topology,
                topology.replica_ranks,
                here.pipeline * topology.tensor + here.tensor,
                Part.AGREEMENT,
                clock,
            ),
            world=world,
            clock=clock,
        )

    @property
    def is_first_stage(self) -> bool:
        """Whether this process holds the embedding."""
        return self.pipeline.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the end of the pipeline."""
        return self.pipeline.rank == self.pipeline.size - 1


def _axis_group(
    topology: Topology, ranks_at: Callable[[Coordinate], list[int]], rank: int, part: Part, clock: StepClock
) -> AxisGroup:
    """Creates all groups of one axis, in the same order on every process, and returns the one we are in."""
    mine = None
    size = 1
    seen: set[tuple[int, ...]] = set()
    for candidate in range(topology.world_size):
        ranks = tuple(ranks_at(topology.coordinate(candidate)))
        if ranks in seen or len(ranks) == 1:
            continue
        seen.add(ranks)
        group = dist.new_group(list(ranks))
        if dist.get_rank() in ranks:
            mine, size = group, len(ranks)
    return AxisGroup(rank=rank, size=size, process_group=mine, part=part, clock=clock)
