"""One flipped bit in anything that two processes hold alike is found, and the process named where others outvote it."""

import pytest
import torch

from megatron_poro.config.run import PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine.engine import WEIGHT, Copy
from megatron_poro.errors import ReplicaError
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.peers import Peer
from megatron_poro.train.replicas import check_replicas, find_differences
from tests.support.ranks import run_ranks
from tests.support.tiny import make_engine, run_steps, tiny_config

Flip = tuple[int, str, str]
"""Rank, end of the parameter's name, kind of value."""


def _flipped(config: TrainConfig, topology: Topology, flips: list[Flip]) -> list[str | None]:
    """Trains some steps, comparing after each; then, for each flip, what the comparison says of it."""
    engine = make_engine(config, topology)
    world = engine.groups.world
    peers = world.gather(Peer.this_process(world.rank))
    for step in range(3):
        run_steps(engine, config, range(step, step + 1))
        check_replicas(engine, step=step, peers=peers)
    told: list[str | None] = []
    for rank, name, kind in flips:
        mine = [_bits(c) for c in engine.copies() if c.name.endswith(name) and c.kind == kind and world.rank == rank]
        if mine:
            mine[0][-1] ^= 1
        try:
            check_replicas(engine, step=3, peers=peers)
            told.append(None)
        except ReplicaError as error:
            told.append(str(error))
        if mine:
            mine[0][-1] ^= 1
    check_replicas(engine, step=3, peers=peers)
    return told


def _bits(copy: Copy) -> torch.Tensor:
    return copy.flat.view(torch.int16 if copy.flat.dtype == torch.bfloat16 else torch.int32)


def _sentences(precision: Precision, layout: tuple[int, int, int], flips: list[Flip], **options: object) -> list[str]:
    """What all processes say alike of each flip."""
    config, topology = tiny_config(precision=precision, **options), Topology(*layout)  # type: ignore[arg-type]
    everyone = run_ranks(_flipped, config, topology, flips, world=topology.world_size)
    assert all(told == everyone[0] for told in everyone)
    assert all(everyone[0]), "a flipped bit was not seen"
    return list(everyone[0])


@pytest.mark.parametrize("precision", list(Precision))
def test_bit_in_one_of_many_copies_is_found_and_its_process_named(precision: Precision) -> None:
    flips = [
        (3, "blocks.1.mlp.up.weight", WEIGHT),  # half of a matrix: two replicas of two tensor ranks
        (1, "blocks.0.mlp_norm.weight", WEIGHT),  # four copies
        (2, "final_norm.bias", WEIGHT),
    ]
    _, norm, bias = _sentences(precision, (2, 1, 2), flips)
    assert f"{WEIGHT} of blocks.0.mlp_norm.weight on rank 1 (" in norm
    assert "differs from rank 0, 2, 3 (along data and tensor)" in norm
    assert "final_norm.bias on rank 2 (" in bias


@pytest.mark.parametrize("precision", list(Precision))
def test_bit_in_a_replica_is_found(precision: Precision) -> None:
    (told,) = _sentences(precision, (1, 1, 4), [(2, "blocks.2.attention.qkv.weight", WEIGHT)])
    assert "blocks.2.attention.qkv.weight on rank 2 (" in told
    assert "differs from rank 0, 1, 3 (along data)" in told


@pytest.mark.parametrize("kind", ["master", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("precision", list(Precision))
def test_bit_in_what_the_optimizer_keeps_of_a_norm_is_found(precision: Precision, kind: str) -> None:
    (told,) = _sentences(precision, (2, 1, 1), [(1, "attention_norm.weight", kind)])
    assert f"{kind} of blocks.0.attention_norm.weight on rank 0 " in told
    assert "differ from each other (along tensor)" in told


@pytest.mark.parametrize("precision", list(Precision))
def test_bit_in_either_end_of_the_tied_embedding_is_found(precision: Precision) -> None:
    for rank in (0, 3):
        (told,) = _sentences(precision, (1, 4, 1), [(rank, "embedding.weight", WEIGHT)])
        assert f"{WEIGHT} of embedding.weight on rank" in told
        assert "(along pipeline)" in told
        if precision is Precision.BF16:  # the masters beside it say which of the two is wrong
            assert f"on rank {rank} (" in told
            assert f"differs from rank {3 - rank} " in told


@pytest.mark.parametrize("kind", ["master", "exp_avg", "exp_avg_sq"])
def test_bit_in_what_a_replica_keeps_of_the_tied_embedding_is_found(kind: str) -> None:
    """Both ends of the tie are cut alike over the replicas, so each replica's two ends keep the same part."""
    (told,) = _sentences(Precision.BF16, (1, 2, 2), [(3, "embedding.weight", kind)])
    assert f"{kind} of embedding.weight on rank 1 " in told
    assert "differ from each other (along pipeline)" in told


def test_no_difference_is_seen_where_the_tie_lies_in_one_process() -> None:
    config = {"pipeline_schedule": PipelineSchedule.DUALPIPEV}
    (told,) = _sentences(Precision.BF16, (1, 2, 2), [(1, "blocks.0.mlp.down.weight", WEIGHT)], **config)
    assert "blocks.0.mlp.down.weight" in told


def test_minority_is_odd_and_without_one_all_are() -> None:
    key = ("final_norm.weight", "master", (0, 0))
    (found,) = find_differences([{key: 5}, {key: 5}, {}, {key: 6}], [()] * 4)
    assert (found.odd, found.others) == ((3,), (0, 1))
    (found,) = find_differences([{key: 5}, {key: 6}], [()] * 2)
    assert (found.odd, found.others) == ((0, 1), ())
    weight = ("final_norm.weight", WEIGHT, (0, 0))
    (found,) = find_differences([{weight: 5}, {weight: 6}], [{"final_norm.weight"}, ()])
    assert (found.odd, found.others) == ((0,), (1,))
