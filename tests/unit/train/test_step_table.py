"""The table of a profile: rows that add up, a mean, and as much as a log can take."""

import json
import re

import pytest

from megatron_poro.parallel.step_clock import Part
from megatron_poro.parallel.topology import Topology
from megatron_poro.train.step_table import MEANINGS, StepTable, column, mean_parts

GRID = Topology(tensor=2, pipeline=2)


def _parts(scale: float) -> dict[Part, float]:
    """Parts whose sum is ``36 * scale`` milliseconds, each of another length."""
    return {part: scale * (index + 1) / 1000 for index, part in enumerate(Part)}


TABLE = StepTable([2, 3, 4], GRID, [_parts(rank + 1.0) for rank in range(4)])


def test_every_part_has_a_column_and_says_what_it_means() -> None:
    assert set(MEANINGS) == set(Part)
    page = TABLE.markdown()
    for part in Part:
        assert f"- **{column(part)}**: " in page
        assert f" {column(part)} |" in page


def test_rows_of_the_page_add_up_to_their_steps() -> None:
    rows = [line for line in TABLE.markdown().splitlines() if line.startswith(("| rank", "| mean"))]
    assert [row.split("|")[1].strip() for row in rows] == [
        "rank 0: stage 0, replica 0, tensor 0",
        "rank 1: stage 0, replica 0, tensor 1",
        "rank 2: stage 1, replica 0, tensor 0",
        "rank 3: stage 1, replica 0, tensor 1",
        "mean of 4",
    ]
    for row, step in zip(rows, (36.0, 72.0, 108.0, 144.0, 90.0), strict=True):
        cells = [re.fullmatch(r"([\d.]+) \(([\d.]+) %\)", cell.strip()) for cell in row.split("|")[3:-1]]
        numbers = [(float(cell[1]), float(cell[2])) for cell in cells if cell]
        assert len(numbers) == len(Part)
        assert float(row.split("|")[2]) == step
        assert sum(milliseconds for milliseconds, _ in numbers) == pytest.approx(step, abs=0.05 * len(Part))
        assert sum(share for _, share in numbers) == pytest.approx(100.0, abs=0.05 * len(Part))


def test_numbers_for_a_program_are_not_rounded() -> None:
    record = json.loads(TABLE.json())
    assert record["steps"] == [2, 3, 4]
    assert record["topology"] == {"tensor": 2, "pipeline": 2, "data": 1}
    assert [(one["rank"], one["pipeline"], one["data"], one["tensor"]) for one in record["processes"]] == [
        (0, 0, 0, 0), (1, 0, 0, 1), (2, 1, 0, 0), (3, 1, 0, 1),
    ]  # fmt: skip
    for one in (*record["processes"], record["mean"]):
        assert one["parts_ms"].keys() == {part.value for part in Part}
        assert one["step_ms"] == sum(one["parts_ms"].values())
    assert record["mean"]["step_ms"] == pytest.approx(90.0)


def test_mean_of_parts_adds_up_to_the_mean_of_steps() -> None:
    mean = mean_parts([_parts(1.0), _parts(2.0), _parts(6.0)])
    assert mean == pytest.approx(_parts(3.0))


def test_log_of_a_large_grid_shows_the_mean_alone() -> None:
    few, many = TABLE.text(), TABLE.text(most=3)
    assert few.count("| rank ") == 4
    assert many.count("| rank ") == 0
    assert many.count("| mean of 4") == few.count("| mean of 4") == 1


@pytest.mark.parametrize(
    ("steps", "told"),
    [([7], "step 7 "), ([7, 8], "steps 7 to 8 "), ([7, 9], "steps 7 to 9 (2 that were computed) ")],
)
def test_title_says_which_steps_were_measured(steps: list[int], told: str) -> None:
    assert StepTable(steps, Topology(), [_parts(1.0)]).title().startswith(f"Where the time of {told}went")
