"""Small configs of every kind drawn by a seed, and one rank of each.

``python -m tests.unit.planning.drawn 50 130`` prints how far the planned memory of each is from that of the simulated
rank, and how many are within 2 %.
"""

import dataclasses
import random
import sys
from typing import NamedTuple

from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Precision, Recompute, TrainConfig
from megatron_poro.planning.layers import rank_layers
from megatron_poro.planning.memory import rank_memory
from megatron_poro.simulation.rank import simulate_rank
from tests.support.tiny import tiny_config


class Drawn(NamedTuple):
    """A config, its processes and one of them."""

    config: TrainConfig
    world_size: int
    rank: int


def drawn(seed: int) -> Drawn:
    """A run of a few blocks on up to 64 processes.

    Of either schedule, with one microbatch too, of all kernels that a plan counts with, with and without a cut
    sequence, dropout, weight gradients that wait, recomputation of all blocks or of some. It is wide enough that
    tensors of one number per token, which the plan leaves out, do not count.
    """
    choose = random.Random(seed)
    schedule = choose.choice(list(PipelineSchedule))
    dual = schedule is PipelineSchedule.DUALPIPEV
    tensor, data = choose.choice([1, 2, 4]), choose.choice([1, 2, 4])
    pipeline = choose.choice([2, 3, 4] if dual else [1, 2, 3, 4])
    stages = pipeline * (2 if dual else 1)
    heads, samples, dropout = choose.choice([4, 8]), choose.choice([1, 2, 3]), choose.choice([0.0, 0.0, 0.1])
    microbatches = 2 * pipeline + choose.choice([0, 1, 4]) if dual else choose.choice([1, 2, 4, 6])
    kernels = [AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH]
    config = tiny_config(
        pipeline_schedule=schedule,
        precision=choose.choice([Precision.BF16, Precision.BF16, Precision.FP32]),
        recompute=choose.choice(list(Recompute)),
        attention=choose.choice([AttentionBackend.EAGER] if dropout else kernels),
        microbatch=samples,
        global_batch=samples * microbatches * data,
        num_layers=choose.randint(max(2, stages - 2), max(8, stages + 2)),
        hidden_size=heads * choose.choice([24, 32, 48]),
        num_heads=heads,
        vocab_size=tensor * choose.choice([100, 250, 600]),
        hidden_dropout=dropout,
        attention_dropout=dropout,
        sequence=choose.choice([False, tensor > 1]),
    )
    config = dataclasses.replace(
        config,
        parallel=dataclasses.replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data),
        data=dataclasses.replace(config.data, sequence_length=choose.choice([16, 64, 128, 300])),
    )
    if config.engine.recompute is not Recompute.NONE and choose.random() < 0.5:
        blocks = [sum(layer.is_block for layer in layers) for layers in rank_layers(config)]
        config.engine.recompute_blocks = [choose.randint(0, number) for number in blocks]
    world_size = tensor * pipeline * data
    rank = choose.randrange(world_size)
    if config.engine.attention is AttentionBackend.FLASH and choose.random() < 0.5:
        config.engine.attention = AttentionBackend.TILED
    if not dual and pipeline > 1 and choose.random() < 0.5:
        config.engine.deferred_weight_gradients = choose.randrange(pipeline)
    return Drawn(config, world_size, rank)


class Compared(NamedTuple):
    """Bytes of one rank."""

    planned: float
    seen: float

    @property
    def error(self) -> float:
        """How much more is planned than is held, as a share of that."""
        return self.planned / self.seen - 1.0


def compared(seed: int) -> Compared:
    """The planned memory of a drawn rank, and what the simulated one holds."""
    config, world_size, rank = drawn(seed)
    backend = config.engine.attention
    seen = simulate_rank(config, rank=rank, world_size=world_size, backend=backend)
    planned = rank_memory(config, world_size=world_size, backend=backend)[seen.coordinate.pipeline]
    return Compared(planned.total, seen.peak_bytes)


def main() -> None:
    """Compares the seeds from one number to another."""
    first, last = map(int, sys.argv[1:])
    errors = []
    for seed in range(first, last):
        errors.append(abs(compared(seed).error))
        print(f"{seed:5} {errors[-1]:7.2%}", flush=True)
    within = sum(error <= 0.02 for error in errors)
    print(f"{within} of {len(errors)} within 2 %, the worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
