"""``poro plan --search``: the ranked layouts, how to type the first, and what each of its changes gains."""

import textwrap
from collections.abc import Iterator, Sequence

from megatron_poro.cli.columns import columns
from megatron_poro.config.derived import recomputed_layers
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.planning.forecast import Forecast
from megatron_poro.planning.gains import itemised
from megatron_poro.planning.search import Candidate, search
from megatron_poro.units import format_bytes

_WIDTH = 100


def search_rows(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend, top: int
) -> Iterator[str]:
    """What to print of a search.

    Args:
        config: a valid config.
        hardware: the machine.
        world_size: devices.
        backend: the attention kernel that will run.
        top: how many of the layouts.
    """
    candidates = search(config, hardware, world_size=world_size, backend=backend)
    working = [one for one in candidates if one.found is not None]
    yield from _ranking(working, top)
    yield "grid: tensor x pipeline x data; samples: of a microbatch; * is the config's own layout"
    yield f"{len(working)} layouts of {len(candidates)} work. The others:"
    yield from _reasons(candidates)
    if not working:
        return
    best = working[0]
    yield "\nthe first, as one types it:"
    yield from _wrapped(best.name, "  ")
    (own,) = [one for one in candidates if one.is_own]
    if own.found is not None and not best.is_own:
        yield ""
        yield from _gains(own.config, own.found, best, hardware, world_size=world_size, backend=backend)


def _ranking(working: Sequence[Candidate], top: int) -> Iterator[str]:
    names = ["step", "memory", "MFU", "grid", "samples", "sequence", "schedule", "split"]
    rows = [["", *names, "recomputed"]]
    for place, one in enumerate(working):
        if place >= top and not one.is_own:
            continue
        assert one.found is not None
        parallel, engine = one.config.parallel, one.config.engine
        rows.append(
            [
                f"{'* ' if one.is_own else ''}{place + 1}",
                f"{one.found.time.total:.2f} s",
                _most_memory(one.found),
                f"{one.found.speed.mfu:.1%}",
                f"{parallel.tensor}x{parallel.pipeline}x{parallel.data}",
                str(engine.microbatch_samples),
                "cut" if parallel.sequence else "whole",
                engine.pipeline_schedule.value,
                parallel.stage_split.value,
                _recomputed(one.config),
            ]
        )
    yield from columns(rows, left=(len(names) + 1,))


def _recomputed(config: TrainConfig) -> str:
    """Which way, and of how many blocks where it is not all."""
    counts = config.engine.recompute_blocks
    some = "" if counts is None else f", {recomputed_layers(config)} of {config.model.num_layers}"
    return config.engine.recompute.value + some


def _reasons(candidates: Sequence[Candidate]) -> Iterator[str]:
    reasons: dict[str, int] = {}
    for one in candidates:
        if one.reason:
            kind = "needs more memory than there is" if one.reason.startswith("needs ") else one.reason
            reasons[kind] = reasons.get(kind, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        first, *others = _wrapped(reason, "       ")
        yield f"{count:5}  {first.strip()}"
        yield from others


def _gains(
    own: TrainConfig,
    before: Forecast,
    best: Candidate,
    hardware: HardwareConfig,
    *,
    world_size: int,
    backend: AttentionBackend,
) -> Iterator[str]:
    """What each change of the best layout gains."""
    gains = itemised(own, best.config, hardware, world_size=world_size, backend=backend)
    rows = [["from the config's layout to the first", "alone", "gain", "memory", "one by one", "gain", "memory"]]
    start = [f"{before.time.total:.2f} s", "", _most_memory(before)]
    rows.append(["as it stands", *start, *start])
    last = before
    for number, gain in enumerate(gains):
        rows.append([f"{number + 1}", *_cells(gain.alone, before), *_cells(gain.together, last)])
        last = gain.together or last
    rows.append(["in all", "", "", "", *_cells(last, before)])
    yield from columns(rows, left=(0,))
    for number, gain in enumerate(gains):
        yield f"  {number + 1}  {gain.words}"
    if any(one is not None and not one.fits for gain in gains for one in (gain.alone, gain.together)):
        yield "  !  does not fit by itself"


def _cells(found: Forecast | None, before: Forecast) -> list[str]:
    if found is None:
        return ["cannot be", "", ""]
    mark = "" if found.fits else "! "
    gain = f"{before.time.total / found.time.total:.2f}x"
    return [f"{found.time.total:.2f} s", gain, f"{mark}{_most_memory(found)}"]


def _most_memory(found: Forecast) -> str:
    return format_bytes(int(max(part.total for part in found.memory)))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
