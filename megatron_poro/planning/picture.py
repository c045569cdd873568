"""A step as a picture (SVG): pipeline ranks down, time across, waiting left grey, memory of each rank beside it."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from megatron_poro.parallel.schedules import Pass
from megatron_poro.planning.memory import MemoryParts
from megatron_poro.planning.pipeline import TimedWork, Timeline
from megatron_poro.units import format_bytes

_WIDTH, _ROW, _LEFT, _TOP = 900.0, 34.0, 70.0, 66.0
_BAR = _ROW - 8
_MEMORY_LEFT, _MEMORY_WIDTH = _LEFT + _WIDTH + 50, 320.0
_WIDE_ENOUGH = 16.0
"""A bar that is so wide has room for the number of its microbatch."""

_COLOURS = {
    # the second stage of a rank is a shade darker
    (Pass.FORWARD, False): "#6baed6",
    (Pass.FORWARD, True): "#3182bd",
    (Pass.BACKWARD, False): "#74c476",
    (Pass.BACKWARD, True): "#31a354",
    (Pass.WEIGHT_GRADIENTS, False): "#fec44f",
}
_WAITING = "#e0e0e0"
_AFTER_COLOURS = ("#fd8d3c", "#9e9ac8")
_PART_COLOURS = ("#3182bd", "#9ecae1", "#756bb1", "#31a354", "#fec44f", "#a1d99b", "#fd8d3c", "#fdd0a2")
_MEMORY_ENTRIES = tuple(zip(MemoryParts._fields, _PART_COLOURS, strict=True))


def pipeline_picture(
    timeline: Timeline,
    memory: Sequence[MemoryParts],
    *,
    after: Sequence[tuple[str, float]],
    device_bytes: int,
    room_bytes: int,
    title: str,
    num_ranks: int,
) -> str:
    """The picture as text of an SVG file.

    Args:
        timeline: a step, up to its last pass.
        memory: of one process of each pipeline rank.
        after: what follows on all ranks at once: its name and seconds.
        device_bytes: memory of a device.
        room_bytes: of it, what tensors can have.
        title: above the picture.
        num_ranks: pipeline ranks; a rank's stages from this number on are its second ones.
    """
    total = timeline.seconds + sum(seconds for _, seconds in after)
    folded = any(timed.work.stage >= num_ranks for timed in timeline.ranks[0])
    bottom = _TOP + num_ranks * _ROW
    deferred = any(timed.work.kind is Pass.WEIGHT_GRADIENTS for timed in timeline.ranks[0])
    keys = _keys(_time_entries(folded, deferred, after), x=_LEFT, y=bottom + 46, width=_WIDTH)
    memory_keys = _keys(_MEMORY_ENTRIES, x=_MEMORY_LEFT, y=bottom + 46, width=_MEMORY_WIDTH + 60)
    width, height = _MEMORY_LEFT + _MEMORY_WIDTH + 90, max(key.y for key in (*keys, *memory_keys)) + 16
    subtitle = (
        f"{total:.2f} s; passes end after {timeline.seconds:.2f} s, in which the ranks wait {timeline.bubble:.1%} of "
        "the time"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12">',
        _box(0, 0, width, height, "white"),
        _text(_LEFT, 20, title, 'font-size="14" font-weight="bold"'),
        _text(_LEFT, 38, subtitle),
        *_time_axis(total, bottom),
    ]
    for rank, works in enumerate(timeline.ranks):
        y = _TOP + rank * _ROW + 4
        lines.append(_text(_LEFT - 8, y + 17, f"{'rank' if folded else 'stage'} {rank}", 'text-anchor="end"'))
        lines.append(_box(_LEFT, y, _WIDTH, _BAR, _WAITING))
        for timed in works:
            lines += _pass(timed, y, scale=_WIDTH / total, second=timed.work.stage >= num_ranks)
        lines += _tail(after, y, start=timeline.seconds, scale=_WIDTH / total)
    lines += _memory(memory, device_bytes, room_bytes)
    for key in (*keys, *memory_keys):
        lines += [_box(key.x, key.y - 10, 12, 12, key.colour), _text(key.x + 16, key.y, key.name)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _pass(timed: TimedWork, y: float, *, scale: float, second: bool) -> Iterator[str]:
    work, x, width = timed.work, _LEFT + timed.start * scale, (timed.end - timed.start) * scale
    told = f"{work.kind.value} of microbatch {work.microbatch}, stage {work.stage}, {timed.end - timed.start:.3f} s"
    # a white edge would hide bars that are hardly wider than it
    yield _box(x, y, width - (0.5 if width > 3 else 0), _BAR, _COLOURS[work.kind, second], told)
    if width >= _WIDE_ENOUGH:
        style = f'text-anchor="middle" font-size="10" fill="{"white" if second else "#333"}" pointer-events="none"'
        yield _text(x + width / 2, y + 17, str(work.microbatch), style)


def _tail(after: Sequence[tuple[str, float]], y: float, *, start: float, scale: float) -> Iterator[str]:
    for (name, seconds), colour in zip(after, _AFTER_COLOURS, strict=True):
        yield _box(_LEFT + start * scale, y, seconds * scale, _BAR, colour, f"{name}, {seconds:.2f} s")
        start += seconds


def _time_axis(total: float, bottom: float) -> Iterator[str]:
    """Seconds, above and below thin lines through all rows."""
    step = _round_step(total / 10)
    for number in range(int(total / step) + 1):
        x = _LEFT + number * step * _WIDTH / total
        yield _line(x, _TOP, x, bottom + 4)
        yield _text(x, bottom + 18, f"{number * step:g}{' s' if number == 0 else ''}", 'text-anchor="middle"')


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no less."""
    power = 1e-6
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


