"""``poro plan --simulate-rank N``: a step of one rank by the real engine, beside what the plan says of it.

Apart from ``cli/plan.py``, which runs without torch.
"""

import time
from collections.abc import Iterator

from megatron_poro.cli.columns import columns
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.planning.forecast import Forecast
from megatron_poro.planning.layers import held_parameters, rank_layers
from megatron_poro.simulation.rank import SimulatedRank, require_simulable, simulate_rank
from megatron_poro.simulation.recording import Collective
from megatron_poro.units import format_bytes, format_seconds

_PLANNED_PARTS = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "head": ("head",),
    "activations": ("activations", "deferred", "recomputed", "buffers"),
}
"""Parts of a simulated rank's memory, and which parts of the plan they are."""


def simulated(
    config: TrainConfig, found: Forecast, *, rank: int, backend: AttentionBackend
) -> tuple[list[str], dict[str, object]]:
    """Simulates a rank and holds it against the plan.

    Args:
        config: a valid config.
        found: its plan.
        rank: which process.
        backend: the attention kernel that will run, not ``auto``.

    Returns:
        Lines to print, and the same for a program.

    Raises:
        ConfigError: for a rank outside the grid, or an engine that has no grid.
        EngineError: where stages would not fit together.
    """
    require_simulable(config, rank=rank, world_size=found.world_size)
    started = time.monotonic()
    seen = simulate_rank(config, rank=rank, world_size=found.world_size, backend=backend)
    report = _Report(config, found, seen, seconds=time.monotonic() - started)
    return list(report.lines()), report.record()


class _Report:
    """One simulated rank beside its plan."""

    def __init__(self, config: TrainConfig, found: Forecast, seen: SimulatedRank, *, seconds: float) -> None:
        stage = seen.coordinate.pipeline
        self._config, self._seen, self._seconds, self._world_size = config, seen, seconds, found.world_size
        self._layers = rank_layers(config)[stage]
        self._memory, self._traffic = found.memory[stage], found.traffic[stage]

    def lines(self) -> Iterator[str]:
        """What is printed."""
        seen, grid, here = self._seen, self._seen.topology, self._seen.coordinate
        yield (
            f"simulated   rank {seen.rank} of {self._world_size:,}: tensor {here.tensor} of {grid.tensor}, pipeline "
            f"{here.pipeline} of {grid.pipeline}, data {here.data} of {grid.data}; in {format_seconds(self._seconds)}"
        )
        agreement = "as planned" if self._layers_agree() else f"BUT PLANNED {self._planned_layers()}"
        yield f"layers      {_layers(seen.layers)}, {seen.num_parameters:,} parameters, {agreement}"
        yield f"step        {'taken by the optimizer' if seen.taken else 'NOT TAKEN'}"
        yield ""
        yield from self._compared("memory at its peak", self._bytes())
        yield ""
        yield from self._compared("sent in a step", self._sent())
        yield ""
        yield "calls of a step, bytes of the tensors they are about"
        yield from columns([["group", "size", "kind", "calls", "bytes", "tensor"], *self._calls()], left=(0,))

    def record(self) -> dict[str, object]:
        """The same for a program."""
        seen, here = self._seen, self._seen.coordinate
        return {
            "rank": seen.rank,
            "coordinate": {"tensor": here.tensor, "pipeline": here.pipeline, "data": here.data},
            "seconds": self._seconds,
            "layers": seen.layers,
            "parameters": seen.num_parameters,
            "layers_as_planned": self._layers_agree(),
            "taken": seen.taken,
            "memory_bytes": {part: {"planned": p, "simulated": s} for part, p, s in self._bytes()},
            "sent_bytes": {kind: {"planned": p, "simulated": s} for kind, p, s in self._sent()},
            "calls": [
                {
                    "group": axis,
                    "size": len(one.ranks),
                    "kind": one.kind,
                    "calls": len(alike),
                    "bytes": sum(call.size_bytes for call in alike),
                    "shape": list(one.shape),
                    "format": _format(one),
                }
                for axis, one, alike in self._alike()
            ],
        }

    def _layers_agree(self) -> bool:
        planned = [layer.role for layer in self._layers]
        return (planned, self._planned_parameters()) == (self._seen.layers, self._seen.num_parameters)

    def _planned_parameters(self) -> int:
        return held_parameters(self._layers, self._config.parallel.tensor)

    def _planned_layers(self) -> str:
        return f"{_layers([layer.role for layer in self._layers])}, {self._planned_parameters():,} parameters"

    def _bytes(self) -> list[tuple[str, float, float]]:
        """Parts of the memory at its peak: name, planned, simulated."""
        rows = [
            (part, sum(getattr(self._memory, name) for name in names), float(self._seen.parts.get(part, 0)))
            for part, names in _PLANNED_PARTS.items()
        ]
        return [*rows, ("in all", self._memory.total, float(self._seen.peak_bytes))]

    def _sent(self) -> list[tuple[str, float, float]]:
        """Bytes that the rank sends in a step by kind: name, planned, simulated."""
        sent = dict.fromkeys([*self._traffic._fields, "replica and world"], 0.0)
        for one in self._seen.step:
            axis = self._seen.axis(one)
            sent[axis if axis in sent else "replica and world"] += one.sent_bytes(self._seen.rank)
        rows = [(kind, getattr(self._traffic, kind, 0.0), size) for kind, size in sent.items()]
        return [*rows, ("in all", self._traffic.total, sum(sent.values()))]

    @staticmethod
    def _compared(title: str, rows: list[tuple[str, float, float]]) -> Iterator[str]:
        """A table of planned and simulated bytes."""
        table = [[title, "planned", "simulated", "difference"]]
        for name, planned, seen in rows:
            difference = f"{(seen - planned) / planned:+.2%}" if planned else "" if seen == 0 else "not planned"
            table.append([name, format_bytes(int(planned)), format_bytes(int(seen)), difference])
        return columns(table, left=(0,))

    def _alike(self) -> Iterator[tuple[str, Collective, list[Collective]]]:
        """Calls of one kind among the same processes about tensors of one shape."""
        alike: dict[tuple[str, Collective], list[Collective]] = {}
        for one in self._seen.step:
            alike.setdefault((self._seen.axis(one), one), []).append(one)
        for (axis, one), calls in alike.items():
            yield axis, one, calls

    def _calls(self) -> Iterator[list[str]]:
        for axis, one, alike in self._alike():
            size = sum(call.size_bytes for call in alike)
            kind = one.kind
            if kind in ("send", "recv"):
                kind += f" {'to' if kind == 'send' else 'from'} {one.ranks[1] if kind == 'send' else one.ranks[0]}"
            shape = f"{list(one.shape)} {_format(one)}"
            yield [axis, str(len(one.ranks)), kind, f"{len(alike):,}", format_bytes(size), shape]


def _layers(roles: list[str]) -> str:
    return f"{len(roles)}, {roles[0]} to {roles[-1]}"


def _format(one: Collective) -> str:
    return str(one.dtype).removeprefix("torch.")
