"""``poro plan`` with a simulated rank: what is refused, printed and recorded."""

import json
import subprocess
import sys

import pytest

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
