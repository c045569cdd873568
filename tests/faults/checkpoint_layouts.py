"""Any layout to any layout: trained grids saved at every layout, and loaded at every layout, bit for bit."""

import random
from dataclasses import replace
from pathlib import Path

import torch

from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.fragment import tensor_key
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.resuming import resume
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.identity import identity
from megatron_poro.config.load import to_yaml
from megatron_poro.config.run import EngineKind, Precision, TrainConfig
from megatron_poro.parallel.topology import Topology
from tests.faults.tally import Budget, Tally
from tests.support.ranks import run_ranks
from tests.support.tiny import full_values, make_engine, run_steps, tiny_config
from tests.unit.checkpoint.fake_engine import run_state

CLAIM = (
    "Masters, moments, steps and data position that a trained grid of any layout saved arrive bit for bit at a grid of "
    "any layout, and that grid trains on"
)
STEPS = 2


def layouts(largest: int) -> list[Topology]:
    """All layouts of 1, 2, 4 ... processes up to ``largest``."""
    sizes = [size for size in (1, 2, 4, 8) if size <= largest]
    return [
        Topology(tensor=tensor, pipeline=size // tensor // data, data=data)
        for size in sizes
        for tensor in sizes
        for data in sizes
        if size % (tensor * data) == 0
    ]


def config_of(layout: Topology) -> TrainConfig:
    """A model of eight heads and six blocks, so that eight processes may cut it along any axis."""
    kind = EngineKind.LOCAL if layout.world_size == 1 else EngineKind.DEEPSPEED
    return tiny_config(kind=kind, precision=Precision.BF16, num_heads=8, num_layers=6)


def campaign(budget: Budget, rng: random.Random, folder: Path, *, largest: int = 8) -> Tally:
    """A trial loads one layout's checkpoint at another. All ordered pairs in a drawn order, then once more.

    A budget of fewer trials than there are pairs takes those of up to four processes first.
    """
    saved: dict[Topology, Path] = {}
    small, all_of_them = layouts(min(4, largest)), layouts(largest)
    pairs = [(source, target) for target in small for source in small]
    others = [(source, target) for target in all_of_them for source in all_of_them]
    others = [pair for pair in others if pair not in pairs]
    rng.shuffle(pairs)
    rng.shuffle(others)
    rounds = [*pairs, *others]

    def trial(number: int) -> str:
        source, target = rounds[number % len(rounds)]
        if source not in saved:
            saved[source] = folder / str(source).replace(" ", "_")
            run_ranks(train_and_save, saved[source], source, world=source.world_size)
        (different, losses), *_ = run_ranks(load_and_train, saved[source], target, world=target.world_size)
        assert different == [], f"from {source} to {target}: {different}"
        assert all(0 < loss < 10 for loss in losses), f"from {source} to {target} the loss is {losses}"
        return f"{source.world_size} to {target.world_size} processes"

    tally = Tally(CLAIM).run(budget, trial)
    tally.facts["ordered pairs of layouts"] = len(rounds)
    tally.facts["of them tried"] = min(tally.trials, len(rounds))
    return tally


def train_and_save(folder: Path, layout: Topology) -> None:
    """One process of a grid: trains, and saves in the background."""
    config = config_of(layout)
    engine = make_engine(config, layout)
    run_steps(engine, config, range(STEPS))
    saver = BackgroundSaver(CheckpointStore(folder), engine.groups.world)
    saver.start(engine, _state(config, layout))
    saver.finish()


def load_and_train(folder: Path, layout: Topology) -> tuple[list[str], list[float]]:
    """One process of a grid: loads; on rank 0 what differs from the checkpoint. Then the loss of one more step."""
    config = config_of(layout)
    engine = make_engine(config, layout)
    state = resume(CheckpointStore(folder), engine, config=config, tokenizer_fingerprint="ab" * 32)
    assert state is not None
    assert (state.step, state.consumed_samples, state.optimizer_step) == (STEPS, 4 * STEPS, STEPS)
    held = full_values(engine)
    reader = CheckpointReader(CheckpointStore(folder).path(STEPS))
    different = []
    if engine.groups.world.is_first:
        for kind, name in reader.tensors:
            value = held.pop(tensor_key(kind, name), None)
            if value is None or not torch.equal(value, reader.tensor(name, kind)):
                different.append(tensor_key(kind, name))
    losses, _, _ = run_steps(engine, config, range(STEPS, STEPS + 1))
    return [*different, *held], losses


def _state(config: TrainConfig, layout: Topology) -> RunState:
    return replace(run_state(STEPS, topology=layout), identity=identity(config), config=to_yaml(config))
