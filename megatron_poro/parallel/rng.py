"""Random numbers as pure functions of where they are used: no generator state to save, nothing to drift.

A dropout mask depends on the run's seed, the sample's number in the run, the layer, the place in the layer, and, inside
a tensor-parallel region, on the tensor rank. So masks of the replicated residual stream agree over the tensor group,
masks of sharded activations differ, recomputation draws the same mask again, and a resumed run needs no saved state.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.parallel.uncompiled import uncompiled


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a hash of its parts, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class DropoutKey:
    """Names the masks of one layer for one microbatch; drawn once, then passed into recomputed code."""

    seed: int
    layer: str
    samples: tuple[int, ...]


@dataclass
class DropoutClock:
    """Knows which samples a layer is working on: it counts the microbatches each layer has seen in this step.

    Attributes:
        seed: the run's seed.
        data_rank, data_size: this replica and how many there are.
        tensor_rank: this process's place in its tensor group.
        microbatch_samples: samples in one microbatch.
        enabled: off while gradients of different layouts are compared.
    """

    seed: int = 0
    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    microbatch_samples: int = 1
    enabled: bool = True
    _first_sample: int = 0
    _microbatches: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def start_step(self, consumed_samples: int) -> None:
        """Call before a step: sample numbers count on from ``consumed_samples``."""
        self._first_sample = consumed_samples
        self._microbatches.clear()

    def next_key(self, layer: str) -> DropoutKey | None:
        """Key of a layer's next microbatch; call once per forward pass, outside recomputed code."""
        if not self.enabled:
            return None
        position = self._microbatches[layer] * self.data_size + self.data_rank
        self._microbatches[layer] += 1
        first = self._first_sample + position * self.microbatch_samples
        return DropoutKey(self.seed, layer, tuple(range(first, first + self.microbatch_samples)))


def dropout(
    tensor: Tensor,
    probability: float,
    key: DropoutKey | None,
    place: str,
    *,
    rank: int | None = None,
    stream: AxisGroup | None = None,
) -> Tensor:
    """Zeroes elements with the given probability and scales up the rest.

    Args:
        tensor: ``[b, ...]``, one row per sample of ``key``.
        probability: chance of an element to be zeroed.
        key: which masks to draw; ``None`` leaves the tensor as it is.
        place: name of the call within its layer.
        rank: tensor rank, for an activation that is sharded over the tensor group; ``None`` for a replicated one.
        stream: the processes that share out the positions ``[b, s/tp, ...]`` of a replicated activation; each draws
            the mask of the whole sample and takes its part, so that masks do not depend on the cut.
    """
    if key is None or probability == 0.0:
        return tensor
    return tensor * _kept(tensor, probability, key, place, rank, stream) / (1.0 - probability)


@uncompiled
def _kept(
    tensor: Tensor, probability: float, key: DropoutKey, place: str, rank: int | None, stream: AxisGroup | None
) -> Tensor:
    """Which elements are not zeroed; bool, of the tensor's shape."""
    keep = torch.empty_like(tensor, dtype=torch.bool)
    generator = torch.Generator(device=tensor.device)
    for row, sample in zip(keep, key.samples, strict=True):
        generator.manual_seed(
            derive_seed(key.seed, "dropout", sample, key.layer, place, "all" if rank is None else rank)
        )
        if stream is None or stream.size == 1:
            row.bernoulli_(1.0 - probability, generator=generator)
        else:
            whole = row.new_empty(stream.size * len(row), *row.shape[1:]).bernoulli_(
                1.0 - probability, generator=generator
            )
            row.copy_(whole.chunk(stream.size)[stream.rank])
    return keep
