"""Facts of a run: from its metrics where they reach, from its config where they do not."""

from pathlib import Path

import pytest

from megatron_poro.errors import DataError
from megatron_poro.hub.facts import read_results, read_run
from tests.unit.hub.run_folder import make_run, write_metrics


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", [])


def test_milestones_are_those_of_the_schedule_oldest_first(run: Path) -> None:
    facts = read_run(run, {})
    assert [(m.label, m.step, m.tokens) for m in facts.milestones.values()] == [
        ("2k", 31, 1984),
        ("4k", 62, 3968),
        ("6k", 93, 5952),
        ("6400", 100, 6400),
    ]


def test_an_export_knows_better_than_a_schedule_that_was_changed(run: Path) -> None:
    facts = read_run(run, {"3k": (46, 2944), "4k": (61, 3904)})
    assert [(m.label, m.step) for m in facts.milestones.values()] == [
        ("2k", 31),
        ("3k", 46),
        ("4k", 61),
        ("6k", 93),
        ("6400", 100),
    ]


def test_metrics_that_do_not_reach_a_milestone_say_nothing_of_it(run: Path) -> None:
    write_metrics(run, 40)
    facts = read_run(run, {})
    assert facts.milestones["2k"].loss == pytest.approx(4.69)
    assert facts.milestones["4k"].loss is None
    assert facts.milestones["4k"].consumption[0].tokens == 3968  # by the weights
    assert facts.milestones["4k"].consumption[0].epochs is None


def test_a_run_without_metrics_has_its_config(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    milestone = read_run(run, {}).milestones["2k"]
    assert milestone.tokens_per_second is None
    assert milestone.consumption[0].tokens == 1984


def test_a_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"train/step": 101, "train/lo')
    assert read_run(run, {}).milestones["6400"].loss == pytest.approx(4.0)


def test_damaged_metrics_are_named(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text('{"train/step": 1}\nrubbish\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        read_run(run, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "is not an evaluation"),
        ('{"results": [{"benchmark": "B", "metric": "m"}]}', "is not an evaluation .*'value'"),
        ('{"results": [{"benchmark": "B", "metric": "m", "value": NaN}]}', "has no number for B"),
        ("{", "is not an evaluation"),
    ],
)
def test_a_wrong_evaluation_is_refused(run: Path, text: str, complaint: str) -> None:
    (run / "evaluations").mkdir()
    (run / "evaluations" / "2k.json").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_results(run, "2k")
