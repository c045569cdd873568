"""The table of metrics is complete and its keys are spelt nowhere else."""

from pathlib import Path

import pytest

import megatron_poro
from megatron_poro.metrics import names
from megatron_poro.metrics.names import ALL_METRICS, Metric, metrics_table

_PACKAGE = Path(megatron_poro.__file__).parent


def test_table_holds_every_metric_of_the_module_once() -> None:
    defined = [value for value in vars(names).values() if isinstance(value, Metric)]
    assert sorted(m.key for m in defined) == sorted(m.key for m in ALL_METRICS)
    assert len({m.key for m in ALL_METRICS}) == len(ALL_METRICS)


def test_keys_are_spelt_only_in_names() -> None:
    quoted = [f'"{metric.key}"' for metric in ALL_METRICS]
    spelt = {
        path.relative_to(_PACKAGE).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if any(key in path.read_text() for key in quoted)
    }
    assert spelt == {"metrics/names.py"}


def test_metric_of_a_source_names_it() -> None:
    assert names.SOURCE_LOSS.of("finnish") == "data/finnish/loss"
    with pytest.raises(AssertionError, match="not a metric per source"):
        names.LOSS.of("finnish")


def test_table_has_a_row_for_every_metric() -> None:
    rows = metrics_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [m.key for m in ALL_METRICS]
    assert all(row.count("|") == 5 for row in rows)


def test_documentation_holds_the_table() -> None:
    documentation = (_PACKAGE.parent / "docs" / "metrics.md").read_text()
    assert documentation.endswith(metrics_table()), "write metrics_table() to the end of docs/metrics.md"
