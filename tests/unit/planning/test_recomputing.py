"""The recomputation that just fits: it does, one block less does not, and it costs the least time."""

import dataclasses

import pytest

from megatron_poro.cli.main import main
from megatron_poro.config.load import load_config
from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Recompute, TrainConfig
from megatron_poro.errors import ConfigError
from megatron_poro.planning import search as searching
from megatron_poro.planning.forecast import forecast
from megatron_poro.planning.gains import itemised
from megatron_poro.planning.memory import rank_memory
from megatron_poro.planning.recomputing import (
    fewest_blocks,
    least_recomputation,
    recompute_words,
    with_recompute,
)
from megatron_poro.planning.search import search
from tests.unit.planning.configs import lumi_g, poro, small

EAGER = AttentionBackend.EAGER
OPTIONS = {"world_size": 1024, "backend": EAGER}


def at(schedule: PipelineSchedule, recompute: Recompute, *, pipeline: int = 4) -> TrainConfig:
    config = with_recompute(poro(), recompute)
    config.engine.pipeline_schedule = schedule
    config.parallel.pipeline, config.parallel.data = pipeline, 512 // pipeline
    return config


def bytes_of_ranks(config: TrainConfig) -> list[float]:
    return [part.total for part in rank_memory(config, **OPTIONS)]


@pytest.mark.parametrize("schedule", list(PipelineSchedule))
@pytest.mark.parametrize("recompute", [Recompute.SELECTIVE, Recompute.FULL])
@pytest.mark.parametrize("pipeline", [2, 4, 8])
def test_it_fits_and_one_block_less_on_any_rank_does_not(
    schedule: PipelineSchedule, recompute: Recompute, pipeline: int
) -> None:
    config = at(schedule, recompute, pipeline=pipeline)
    # half-way between what all blocks recomputed need, and none
    room = (max(bytes_of_ranks(config)) + max(bytes_of_ranks(with_recompute(config, Recompute.NONE)))) / 2
    machine = dataclasses.replace(lumi_g(), device_memory_bytes=int(room), reserved_bytes=0)
    found = fewest_blocks(config, machine, **OPTIONS)
    assert found is not None
    counts = found.engine.recompute_blocks
    assert counts is not None
    assert len(counts) == pipeline
    assert 0 < sum(counts) < 54
    assert max(bytes_of_ranks(found)) <= room
    for rank, count in enumerate(counts):
        if count:
            fewer = [*counts[:rank], count - 1, *counts[rank + 1 :]]
            assert bytes_of_ranks(with_recompute(config, recompute, fewer))[rank] > room


def test_a_device_with_room_for_all_needs_none_and_one_without_cannot_be_helped() -> None:
    large = dataclasses.replace(lumi_g(), device_memory_bytes=500_000_000_000)
    least = least_recomputation(poro(), large, **OPTIONS)
    assert least is not None
    assert least.engine.recompute is Recompute.NONE
    tight = dataclasses.replace(lumi_g(), device_memory_bytes=30_000_000_000)
    assert least_recomputation(poro(), tight, **OPTIONS) is None


def test_all_blocks_are_null() -> None:
    config = small(num_layers=4, pipeline=2)
    config.engine.pipeline_schedule, config.engine.recompute = PipelineSchedule.DUALPIPEV, Recompute.FULL
    config.data.sequence_length = 1024
    options = {"world_size": 2, "backend": EAGER}
    needed = [part.total for part in rank_memory(config, **options)]
    tight = dataclasses.replace(lumi_g(), reserved_bytes=0, device_memory_bytes=int(max(needed)) + 1)
    listed = with_recompute(config, Recompute.FULL, [2, 2])
    assert [part.total for part in rank_memory(listed, **options)] == needed
    found = fewest_blocks(listed, tight, **options)
    assert found is not None
    assert found.engine.recompute_blocks is None


def test_fewer_blocks_are_less_time() -> None:
    seconds = [
        forecast(with_recompute(poro(), Recompute.FULL, counts), lumi_g(), world_size=1024).time.total
        for counts in (None, [13, 14, 14, 13], [13, 12, 9, 5], [8, 6, 2, 0], [0, 0, 0, 0])
    ]
    assert seconds[0] == seconds[1]
    assert seconds[1:] == sorted(seconds[1:], reverse=True)
    assert seconds[-1] == forecast(with_recompute(poro(), Recompute.NONE), lumi_g(), world_size=1024).time.total


def test_a_number_above_the_blocks_of_its_rank_is_refused_by_a_plan() -> None:
    with pytest.raises(ConfigError, match=r"recompute_blocks\[0\]=14 is more than the 13 blocks of pipeline rank 0"):
        rank_memory(with_recompute(poro(), Recompute.FULL, [14, 0, 0, 0]), **OPTIONS)


def test_a_search_ranks_what_just_fits_and_the_config_as_it_stands() -> None:
    config = poro()
    config.schedule.global_batch_samples, config.parallel.data = 64, 4
    tight = dataclasses.replace(lumi_g(), device_memory_bytes=60_000_000_000)
    found = search(config, tight, world_size=32, backend=AttentionBackend.EAGER)
    fitted = [one for one in found if one.found is not None and one.config.engine.recompute_blocks]
    assert fitted
    for one in fitted:
        assert recompute_words(one.config) in one.name
        assert one.found is not None
        assert one.found.fits
    (own,) = [one for one in found if one.is_own]
    assert (own.config.engine, own.config.parallel) == (config.engine, config.parallel)


