"""Flipped bits in whatever two processes hold alike: weights, masters and moments, at any layout."""

import random
from pathlib import Path
from typing import NamedTuple

import torch

from megatron_poro.config.run import PipelineSchedule, Precision, TrainConfig
from megatron_poro.engine.engine import Copy, CopyAxis, Engine
from megatron_poro.errors import ReplicaError
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.peers import Peer
from megatron_poro.train.replicas import check_replicas
from tests.faults.tally import Budget, Tally
from tests.support.ranks import run_ranks
from tests.support.tiny import make_engine, run_steps, tiny_config

CLAIM = (
    "One flipped bit in a value that another process holds too is found by the next comparison, on all processes "
    "alike, and its parameter and process are among those named; nothing is found where no bit was flipped"
)
FLIPS = 50
STEPS = 10
LAYOUTS = (Topology(2, 1, 2), Topology(1, 2, 2), Topology(2, 2, 1), Topology(1, 1, 4))


class Flip(NamedTuple):
    """What was flipped, and what the comparison said."""

    name: str
    rank: int
    told: str | None


def campaign(budget: Budget, rng: random.Random, folder: Path) -> Tally:
    """A trial is one training of some steps, compared after each, and then so many flips. Its kind is the layout."""
    flips = 0

    def trial(number: int) -> str:
        nonlocal flips
        precision, topology = rng.choice(list(Precision)), rng.choice(LAYOUTS)
        dual = topology.pipeline == 2 and rng.random() < 0.3
        schedule = PipelineSchedule.DUALPIPEV if dual else PipelineSchedule.ONE_F_ONE_B
        config = tiny_config(precision=precision, pipeline_schedule=schedule)
        everyone = run_ranks(train_and_flip, config, topology, rng.randrange(2**32), world=topology.world_size)
        for told in zip(*everyone, strict=True):
            assert len({flip.told for flip in told}) == 1, f"processes disagree: {told}"
            flip = told[0]
            assert flip.told is not None, f"a flipped bit of {flip.name} on rank {flip.rank} was not seen"
            assert flip.name in flip.told, flip
            assert f"rank {flip.rank} (" in flip.told, flip
            flips += 1
        return f"{precision.value}, {schedule.value}, {topology}"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["flips"] = flips
    tally.facts["comparisons of equal copies"] = tally.trials * STEPS
    return tally


def train_and_flip(config: TrainConfig, topology: Topology, seed: int) -> list[Flip]:
    """One process: trains, comparing after each step, then flips bits one by one, here or elsewhere."""
    engine = make_engine(config, topology)
    world, rng = engine.groups.world, random.Random(seed)
    peers = world.gather(Peer.this_process(world.rank))
    for step in range(STEPS):
        run_steps(engine, config, range(step, step + 1))
        check_replicas(engine, step=step, peers=peers)
    flips = []
    for _ in range(FLIPS):
        victim, draw = rng.randrange(world.size), rng.random()
        here = [copy for copy in engine.copies() if has_copies(copy, engine)]
        copy = here[int(draw * len(here))]
        name = world.gather(copy.name)[victim]
        place, bit = rng.random(), rng.random()
        if world.rank == victim:
            flip(copy, place, bit)
        flips.append(Flip(name, victim, compared(engine, peers)))
        if world.rank == victim:
            flip(copy, place, bit)
    assert compared(engine, peers) is None
    return flips


def has_copies(copy: Copy, engine: Engine) -> bool:
    """Whether another process of this grid holds the same."""
    groups = engine.groups
    sizes = {CopyAxis.TENSOR: groups.tensor.size, CopyAxis.DATA: groups.data.size}
    # with DualPipeV both ends of the tie lie in the first process, which the copy alone does not say
    return any(sizes.get(axis, 1) > 1 for axis in copy.axes)


def flip(copy: Copy, place: float, bit: float) -> None:
    """Flips one bit, given as shares of the elements and of the bits of one."""
    bits = copy.flat.view(torch.int16 if copy.flat.dtype == torch.bfloat16 else torch.int32)
    width = copy.flat.element_size() * 8
    chosen = int(bit * width)
    bits[int(place * bits.numel())] ^= (1 << chosen) if chosen < width - 1 else -(1 << chosen)


def compared(engine: Engine, peers: list[Peer]) -> str | None:
    """What the comparison says."""
    try:
        check_replicas(engine, step=STEPS, peers=peers)
    except ReplicaError as error:
        return str(error)
    return None
