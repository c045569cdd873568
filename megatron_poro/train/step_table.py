"""The table of a profile: the parts of a step side by side, a row for each process.

Every row adds up to its step, since :mod:`megatron_poro.parallel.step_clock` counts each moment once. A process that
waits for a slower one shows it in the part in which it waits; the slow one has the larger ``compute``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_poro.parallel.step_clock import Part
from megatron_poro.parallel.topology import Topology

MEANINGS: Mapping[Part, str] = {
    Part.COMPUTE: "forward and backward passes of this process's layers",
    Part.TENSOR: "collectives among the processes that share a layer, waiting for the slowest included",
    Part.PIPELINE: "sending to and receiving from other stages: the transfers and the waiting, which is the bubble",
    Part.DATA: "what replicas exchange: the gradients above all",
    Part.OPTIMIZER: "gradient norm, clipping, update, and gathering the new weights from the replicas",
    Part.AGREEMENT: "loss, norm and the decision on the step, told to all: who is done first waits here",
    Part.LOADING: "waiting for batches and bringing them to the device",
    Part.OTHER: "what is left",
}
"""What stands in a column; in the order of the columns."""


@dataclass(frozen=True)
class StepTable:
    """Where the time of some steps went.

    Attributes:
        steps: which ones, counted from 1.
        topology: the process grid.
        seconds: by rank, the mean seconds of each part of a step.
    """

    steps: Sequence[int]
    topology: Topology
    seconds: Sequence[Mapping[Part, float]]

    @property
    def mean(self) -> dict[Part, float]:
        """Seconds of each part, as the mean over all processes."""
        return mean_parts(self.seconds)

    def markdown(self) -> str:
        """The page for a person: milliseconds of a step, and per cent of it."""
        return "\n".join([f"# {self.title()}", "", *self._lines(range(len(self.seconds))), "", *_legend(), ""])

    def text(self, *, most: int = 16) -> str:
        """The table alone, for the log: all rows, or only the mean where there are more than ``most`` processes."""
        ranks = range(len(self.seconds)) if len(self.seconds) <= most else ()
        return "\n".join([f"{self.title()}:", *self._lines(ranks)])

    def json(self) -> str:
        """The same for a program, in milliseconds and unrounded."""
        return json.dumps(
            {
                "steps": list(self.steps),
                "topology": vars(self.topology),
                "mean": _record(self.mean),
                "processes": [
                    {"rank": rank, **vars(self.topology.coordinate(rank)), **_record(seconds)}
                    for rank, seconds in enumerate(self.seconds)
                ],
            },
            indent=1,
        )

    def title(self) -> str:
        """What the numbers are of."""
        first, last = self.steps[0], self.steps[-1]
        which = span(first, last)
        if last - first + 1 != len(self.steps):
            which += f" ({len(self.steps)} that were computed)"
        return f"Where the time of {which} went, milliseconds of a step at {self.topology}"

    def _lines(self, ranks: Sequence[int]) -> list[str]:
        """The table with the rows of some processes and the mean of all."""
        rows = [["process", "step", *(column(part) for part in MEANINGS)]]
        for rank in ranks:
            at = self.topology.coordinate(rank)
            name = f"rank {rank}: stage {at.pipeline}, replica {at.data}, tensor {at.tensor}"
            rows.append([name, *_cells(self.seconds[rank])])
        rows.append([f"mean of {len(self.seconds)}", *_cells(self.mean)])
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = [
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows
        ]
        rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        return [lines[0], f"| {' | '.join(rule)} |", *lines[1:]]


def span(first: int, last: int) -> str:
    """Some steps in a row, in words."""
    return f"step {first}" if first == last else f"steps {first} to {last}"


def column(part: Part) -> str:
    """The heading of a part."""
    return part.value.replace("_", " ")


def mean_parts(seconds: Sequence[Mapping[Part, float]]) -> dict[Part, float]:
    """The mean of each part over several steps, or over several processes; parts that add up still do."""
    return {part: sum(one[part] for one in seconds) / len(seconds) for part in MEANINGS}


def _record(seconds: Mapping[Part, float]) -> dict[str, Any]:
    milliseconds = {part.value: 1000 * seconds[part] for part in MEANINGS}
    return {"step_ms": sum(milliseconds.values()), "parts_ms": milliseconds}


def _cells(seconds: Mapping[Part, float]) -> list[str]:
    step = sum(seconds.values())
    shares = (f"{1000 * seconds[part]:.1f} ({100 * seconds[part] / max(step, 1e-12):.1f} %)" for part in MEANINGS)
    return [f"{1000 * step:.1f}", *shares]


def _legend() -> list[str]:
    return [
        "A step is the reading of its batches and all that the engine does; each moment of it belongs to one part.",
        "",
        *(f"- **{column(part)}**: {meaning}" for part, meaning in MEANINGS.items()),
    ]