def test_the_command_prints_it_as_one_types_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "experiment=poro_34b", "hardware=lumi_g", "nodes=128"]
    assert main(words) == 0
    text = capsys.readouterr().out
    (line,) = [line.strip() for line in text.splitlines() if line.startswith("  engine.recompute=")]
    assert "just fits, with " in text
    assert main([*words, *line.split()]) == 0
    text = capsys.readouterr().out
    assert "TOO LITTLE" not in text
    assert "just fits, with " not in text, "nothing is left to gain"


def test_the_command_prints_what_weight_gradients_that_wait_would_gain(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "experiment=poro_34b", "hardware=lumi_g", "nodes=128"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "fits with weight gradients that wait, with 57.1 GB: 15.00 s a step, 1.40 times as fast" in text
    (line,) = [line.strip() for line in text.splitlines() if line.startswith("  engine.deferred_weight_gradients=3 ")]
    assert main([*words, *line.split()]) == 0
    text = capsys.readouterr().out
    assert "a step takes 15.00 s" in text
    assert "weight gradients that wait" not in text, "as many wait as there is use for"
    for other in (["engine.pipeline_schedule=dualpipev"], ["parallel.pipeline=1", "parallel.data=512"]):
        assert main([*words, *other]) == 0
        assert "weight gradients that wait" not in capsys.readouterr().out


def test_the_gains_of_a_search_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=poro_34b", "parallel.data=4", "schedule.global_batch_samples=64"]
    assert main(["plan", *words, "hardware=lumi_g", "nodes=4", "--search", "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    typed = text.split("as one types it:")[1].split("\n\n")[0].split()
    found = itemised(load_config(words), load_config([*words, *typed]), lumi_g(), world_size=32, backend=EAGER)
    assert len(found) >= 3
    for gain in found:
        for changed in gain:
            assert changed is not None
            assert changed.words in " ".join(text.split())


def best_of_poro_34b() -> TrainConfig:
    """The layout of docs/scaling.md, with the fewest blocks recomputed."""
    best = load_config(
        [
            "experiment=poro_34b",
            "parallel.pipeline=8",
            "parallel.data=64",
            "parallel.sequence=true",
            "parallel.stage_split=cost",
            "engine.deferred_weight_gradients=7",
            "engine.recompute=selective",
        ]
    )
    fewest = fewest_blocks(best, lumi_g(), **OPTIONS)
    assert fewest is not None
    return fewest


def test_the_best_layout_of_poro_34b_gains_two_fifths_and_each_change_some_of_it() -> None:
    best = best_of_poro_34b()
    assert best.engine.recompute_blocks == [2, 0, 0, 0, 0, 0, 0, 0]
    found = itemised(poro(), best, lumi_g(), **OPTIONS)
    own = forecast(poro(), lumi_g(), **OPTIONS).time.total
    assert len(found) == 6
    before = own
    for gain in found:
        assert gain.alone is not None
        assert gain.together is not None
        # a longer pipeline waits longer, and pays once that is filled
        is_longer = "parallel.pipeline" in gain.together.words
        assert (gain.alone.found.time.total > own) is is_longer
        assert (gain.together.found.time.total > before) is is_longer
        before = gain.together.found.time.total
    assert before == forecast(best, lumi_g(), **OPTIONS).time.total
    assert own / before >= 1.4


def test_a_search_ranks_the_best_layout_of_poro_34b_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among pipelines of up to 8 ranks with microbatches of one sample; the whole search takes half a minute."""
    monkeypatch.setattr(searching, "MICROBATCH_SAMPLES", (1,))
    monkeypatch.setattr(searching, "LONGEST_PIPELINE", 8)
    first, *_ = search(poro(), lumi_g(), **OPTIONS)
    best = best_of_poro_34b()
    assert (first.config.engine, first.config.parallel) == (best.engine, best.parallel)


def typed(config: TrainConfig, words: str) -> TrainConfig:
    """A config with further settings, as one types them."""
    parts: dict[str, dict[str, object]] = {"engine": {}, "parallel": {}}
    values = load_config(["experiment=poro_34b", *words.split()])
    for word in words.split():
        section, _, name = word.partition("=")[0].partition(".")
        parts[section][name] = getattr(getattr(values, section), name)
    return dataclasses.replace(
        config, **{key: dataclasses.replace(getattr(config, key), **changes) for key, changes in parts.items()}
    )


@pytest.mark.parametrize("counts", [None, [13, 14, 14, 13]])
def test_the_words_of_a_gain_make_the_config_that_was_planned(counts: list[int] | None) -> None:
    """Typed behind those before them; and alone, where the last ones count the blocks of another layout."""
    own = with_recompute(poro(), Recompute.FULL, counts)
    best = fewest_blocks(at(PipelineSchedule.DUALPIPEV, Recompute.SELECTIVE), lumi_g(), **OPTIONS)
    assert best is not None
    found, together = itemised(own, best, lumi_g(), **OPTIONS), own
    for gain in found:
        if gain.alone is not None:  # ranks of DualPipeV do not have as many blocks as those counted
            alone = typed(own, gain.alone.words)
            assert forecast(alone, lumi_g(), **OPTIONS) == gain.alone.found
        assert gain.together is not None
        together = typed(together, gain.together.words)
        assert forecast(together, lumi_g(), **OPTIONS) == gain.together.found
    assert (together.engine, together.parallel) == (best.engine, best.parallel)
    assert found[-1].alone is not None
    assert "engine.recompute=full engine.recompute_blocks=[" in found[-1].alone.words
