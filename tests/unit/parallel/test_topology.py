"""The rank map of the original run: 1,024 GCDs as TP=2, PP=4, DP=128."""

import itertools

import pytest

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.topology import Coordinate, Topology

PORO = Topology(tensor=2, pipeline=4, data=128)


@pytest.mark.parametrize(
    ("rank", "pipeline", "data", "tensor"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 1, 0), (256, 1, 0, 0), (768, 3, 0, 0), (1023, 3, 127, 1)],
)
def test_poro_rank_map(rank: int, pipeline: int, data: int, tensor: int) -> None:
    assert PORO.coordinate(rank) == Coordinate(pipeline, data, tensor)
    assert PORO.rank(pipeline, data, tensor) == rank


def test_a_node_of_8_holds_4_replicas_of_one_stage() -> None:
    node = [PORO.coordinate(rank) for rank in range(8)]
    assert {at.pipeline for at in node} == {0}
    assert [at.data for at in node] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_groups_of_a_rank() -> None:
    at = PORO.coordinate(259)
    assert PORO.tensor_ranks(at) == [258, 259]
    assert PORO.pipeline_ranks(at) == [3, 259, 515, 771]
    assert PORO.data_ranks(at)[:3] == [257, 259, 261]
    assert PORO.replica_ranks(at) == [2, 3, 258, 259, 514, 515, 770, 771]


def test_coordinates_and_ranks_are_inverse_on_every_grid() -> None:
    for tensor, pipeline, data in itertools.product((1, 2, 3), repeat=3):
        grid = Topology(tensor, pipeline, data)
        for rank in range(grid.world_size):
            at = grid.coordinate(rank)
            assert grid.rank(at.pipeline, at.data, at.tensor) == rank


def test_sizes_and_ranks_outside_the_grid_are_refused() -> None:
    with pytest.raises(TopologyError, match=r"parallel.pipeline=0 must be at least 1"):
        Topology(pipeline=0)
    with pytest.raises(TopologyError, match="rank 8 is outside a grid of 8 processes"):
        Topology(2, 2, 2).coordinate(8)
