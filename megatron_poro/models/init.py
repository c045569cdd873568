"""Initial weights: each full tensor is a pure function of the run's seed and the parameter's name.

A full tensor is drawn in blocks of whole rows, each block from its own seed, so a process draws only the rows it needs
(or, for a tensor cut by columns, one block at a time) and every layout starts from the same model. Nothing larger than
a block plus the slice is ever in memory.
"""

import torch
from torch import Tensor, nn

from megatron_poro.config.run import Precision
from megatron_poro.models.plan import LayerEntry, canonical_names
from megatron_poro.parallel.rng import derive_seed
from megatron_poro.parallel.shards import Initial, ShardSpec, initial_of, set_name, shard_of

BLOCK_ELEMENTS = 1 << 20
"""Elements drawn from one seed. Part of the definition of a run's initial weights: never change it."""


def weight_dtype(precision: Precision) -> torch.dtype:
    """Torch's name of ``engine.precision``."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def build_layer(
    entry: LayerEntry, *, seed: int | None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Makes one layer of a plan with its initial weights.

    Args:
        entry: the layer.
        seed: the run's seed; ``None`` leaves the weights empty (to be loaded, or on the device ``meta``).
        device: where the weights live.
        dtype: format of the weights; they are drawn in fp32 and then rounded.
    """
    with torch.device(device):
        layer = entry.module(**entry.arguments)
    layer = layer.to(dtype)
    for name, parameter in canonical_names(layer, entry.owner):
        set_name(parameter, name)
        if seed is not None:
            fill_initial(parameter.data, shard_of(parameter), initial_of(parameter), name=name, seed=seed)
    return layer


def fill_initial(out: Tensor, shard: ShardSpec, initial: Initial, *, name: str, seed: int) -> None:
    """Writes a slice of the initial full tensor into ``out``.

    Args:
        out: this process's slice, any device and format.
        shard: which slice it is.
        initial: distribution of the full tensor.
        name: canonical name of the parameter.
        seed: the run's seed.
    """
    if initial.std == 0.0:
        out.fill_(initial.mean)
        return
    rows, width = shard.full_shape[0], _row_elements(shard.full_shape)
    rows_per_block = max(1, BLOCK_ELEMENTS // width)
    first, stop = (shard.origin[0], shard.origin[0] + shard.shape[0]) if shard.dim == 0 else (0, rows)
    generator = torch.Generator()
    for block in range(first // rows_per_block, -(-stop // rows_per_block)):
        top = block * rows_per_block
        bottom = min(top + rows_per_block, rows)
        generator.manual_seed(derive_seed(seed, "initial", name, block))
        drawn = torch.empty(bottom - top, *shard.full_shape[1:]).normal_(initial.mean, initial.std, generator=generator)
        if shard.dim not in (0, None):
            drawn = drawn.narrow(shard.dim, shard.origin[shard.dim], shard.shape[shard.dim])
        low, high = max(top, first), min(bottom, stop)
        out[low - first : high - first].copy_(drawn[low - top : high - top])


def _row_elements(shape: tuple[int, ...]) -> int:
    elements = 1
    for size in shape[1:]:
        elements *= size
    return elements
