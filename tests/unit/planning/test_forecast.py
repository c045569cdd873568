"""What a plan predicts: sums that add up, known traffic, published runs, and layouts that are out."""

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from megatron_poro.cli.main import main
from megatron_poro.config.run import AttentionBackend, PipelineSchedule, Precision, Recompute
from megatron_poro.planning.forecast import forecast
from megatron_poro.planning.intervals import checkpoint_bytes, export_bytes, save_interval
from megatron_poro.planning.layers import held_parameters, rank_layers
from megatron_poro.planning.search import search
from megatron_poro.planning.traffic import rank_traffic
from tests.unit.planning.configs import lumi_g, poro, small


def test_poro_34b_fits_and_has_the_published_steps_and_files() -> None:
    found = forecast(poro(), lumi_g(), world_size=1024)
    assert found.fits
    assert found.steps == 238_418
    assert (checkpoint_bytes(poro()), export_bytes(poro())) == (410_603_397_120, 68_433_899_520)


def test_the_parts_of_a_step_add_up_and_a_slower_machine_is_slower() -> None:
    config, machine = poro(), lumi_g()
    time = forecast(config, machine, world_size=1024).time
    assert time.total == pytest.approx(sum(dataclasses.asdict(time).values()))
    assert min(dataclasses.asdict(time).values()) > 0
    for key in ("efficiency", "peak_tflops", "module_bandwidth", "network_bandwidth", "memory_bandwidth"):
        slower = dataclasses.replace(machine, **{key: getattr(machine, key) / 2})
        assert forecast(config, slower, world_size=1024).time.total > time.total, key


def test_traffic_is_what_rings_send() -> None:
    config = small(num_layers=4, tensor=2, pipeline=2, data=2)
    config.engine.recompute = Recompute.NONE
    first, last = rank_traffic(config, world_size=8)
    microbatches = config.schedule.global_batch_samples // (2 * config.engine.microbatch_samples)
    width = 2 * config.engine.microbatch_samples * config.data.sequence_length * config.model.hidden_size
    assert first.tensor == microbatches * width * (4 * 2 + 1), "four sums a block, one for the embedding; a ring of two"
    of_loss = 3 * 4 * config.engine.microbatch_samples * config.data.sequence_length
    assert last.tensor == microbatches * (width * (4 * 2 + 1) + of_loss), "and one for the head, three of the loss"
    assert first.pipeline == last.pipeline == microbatches * width
    assert first.tie == last.tie == 4 * config.model.vocab_size * config.model.hidden_size / 2 / 2, "a replica's half"
    parameters = held_parameters(rank_layers(config)[0], 2)
    assert first.data == (4 + 2) * parameters / 2, "half of the sums, half of the weights in bf16"


def test_a_cut_sequence_needs_less_memory_and_sends_less_between_stages() -> None:
    plain, cut = poro(), poro()
    cut.parallel.sequence = True
    before = forecast(plain, lumi_g(), world_size=1024)
    after = forecast(cut, lumi_g(), world_size=1024)
    for rank in range(4):
        assert after.memory[rank].total < before.memory[rank].total
        assert after.memory[rank].weights == before.memory[rank].weights
        assert after.traffic[rank].pipeline == before.traffic[rank].pipeline / 2
        assert after.traffic[rank].data == before.traffic[rank].data
    # a forward pass sends as much; a backward pass, which begins by recomputing here, gathers two inputs a block again
    assert before.traffic[1].tensor < after.traffic[1].tensor < 1.17 * before.traffic[1].tensor


def test_a_reproducible_run_sends_whole_gradients_of_twice_the_size() -> None:
    config = small(pipeline=2, data=4)
    config.engine.precision = Precision.FP32
    plain, *_ = rank_traffic(config, world_size=8)
    config.engine.reproducible = True
    exact, *_ = rank_traffic(config, world_size=8)
    weights = plain.data / 2  # gathered, as many bytes as gradients scattered
    assert exact.data == weights + 4 * (plain.data - weights)
    assert exact.tie == 2 * 4 * plain.tie
    assert exact.pipeline == plain.pipeline


def test_more_recomputation_is_less_memory_and_more_time() -> None:
    found = {}
    for recompute in Recompute:
        config = poro()
        config.engine.recompute = recompute
        found[recompute] = forecast(config, lumi_g(), world_size=1024)
    memory = [max(part.total for part in found[mode].memory) for mode in (Recompute.NONE, Recompute.FULL)]
    assert memory[0] > memory[1]
    assert found[Recompute.NONE].time.total < found[Recompute.SELECTIVE].time.total < found[Recompute.FULL].time.total


