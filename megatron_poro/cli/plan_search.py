"""``poro plan --search``: the ranked layouts, how to type the first, and what each of its changes gains."""

import textwrap
from collections.abc import Iterator, Sequence

from megatron_poro.cli.columns import columns
from megatron_poro.config.derived import recomputed_layers
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import AttentionBackend, TrainConfig
from megatron_poro.planning.forecast import Forecast
from megatron_poro.planning.gains import Changed, Gain, itemised
from megatron_poro.planning.search import Candidate, search
from megatron_poro.units import format_bytes

_WIDTH = 100


def search_rows(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend, top: int
) -> Iterator[str]:
    """What to print of a search.

    Args:
        config: its values are valid; its own layout need not fit the devices.
        hardware: the machine.
        world_size: devices.
        backend: the attention kernel that will run.
        top: how many of the layouts.
    """
    candidates = search(config, hardware, world_size=world_size, backend=backend)
    working = [one for one in candidates if one.found is not None]
    (own,) = [one for one in candidates if one.is_own]
    yield from _ranking(working, top)
    yield "grid: tensor x pipeline x data; samples: of a microbatch; schedule: and how many microbatches'"
    yield "weight gradients wait; * is the config's own layout"
    if own.found is None:
        yield from _wrapped(f"the config's own layout is out: {own.reason}", "")
    yield f"{len(working)} layouts of {len(candidates)} work. The others:"
    yield from _reason_rows(candidates)
    if not working:
        return
    best = working[0]
    yield "\nthe first, as one types it:"
    yield from _wrapped(best.name, "  ")
    if own.found is not None and not best.is_own:
        yield ""
        gains = itemised(own.config, best.config, hardware, world_size=world_size, backend=backend)
        yield from _gain_rows(own.found, gains)


def search_record(
    config: TrainConfig, hardware: HardwareConfig, *, world_size: int, backend: AttentionBackend, top: int
) -> dict[str, object]:
    """The same for a program; arguments as those of :func:`search_rows`."""
    candidates = search(config, hardware, world_size=world_size, backend=backend)
    working = [one for one in candidates if one.found is not None]
    (own,) = [one for one in candidates if one.is_own]
    gains = []
    if own.found is not None and not working[0].is_own:
        gains = itemised(own.config, working[0].config, hardware, world_size=world_size, backend=backend)
    return {
        "devices": world_size,
        "tried": len(candidates),
        "working": len(working),
        "layouts": [_layout_record(place, one) for place, one in _shown(working, top)],
        "own_is_out": own.reason,
        "reasons": _reasons(candidates),
        "gains": [{"alone": _changed_record(gain.alone), "together": _changed_record(gain.together)} for gain in gains],
    }


def _layout_record(place: int, one: Candidate) -> dict[str, object]:
    assert one.found is not None
    return {"place": place, "is_own": one.is_own, "settings": one.name.split(), **_numbers(one.found)}


def _changed_record(one: Changed | None) -> dict[str, object] | None:
    return None if one is None else {"settings": one.words.split(), **_numbers(one.found)}


def _numbers(found: Forecast) -> dict[str, object]:
    return {
        "step_seconds": found.time.total,
        "memory_bytes": max(part.total for part in found.memory),
        "fits": found.fits,
        "mfu": found.speed.mfu,
    }


def _shown(working: Sequence[Candidate], top: int) -> list[tuple[int, Candidate]]:
    """The first ones and the config's own, with their places."""
    return [(place, one) for place, one in enumerate(working, start=1) if place <= top or one.is_own]


def _ranking(working: Sequence[Candidate], top: int) -> Iterator[str]:
    names = ["step", "memory", "MFU", "grid", "samples", "sequence", "schedule", "split"]
    rows = [["", *names, "recomputed"]]
    for place, one in _shown(working, top):
        assert one.found is not None
        parallel, engine = one.config.parallel, one.config.engine
        rows.append(
            [
                f"{'* ' if one.is_own else ''}{place}",
                f"{one.found.time.total:.2f} s",
                _most_memory(one.found),
                f"{one.found.speed.mfu:.1%}",
                f"{parallel.tensor}x{parallel.pipeline}x{parallel.data}",
                str(engine.microbatch_samples),
                "cut" if parallel.sequence else "whole",
                _schedule(one.config),
                parallel.stage_split.value,
                _recomputed(one.config),
            ]
        )
    yield from columns(rows, left=(len(names) + 1,))


def _schedule(config: TrainConfig) -> str:
    """With how many microbatches wait, where weight gradients do."""
    engine = config.engine
    waiting = "" if engine.deferred_weight_gradients is None else f", {engine.deferred_weight_gradients}"
    return f"{engine.pipeline_schedule.value}{waiting}"


def _recomputed(config: TrainConfig) -> str:
    """Which way, and of how many blocks where it is not all."""
    counts = config.engine.recompute_blocks
    some = "" if counts is None else f", {recomputed_layers(config)} of {config.model.num_layers}"
    return config.engine.recompute.value + some


def _reasons(candidates: Sequence[Candidate]) -> dict[str, int]:
    """How many layouts are out for which reason."""
    reasons: dict[str, int] = {}
    for one in candidates:
        if one.reason:
            kind = "needs more memory than there is" if one.reason.startswith("needs ") else one.reason
            reasons[kind] = reasons.get(kind, 0) + 1
    return reasons


def _reason_rows(candidates: Sequence[Candidate]) -> Iterator[str]:
    for reason, count in sorted(_reasons(candidates).items(), key=lambda item: -item[1]):
        first, *others = _wrapped(reason, "       ")
        yield f"{count:5}  {first.strip()}"
        yield from others


def _gain_rows(before: Forecast, gains: Sequence[Gain]) -> Iterator[str]:
    """What each change of the best layout gains."""
    rows = [["from the config's layout to the first", "alone", "gain", "memory", "one by one", "gain", "memory"]]
    start = [f"{before.time.total:.2f} s", "", _most_memory(before)]
    rows.append(["as it stands", *start, *start])
    last = before
    for number, gain in enumerate(gains, start=1):
        rows.append([f"{number}", *_cells(gain.alone, before), *_cells(gain.together, last)])
        last = gain.together.found if gain.together else last
    rows.append(["in all", "", "", "", *_total_cells(last, before)])
    yield from columns(rows, left=(0,))
    for number, gain in enumerate(gains, start=1):
        yield from _words(number, gain)
    if any(one is not None and not one.found.fits for gain in gains for one in (gain.alone, gain.together)):
        yield "  !  does not fit by itself"


def _words(number: int, gain: Gain) -> Iterator[str]:
    """What was changed: once, where it is the same alone and behind the others."""
    alone, together = (None if one is None else one.words for one in gain)
    if alone == together or alone is None or together is None:
        yield f"  {number}  {together or alone or 'fits no device, however many blocks are recomputed'}"
        return
    yield f"  {number}  alone       {alone}"
    yield f"     one by one  {together}"


def _cells(one: Changed | None, before: Forecast) -> list[str]:
    return ["cannot be", "", ""] if one is None else _total_cells(one.found, before)


def _total_cells(found: Forecast, before: Forecast) -> list[str]:
    mark = "" if found.fits else "! "
    gain = f"{before.time.total / found.time.total:.2f}x"
    return [f"{found.time.total:.2f} s", gain, f"{mark}{_most_memory(found)}"]


def _most_memory(found: Forecast) -> str:
    return format_bytes(int(max(part.total for part in found.memory)))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
