"""What a checkpoint costs the training that it is taken of: waited for, and written beside the next steps.

Run from the checkout: ``python -m benchmarks.checkpointing``. One process trains a small model on made-up text. In each
round it takes as many steps without a save, with one save at the first step that is waited for, and with one that is
written in the background, in turn; every step boundary asks the saver, as the training loop does. The cost of a save
is the time of the round less the time of the round without one; medians over the rounds. On a machine whose cores are
all at work the background save takes their time, and on one with a GPU it does not: the copy is what remains there.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_poro.checkpoint.background import BackgroundSaver
from megatron_poro.checkpoint.saving import save
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.data import DataConfig
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import EngineConfig, EngineKind, RunSection, ScheduleConfig, TrainConfig
from megatron_poro.data.batch import Batch
from megatron_poro.engine.build import build_engine
from megatron_poro.engine.engine import Engine
from megatron_poro.models.count import count_parameters
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.next_token import NextToken
from megatron_poro.units import format_bytes

NONE, AT_ONCE, IN_BACKGROUND = "no save", "waited for", "in the background"
SEQUENCE, VOCABULARY, SAMPLES = 128, 8192, 4


def main() -> None:
    """Prints the seconds that training stood still and the seconds that a save cost in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the one of temporary files)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = _config(arguments.layers, arguments.hidden_size)
    engine = build_engine(
        config, groups=ParallelGroups.create(Topology()), objective=NextToken, num_sources=1, device=device
    )
    size = 12 * count_parameters(config.model)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rounds = _Rounds(engine, CheckpointStore(folder, keep_last=1), arguments.steps)
        for way in (NONE, AT_ONCE, IN_BACKGROUND):  # allocates what stays, and is not counted
            rounds.run(way)
        seconds: dict[str, list[tuple[float, float]]] = {NONE: [], AT_ONCE: [], IN_BACKGROUND: []}
        for _ in range(arguments.rounds):
            for way, found in seconds.items():
                found.append(rounds.run(way))
    bare = statistics.median(total for total, _ in seconds[NONE])
    print(f"{device}, checkpoint of {format_bytes(size)}, step of {bare / arguments.steps:.3f} s")
    print(f"{'save':<18}  stands still  costs in all")
    for way in (AT_ONCE, IN_BACKGROUND):
        still = statistics.median(still for _, still in seconds[way])
        cost = statistics.median(total for total, _ in seconds[way]) - bare
        print(f"{way:<18}  {still:>10.3f} s  {cost:>10.3f} s")


class _Rounds:
    """Rounds of some steps each, of one training."""

    def __init__(self, engine: Engine, store: CheckpointStore, steps: int) -> None:
        self._engine, self._store, self._steps = engine, store, steps
        self._saver = BackgroundSaver(store, World())
        self._taken = 0

    def run(self, way: str) -> tuple[float, float]:
        """Seconds of a round, and how many of them training stood still for its save."""
        began, still = time.perf_counter(), 0.0
        for index in range(self._steps):
            still += self._boundary(way if index == 0 else NONE)
            self._step()
        still += _timed(self._saver.finish)
        return time.perf_counter() - began, still

    def _boundary(self, way: str) -> float:
        if way == AT_ONCE:
            return _timed(lambda: save(self._store, self._engine, self._state()))
        if way == IN_BACKGROUND:
            return _timed(lambda: self._saver.start(self._engine, self._state()))
        return 0.0 if self._saver.is_busy else _timed(self._saver.advance)

    def _step(self) -> None:
        generator = torch.Generator().manual_seed(self._taken)
        stream = torch.randint(VOCABULARY, (SAMPLES, SEQUENCE + 1), generator=generator)
        mask = torch.ones(SAMPLES, SEQUENCE)
        batch = Batch(stream[:, :-1], stream[:, 1:], mask, torch.zeros(SAMPLES, dtype=torch.int64))
        result = self._engine.train_step([batch], learning_rate=1e-4, consumed_samples=self._taken * SAMPLES)
        assert result.taken, "a step was refused"
        self._taken += 1

    def _state(self) -> RunState:
        return RunState(
            step=self._taken,
            consumed_samples=self._taken * SAMPLES,
            consumed_tokens=self._taken * SAMPLES * SEQUENCE,
            optimizer_step=self._taken,
            config="",
            identity={},
            topology=Topology(),
            tokenizer_fingerprint="",
        )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _config(layers: int, hidden_size: int) -> TrainConfig:
    return TrainConfig(
        run=RunSection(name="checkpointing"),
        model=BloomConfig(num_layers=layers, hidden_size=hidden_size, num_heads=8, vocab_size=VOCABULARY),
        engine=EngineConfig(kind=EngineKind.LOCAL, microbatch_samples=SAMPLES),
        data=DataConfig(sequence_length=SEQUENCE),
        schedule=ScheduleConfig(total_tokens=10**9, global_batch_samples=SAMPLES, learning_rate=1e-4),
    )


if __name__ == "__main__":
    main()
