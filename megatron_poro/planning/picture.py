"""A step of the pipeline as a picture (SVG): ranks down, time across, waiting left grey, memory beside it."""

from collections.abc import Sequence
from html import escape

from megatron_poro.planning.memory import MemoryParts
from megatron_poro.planning.pipeline import Pass, Timeline
from megatron_poro.units import format_bytes

_WIDTH, _ROW, _LEFT, _TOP = 900.0, 34.0, 70.0, 46.0
_MEMORY_WIDTH = 320.0
_COLOURS = {
    # the second stage of a rank is a shade darker
    (Pass.FORWARD, False): "#6baed6",
    (Pass.FORWARD, True): "#3182bd",
    (Pass.BACKWARD, False): "#74c476",
    (Pass.BACKWARD, True): "#31a354",
}
_PART_COLOURS = ("#3182bd", "#9ecae1", "#756bb1", "#31a354", "#a1d99b", "#fd8d3c", "#fdd0a2", "#bdbdbd")


def pipeline_picture(
    timeline: Timeline, memory: Sequence[MemoryParts], *, device_bytes: int, title: str, num_ranks: int
) -> str:
    """The picture as text of an SVG file.

    Args:
        timeline: a step.
        memory: of one process of each pipeline rank.
        device_bytes: memory of a device.
        title: above the picture.
        num_ranks: pipeline ranks; a rank's stages from this number on are its second ones.
    """
    height = _TOP + num_ranks * _ROW + 60
    width = _LEFT + _WIDTH + 60 + _MEMORY_WIDTH + 20
    scale = _WIDTH / timeline.seconds
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="38">{timeline.seconds:.2f} s until the last backward pass, '
        f"{timeline.bubble:.1%} of the ranks' time is waiting</text>",
    ]
    for rank, works in enumerate(timeline.ranks):
        y = _TOP + rank * _ROW
        lines.append(f'<text x="8" y="{y + 20:.1f}">stage {rank}</text>')
        lines.append(f'<rect x="{_LEFT}" y="{y + 4:.1f}" width="{_WIDTH}" height="{_ROW - 8}" fill="#e0e0e0"/>')
        for timed in works:
            second = timed.work.stage >= num_ranks
            lines.append(
                f'<rect x="{_LEFT + timed.start * scale:.2f}" y="{y + 4:.1f}" '
                f'width="{(timed.end - timed.start) * scale:.2f}" height="{_ROW - 8}" '
                f'fill="{_COLOURS[timed.work.kind, second]}" stroke="white" stroke-width="0.5">'
                f"<title>{timed.work.kind.value} of microbatch {timed.work.microbatch}, stage {timed.work.stage}"
                "</title></rect>"
            )
    lines += _legend(_TOP + num_ranks * _ROW + 22, folded=any(w.work.stage >= num_ranks for w in timeline.ranks[0]))
    lines += _memory(memory, device_bytes)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _legend(y: float, *, folded: bool) -> list[str]:
    entries = [("forward", _COLOURS[Pass.FORWARD, False]), ("backward", _COLOURS[Pass.BACKWARD, False])]
    if folded:
        entries += [
            ("forward, second half of the model", _COLOURS[Pass.FORWARD, True]),
            ("backward, second half", _COLOURS[Pass.BACKWARD, True]),
        ]
    return _keys([*entries, ("waiting", "#e0e0e0")], x=_LEFT, y=y)


def _keys(entries: Sequence[tuple[str, str]], *, x: float, y: float) -> list[str]:
    lines = []
    for name, colour in entries:
        lines.append(f'<rect x="{x:.0f}" y="{y - 10:.1f}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 16:.0f}" y="{y:.1f}">{name}</text>')
        x += 30 + 6.6 * len(name)
    return lines


def _memory(memory: Sequence[MemoryParts], device_bytes: int) -> list[str]:
    left = _LEFT + _WIDTH + 60
    scale = _MEMORY_WIDTH / device_bytes
    lines = [f'<text x="{left}" y="38">memory of {format_bytes(device_bytes)}</text>']
    for rank, parts in enumerate(memory):
        y, x = _TOP + rank * _ROW + 4, left
        lines.append(
            f'<rect x="{left}" y="{y:.1f}" width="{_MEMORY_WIDTH}" height="{_ROW - 8}" fill="none" stroke="#888"/>'
        )
        for name, size, colour in zip(parts._fields, parts, _PART_COLOURS, strict=True):
            lines.append(
                f'<rect x="{x:.2f}" y="{y:.1f}" width="{size * scale:.2f}" height="{_ROW - 8}" fill="{colour}">'
                f"<title>{name} {format_bytes(int(size))}</title></rect>"
            )
            x += size * scale
    bottom = _TOP + len(memory) * _ROW
    names = [(name, colour) for name, colour in zip(MemoryParts._fields, _PART_COLOURS, strict=True)]
    lines += _keys(names[:4], x=left - 20, y=bottom + 22) + _keys(names[4:], x=left - 20, y=bottom + 40)
    return lines