def _time_entries(folded: bool, deferred: bool, after: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    entries = [("forward", _COLOURS[Pass.FORWARD, False]), ("backward and recomputed", _COLOURS[Pass.BACKWARD, False])]
    if deferred:
        entries.append(("weight gradients", _COLOURS[Pass.WEIGHT_GRADIENTS, False]))
    if folded:
        entries += [
            ("forward, second half of the model", _COLOURS[Pass.FORWARD, True]),
            ("backward, second half", _COLOURS[Pass.BACKWARD, True]),
        ]
    return [*entries, ("waiting", _WAITING), *((name, c) for (name, _), c in zip(after, _AFTER_COLOURS, strict=True))]


class _Key(NamedTuple):
    """What a colour stands for, and where that is written."""

    x: float
    y: float
    name: str
    colour: str


def _keys(entries: Sequence[tuple[str, str]], *, x: float, y: float, width: float) -> list[_Key]:
    """Names of colours, in as many lines as they take."""
    left, end, keys = x, x + width, []
    for name, colour in entries:
        taken = 34 + 7.2 * len(name)
        if x + taken > end and x > left:
            x, y = left, y + 18
        keys.append(_Key(x, y, name, colour))
        x += taken
    return keys


def _memory(memory: Sequence[MemoryParts], device_bytes: int, room_bytes: int) -> Iterator[str]:
    scale, bottom = _MEMORY_WIDTH / device_bytes, _TOP + len(memory) * _ROW
    heading = f"memory; of {format_bytes(device_bytes)} tensors have {format_bytes(room_bytes)}, the dashed line"
    yield _text(_MEMORY_LEFT, 38, heading)
    for part in range(5):
        x = _MEMORY_LEFT + part * _MEMORY_WIDTH / 4
        yield _line(x, _TOP, x, bottom + 4)
        yield _text(x, bottom + 18, format_bytes(device_bytes * part // 4), 'text-anchor="middle"')
    for rank, parts in enumerate(memory):
        y, x = _TOP + rank * _ROW + 4, _MEMORY_LEFT
        yield _box(x, y, _MEMORY_WIDTH, _BAR, "none", edge="#888")
        for name, size, colour in zip(parts._fields, parts, _PART_COLOURS, strict=True):
            yield _box(x, y, size * scale, _BAR, colour, f"{name} {format_bytes(int(size))}")
            x += size * scale
        colour = "#333" if parts.total <= room_bytes else "#c00"
        end = max(x, _MEMORY_LEFT + _MEMORY_WIDTH)
        yield _text(end + 8, y + 17, format_bytes(int(parts.total)), f'fill="{colour}"')
    limit = _MEMORY_LEFT + room_bytes * scale
    yield _line(limit, _TOP, limit, bottom, 'stroke="#c00" stroke-dasharray="4 3"')


def _box(x: float, y: float, width: float, height: float, fill: str, told: str = "", edge: str = "") -> str:
    stroke = f' stroke="{edge}"' if edge else ""
    inside = f"<title>{escape(told)}</title>" if told else ""
    place = f'x="{x:.2f}" y="{y:.1f}" width="{max(0.0, width):.2f}" height="{height:.1f}"'
    return f'<rect {place} fill="{fill}"{stroke}>{inside}</rect>'


def _line(x: float, y: float, to_x: float, to_y: float, style: str = 'stroke="#ccc"') -> str:
    return f'<line x1="{x:.2f}" y1="{y:.1f}" x2="{to_x:.2f}" y2="{to_y:.1f}" {style}/>'


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " + style if style else ""}>{escape(text)}</text>'
