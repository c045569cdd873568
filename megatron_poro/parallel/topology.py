"""The process grid: which (pipeline, data, tensor) coordinate each rank has. Pure arithmetic, no torch.

The rank of a coordinate is ``pipeline * data_size * tensor_size + data * tensor_size + tensor``: tensor neighbours are
consecutive ranks (on LUMI the two GCDs of one MI250X), a node holds replicas of one stage, and a pipeline neighbour is
``data_size * tensor_size`` ranks away.

Source: DeepSpeed ``PipeModelDataParallelTopology`` (axes pipe, data, model), which orders ranks the same way.
"""

from dataclasses import dataclass

from megatron_poro.errors import TopologyError


@dataclass(frozen=True)
class Coordinate:
    """Where one rank stands on each axis of the grid."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Topology:
    """Sizes of the three axes of the process grid.

    Raises:
        TopologyError: if a size is not positive.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for axis in ("tensor", "pipeline", "data"):
            if getattr(self, axis) < 1:
                raise TopologyError(f"parallel.{axis}={getattr(self, axis)} must be at least 1.")

    @property
    def world_size(self) -> int:
        """Number of processes in the grid."""
        return self.tensor * self.pipeline * self.data

    def coordinate(self, rank: int) -> Coordinate:
        """The coordinate of a global rank.

        Raises:
            TopologyError: if the rank is outside the grid.
        """
        if not 0 <= rank < self.world_size:
            raise TopologyError(f"rank {rank} is outside a grid of {self.world_size} processes ({self}).")
        stage, within = divmod(rank, self.data * self.tensor)
        data, tensor = divmod(within, self.tensor)
        return Coordinate(pipeline=stage, data=data, tensor=tensor)

    def rank(self, pipeline: int, data: int, tensor: int) -> int:
        """The global rank at a coordinate."""
        return (pipeline * self.data + data) * self.tensor + tensor

    def tensor_ranks(self, at: Coordinate) -> list[int]:
        """Ranks that hold the other shards of the same layers for the same samples."""
        return [self.rank(at.pipeline, at.data, t) for t in range(self.tensor)]

    def pipeline_ranks(self, at: Coordinate) -> list[int]:
        """Ranks of the pipeline that this coordinate belongs to, first stage first."""
        return [self.rank(p, at.data, at.tensor) for p in range(self.pipeline)]

    def data_ranks(self, at: Coordinate) -> list[int]:
        """Ranks that hold the same parameters and see other samples."""
        return [self.rank(at.pipeline, d, at.tensor) for d in range(self.data)]

    def replica_ranks(self, at: Coordinate) -> list[int]:
        """Ranks of one whole model replica (every stage and tensor rank of one data coordinate)."""
        return [self.rank(p, at.data, t) for p in range(self.pipeline) for t in range(self.tensor)]

    def __str__(self) -> str:
        return f"tensor={self.tensor} pipeline={self.pipeline} data={self.data}"
