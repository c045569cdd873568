"""Whether processes that must hold the same values do, bit for bit.

Replicas hold the same weights, tensor ranks the same norms and biases, and the first and last stage the same embedding.
Nothing keeps them alike but that all compute the same: a flipped bit, or a step that one of them clips differently,
stays unseen until the model is exported or cut another way, and training goes on with a model that is no model.

Each process hashes what it holds, and one maximum along each axis compares: every hash beside its complement, so
that the largest of both are each other's complement only where all are equal. Only where they are not does everyone
tell everyone its hashes, and the rare ones are named.

Source: the problem is that of BLOOM, whose LayerNorms drifted apart over the tensor ranks (bigscience's chronicles of
2022).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_poro.engine.engine import WEIGHT, Copy, CopyAxis, Engine, FragmentKind
from megatron_poro.errors import ReplicaError
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.hashing import bit_hash
from megatron_poro.train.peers import Peer

_NOTHING = -(2**63)
"""What a process says that holds none of the values: the smallest number is nobody's maximum."""

_NAMED_VALUES = 5


class Difference(NamedTuple):
    """Values that are not alike.

    Attributes:
        name: canonical parameter name.
        kind: ``weight``, ``master``, ``exp_avg`` or ``exp_avg_sq``.
        odd: ranks whose bits are in the minority; all that hold the value where there is none.
        others: the other ranks that hold it.
    """

    name: str
    kind: str
    odd: tuple[int, ...]
    others: tuple[int, ...]


def check_replicas(engine: Engine, *, step: int, peers: Sequence[Peer]) -> None:
    """Compares all copies. All processes call it; nothing is changed.

    Args:
        engine: between two steps.
        step: the last one that was taken, for the message.
        peers: all processes, by rank.

    Raises:
        ReplicaError: on every process alike, naming the values, the axis and the odd processes.
    """
    copies = list(engine.copies())
    hashes = [bit_hash(copy.flat) for copy in copies]
    differs = [_differ(pairs, group) for pairs, group in _by_axis(copies, hashes, engine.groups)]
    if not engine.groups.world.any(any(differs)):
        return
    held = engine.groups.world.gather((_by_key(copies, hashes), contradicted(copies)))
    differences = find_differences([hashes for hashes, _ in held], [names for _, names in held])
    raise ReplicaError(_sentence(differences, engine.groups, step, peers))


Key = tuple[str, str, tuple[int, int]]


def find_differences(held: Sequence[Mapping[Key, int]], doubtful: Sequence[Collection[str]]) -> list[Difference]:
    """Where the hashes of several processes differ.

    Args:
        held: by rank, the hash of everything the process holds.
        doubtful: by rank, the weights that contradict their masters: they decide where as many say one as the other.
    """
    everyone: dict[Key, dict[int, int]] = defaultdict(dict)
    for rank, hashes in enumerate(held):
        for key, value in hashes.items():
            everyone[key][rank] = value
    differences = []
    for (name, kind, _), by_rank in everyone.items():
        counted = Counter(by_rank.values()).most_common()
        if len(counted) == 1:
            continue
        majority = counted[0][0] if counted[0][1] > counted[1][1] else None
        odd = tuple(rank for rank, value in by_rank.items() if value != majority)
        if majority is None and kind == WEIGHT:
            # one against one: else nobody could tell who is right
            odd = tuple(rank for rank in by_rank if name in doubtful[rank]) or odd
        differences.append(Difference(name, kind, odd, tuple(rank for rank in by_rank if rank not in odd)))
    return differences


def contradicted(copies: Sequence[Copy]) -> set[str]:
    """The parameters whose weight is not what the masters of this process round to, where it keeps masters apart."""
    weights = {copy.name: copy.flat for copy in copies if copy.kind == WEIGHT}
    found = set()
    for copy in copies:
        if copy.kind == FragmentKind.MASTER.value and copy.name in weights:
            begin = copy.part[1]
            weight = weights[copy.name][begin : begin + copy.flat.numel()]
            if not torch.equal(copy.flat.to(weight.dtype), weight):
                found.add(copy.name)
    return found


def _by_axis(
    copies: Sequence[Copy], hashes: Sequence[Tensor], groups: ParallelGroups
) -> Iterable[tuple[Tensor, AxisGroup]]:
    """For each axis that has more than one process, what is compared along it: int64 vectors of one length."""
    for axis, group in (
        (CopyAxis.TENSOR, groups.tensor),
        (CopyAxis.DATA, groups.data),
        (CopyAxis.PIPELINE, groups.pipeline),
    ):
        if group.size == 1:
            continue
        mine = [value for copy, value in zip(copies, hashes, strict=True) if axis in copy.axes]
        if axis is not CopyAxis.PIPELINE:
            yield torch.stack(mine), group
        elif mine:  # stages between hold none of them, and do not know how many there are
            yield bit_hash(torch.stack(mine)).view(1), group
        else:
            yield torch.full((1,), _NOTHING, dtype=torch.int64, device=hashes[0].device), group


def _differ(values: Tensor, group: AxisGroup) -> bool:
    """Whether any value is not the same on all processes of a group that have one."""
    nothing = values == _NOTHING
    both = torch.cat([values, torch.where(nothing, values, ~values)])
    highest, complement = all_reduce(both, group, maximum=True).chunk(2)
    return bool((highest != ~complement).any())


def _by_key(copies: Sequence[Copy], hashes: Sequence[Tensor]) -> dict[Key, int]:
    values = torch.stack(list(hashes)).tolist()
    return {(copy.name, copy.kind, copy.part): value for copy, value in zip(copies, values, strict=True) if copy.axes}


def _sentence(differences: Sequence[Difference], groups: ParallelGroups, step: int, peers: Sequence[Peer]) -> str:
    told = []
    for one in differences[:_NAMED_VALUES]:
        odd = ", ".join(str(peers[rank]) for rank in one.odd)
        rest = f"differs from rank {', '.join(map(str, one.others))}" if one.others else "differ from each other"
        told.append(f"{one.kind} of {one.name} on {odd} {rest} (along {_axes(one, groups)})")
    if len(differences) > _NAMED_VALUES:
        told.append(f"{len(differences) - _NAMED_VALUES} more values differ")
    return (
        f"processes that must hold the same values do not after step {step}: {'; '.join(told)}. Nothing was saved "
        "after this was found. Start again from the last checkpoint without that machine; if it comes back on another "
        "one, it is a bug."
    )


def _axes(difference: Difference, groups: ParallelGroups) -> str:
    """The axes along which the odd processes and the others stand apart."""
    topology = groups.topology
    odd = [topology.coordinate(rank) for rank in difference.odd]
    others = [topology.coordinate(rank) for rank in difference.others or difference.odd]
    axes = {
        axis.value
        for axis in CopyAxis
        for one in odd
        for other in others
        if one != other and getattr(one, axis.value) != getattr(other, axis.value)
    }
    return " and ".join(sorted(axes))
