"""``poro plan``: what is refused, printed and recorded, with a simulated rank and with a search too."""

import json
import subprocess
import sys

import pytest

from megatron_poro.cli.main import main as poro
from megatron_poro.cli.plan import main
from megatron_poro.errors import ConfigError

SMALL = (
    "experiment=smoke_cpu",
    "hardware=lumi_g",
    "engine=deepspeed",
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "parallel.data=2",
)


def test_a_rank_is_simulated_beside_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--simulate-rank", "5"]) == 0
    text = capsys.readouterr().out
    assert "simulated   rank 5 of 8: tensor 1 of 2, pipeline 1 of 2, data 0 of 2; in " in text
    assert "parameters, as planned" in text
    assert "step        taken by the optimizer" in text
    for row in ("memory at its peak", "sent in a step", "weights", "tie", "replica and world"):
        assert f"\n{row} " in text


def test_the_numbers_of_a_simulated_rank_are_for_a_program_too(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--json", "--simulate-rank", "0"])
    record = json.loads(capsys.readouterr().out)
    seen = record["simulated"]
    assert seen["coordinate"] == {"tensor": 0, "pipeline": 0, "data": 0}
    assert seen["layers"][0] == "embedding"
    assert (seen["layers_as_planned"], seen["taken"]) == (True, True)
    assert seen["memory_bytes"]["in all"]["planned"] == record["memory_bytes"][0]["total"]
    for kind in ("tensor", "pipeline", "data", "tie"):
        assert seen["sent_bytes"][kind]["simulated"] == pytest.approx(seen["sent_bytes"][kind]["planned"], rel=0.02)
    assert {"group", "size", "kind", "calls", "bytes", "shape", "format"} == set(seen["calls"][0])
    main([*SMALL, "--json"])
    assert "simulated" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--simulate-rank", "8"), "--simulate-rank 8 is outside the grid of 8 processes. Use 0 to 7."),
        (
            ("engine=local", "parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1", "--simulate-rank", "0"),
            "engine.kind=local is one process and has no rank to simulate. Use engine.kind=deepspeed, or leave "
            "--simulate-rank out.",
        ),
    ],
)
def test_what_cannot_be_simulated_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        main([*SMALL, *words])
    assert str(refusal.value) == sentence


def test_a_plan_alone_needs_no_torch() -> None:
    code = (
        "import sys; from megatron_poro.cli.plan import main; "
        "main(['experiment=poro_34b', 'hardware=lumi_g', 'nodes=128']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


SEARCH = ("experiment=smoke_cpu", "hardware=lumi_g", "engine=deepspeed", "nodes=1", "--search")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("engine.microbatch_samples=0",), "engine.microbatch_samples=0 must be at least 1."),
        (("parallel.data=0",), "parallel.data=0 must be at least 1."),
        (("nodes=0",), "nodes=0 must be at least 1."),
        (("nodes=-1",), "nodes=-1 must be at least 1."),
        (("hardware.efficiency=0",), "hardware.efficiency=0 must be a share of the peak"),
    ],
)
@pytest.mark.parametrize("words_before", [SEARCH, SEARCH[:-1]])
def test_values_that_no_plan_can_have_are_refused(
    words: tuple[str, ...], sentence: str, words_before: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert poro(["plan", *words_before, *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*SEARCH, "--top", "0"), "--top 0 must be at least 1 layout."),
        ((*SEARCH, "--picture", "step.svg"), "--picture step.svg is about one layout, and --search ranks many."),
        ((*SEARCH, "--start", "2026-01-01"), "--start 2026-01-01 is about one layout, and --search ranks many."),
        ((*SMALL, "--top", "3"), "--top 3 is how many layouts --search prints; add --search, or leave it out."),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poro(["plan", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("parallel.pipeline=8",), "parallel.pipeline=8 with engine.pipeline_schedule=1f1b needs 8 stages"),
        (
            ("parallel.tensor=4", "parallel.pipeline=4", "parallel.data=null"),
            "parallel.tensor=4 x parallel.pipeline=4 is 16 processes per model, which does not divide the 8 processes",
        ),
        (
            ("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=3"),
            "parallel.tensor=2 x parallel.pipeline=2 x parallel.data=3 is 12 processes, but this run has 8.",
        ),
    ],
)
def test_a_search_from_a_layout_that_cannot_be_says_so_and_ranks_the_others(
    words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poro(["plan", *SEARCH, *words]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"the config's own layout is out: {reason}" in text
    assert "the first, as one types it:" in text
    assert "*" not in text.split("grid:")[0], "its own is not ranked"


def test_a_search_is_for_a_program_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SEARCH, "parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2"]
    assert poro(["plan", *words, "--top", "3"]) == 0
    text = capsys.readouterr().out
    assert poro(["plan", *words, "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{found['working']} layouts of {found['tried']} work" in text
    assert sum(found["reasons"].values()) == found["tried"] - found["working"]
    assert [one["place"] for one in found["layouts"][:3]] == [1, 2, 3]
    assert found["layouts"][-1]["is_own"]
    seconds = [one["step_seconds"] for one in found["layouts"]]
    assert seconds == sorted(seconds)
    assert " ".join(found["layouts"][0]["settings"]) in " ".join(text.split())
    assert found["gains"][-1]["together"]["step_seconds"] == pytest.approx(seconds[0])
    assert found["own_is_out"] == ""


def test_the_day_of_a_milestone_is_for_a_program_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=poro_34b", "hardware=lumi_g", "nodes=128", "--json", "--start", "2026-01-01"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)["milestones"][0]
    assert (first["label"], first["step"], first["day"][:9]) == ("100B", 23_841, "2026-01-0")


def test_a_run_that_fits_without_recomputation_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "engine.recompute=full"]) == 0
    text = capsys.readouterr().out
    assert "fits without recomputation, with " in text
    assert "just fits" not in text