def test_the_best_interval_between_saves_loses_least() -> None:
    found = forecast(poro(), lumi_g(), world_size=1024)
    options = {"blocked_seconds": 5.0, "restart_seconds": 900.0}
    best = save_interval(found, lumi_g(), **options)
    for steps in (best.steps // 2, best.steps * 2):
        assert save_interval(found, lumi_g(), every_steps=steps, **options).lost_share > best.lost_share


def test_a_run_without_failures_saves_once_and_loses_that() -> None:
    found = forecast(poro(), lumi_g(), world_size=1024)
    safe = dataclasses.replace(lumi_g(), node_failures_per_year=0.0)
    best = save_interval(found, safe, blocked_seconds=5.0, restart_seconds=900.0)
    assert (best.steps, best.failures) == (found.steps, 0.0)
    assert best.lost_share == pytest.approx(5.0 / (found.steps * found.time.total))
    free = save_interval(found, safe, blocked_seconds=0.0, restart_seconds=900.0, every_steps=10)
    assert free.lost_share == 0.0


def test_search_ranks_what_fits_and_says_why_the_rest_is_out() -> None:
    config = poro()
    tight = dataclasses.replace(lumi_g(), device_memory_bytes=40_000_000_000)
    config.schedule.global_batch_samples = 64
    found = search(config, tight, world_size=32, backend=AttentionBackend.FLASH)
    working = [one for one in found if one.found is not None]
    assert working == found[: len(working)]
    times = [one.found.time.total for one in working if one.found is not None]
    assert times == sorted(times)
    room = tight.device_memory_bytes - tight.reserved_bytes
    for one in found:
        if one.found is None:
            assert one.reason
        else:
            assert max(part.total for part in one.found.memory) <= room
    assert any("needs" in one.reason for one in found)
    assert {one.config.engine.pipeline_schedule for one in working} == set(PipelineSchedule)
    grids = {(one.config.parallel.tensor > 1, one.config.parallel.sequence) for one in working}
    assert grids >= {(True, False), (True, True)}
    assert (False, True) not in grids  # nothing to cut it over


def test_the_command_prints_the_plan_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "step.svg"
    words = ["plan", "experiment=poro_34b", "hardware=lumi_g", "nodes=128", "--start", "2026-01-01"]
    assert main([*words, "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "34,216,949,760 parameters" in text
    assert "4,467,309,056" in text
    assert "100B  step    23,841  2026-01-0" in text
    root = ElementTree.fromstring(picture.read_text())
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}title") if "microbatch" in (e.text or "")]
    assert len(bars) == 4 * 16 * 2


@pytest.mark.parametrize(
    "words", [[], ["parallel.pipeline=8", "parallel.data=64", "engine.pipeline_schedule=dualpipev"]]
)
def test_no_words_of_the_picture_lie_on_each_other_or_outside(words: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "step.svg"
    plan = ["plan", "experiment=poro_34b", "hardware=lumi_g", "nodes=128", *words]
    assert main([*plan, "--picture", str(picture)]) == 0
    root = ElementTree.fromstring(picture.read_text())
    lines: dict[str, list[tuple[float, float]]] = {}
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        x, width = float(text.attrib["x"]), 6.5 * len(text.text or "")
        left = x - width * {"middle": 0.5, "end": 1.0}.get(text.attrib.get("text-anchor", ""), 0.0)
        assert left >= 0
        assert left + width <= float(root.attrib["width"])
        assert float(text.attrib["y"]) + 4 <= float(root.attrib["height"])
        lines.setdefault(text.attrib["y"], []).append((left, left + width))
    for spans in lines.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(spans)):
            assert end <= start


def test_a_layout_that_does_not_fit_the_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiment=poro_34b", "hardware=lumi_g", "nodes=100"]) == 2
    assert "parallel.data" in capsys.readouterr().err


def test_a_cluster_names_its_machine_and_the_jobs_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "experiment=poro_34b", "nodes=128", "--json"]
    assert main([*words, "hardware=lumi_g"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*words, "cluster=lumi"]) == 0
    found = json.loads(capsys.readouterr().out)
    jobs, node_hours = found.pop("jobs"), found.pop("node_hours")
    assert found == alone
    # 48 hours, less a quarter for starting and a quarter for saving in time
    assert jobs == -(-found["days"] * 24 // 47.5)
    assert node_hours == pytest.approx(128 * (found["days"] * 24 + jobs / 4))
    assert main([*words, "cluster=lumi", "cluster.train.walltime=1-00:00:00"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == -(-found["days"] * 24 // 23.5)
    assert main([*words[:-1], "cluster=lumi"]) == 0
    assert f"{jobs} of 2-00:00:00" in capsys.readouterr().out


def test_a_cluster_without_a_machine_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "experiment=poro_34b", "nodes=128", "cluster=generic"]
    assert main(words) == 2
    assert "add hardware=NAME" in capsys.readouterr().err
    assert main([*words, "hardware=lumi_g"]) == 0
