"""Small configs drawn by a seed, and one rank of each."""

import dataclasses
import random
from typing import NamedTuple

from megatron_poro.config.run import AttentionBackend, Precision, Recompute, TrainConfig
from tests.support.tiny import tiny_config


class Drawn(NamedTuple):
    """A config, its processes and one of them."""

    config: TrainConfig
    world_size: int
    rank: int


def drawn(seed: int) -> Drawn:
    """A 1F1B run of a few blocks on up to 64 processes, with two microbatches or more.

    It is wide enough that tensors of one number per token, which the plan leaves out, do not count.
    """
    choose = random.Random(seed)
    tensor, pipeline, data = choose.choice([1, 2, 4]), choose.choice([1, 2, 3, 4]), choose.choice([1, 2, 4])
    heads, samples, dropout = choose.choice([4, 8]), choose.choice([1, 2, 3]), choose.choice([0.0, 0.1])
    microbatches = choose.choice([2, 4, 6])
    config = tiny_config(
        precision=choose.choice([Precision.BF16, Precision.BF16, Precision.FP32]),
        recompute=choose.choice(list(Recompute)),
        attention=choose.choice(
            [AttentionBackend.EAGER] if dropout else [AttentionBackend.EAGER, AttentionBackend.FLASH]
        ),
        microbatch=samples,
        global_batch=samples * microbatches * data,
        num_layers=choose.randint(max(2, pipeline - 1), 8),
        hidden_size=heads * choose.choice([16, 24, 32]),
        num_heads=heads,
        vocab_size=tensor * choose.choice([100, 250, 600]),
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
    config = dataclasses.replace(
        config,
        parallel=dataclasses.replace(config.parallel, tensor=tensor, pipeline=pipeline, data=data),
        data=dataclasses.replace(config.data, sequence_length=choose.choice([16, 64, 128, 300])),
    )
    world_size = tensor * pipeline * data
    return Drawn(config, world_size, choose.randrange(world_size))
