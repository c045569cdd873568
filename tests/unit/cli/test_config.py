"""``poro config``: what it prints, how it ends, and that it does without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cli.config import main
from megatron_poro.cli.main import main as poro
from megatron_poro.config.load import load_config, to_yaml
from megatron_poro.errors import ConfigError

SMOKE = "experiment=smoke_cpu"


def printed(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    assert main(argv) == status
    return capsys.readouterr().out


def test_show_prints_the_config_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", SMOKE)
    assert "total_tokens: 164k" in text
    assert "${data.folder}/finnish.train" in text


def test_show_resolved_prints_what_a_run_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "show", "--resolved", SMOKE, "parallel.data=2") == to_yaml(
        load_config([SMOKE, "parallel.data=2"])
    )


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "show", SMOKE, "--resolved", "run.name=other", "run.seed=7")
    assert "name: other" in text
    assert "seed: 7" in text


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["show", SMOKE, "--resolve-all"], ["reference", "x=1"], ["sho"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2


def test_validate_prints_what_follows_for_poro_34b(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(line.split("  ", 1) for line in printed(capsys, "validate", "experiment=poro_34b").splitlines())
    text = {name: value.strip() for name, value in rows.items()}
    assert text["processes"] == "1,024 = tensor 2 x pipeline 4 x data 128"
    assert text["step"] == "4,194,304 tokens = 2,048 samples of 2,048; 16 microbatches of 1 per replica"
    assert text["run"] == (
        "238,418 steps = 999,997,571,072 tokens (2,428,928 of 1000B do not fill a step); data for 488,281,250 samples"
    )
    assert (
        text["learning rate"] == "0 to 0.00015 over 2,384.19 steps (4,882,812 samples), then cosine, 2e-05 at the end"
    )
    assert "400B = step 95,367," in text["milestones"]
    assert len(text["fingerprint"]) == 64


def test_validate_knows_the_number_of_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "4 = tensor 2 x pipeline 2 x data 1, or any multiple" in printed(capsys, "validate", SMOKE)
    text = printed(capsys, "validate", SMOKE, "--world-size", "8")
    assert "8 = tensor 2 x pipeline 2 x data 2\n" in text
    assert "4 microbatches of 2 per replica" in text


@pytest.mark.parametrize("argv", [["--world-size", "6"], ["--world-size", "0"], ["parallel.tensor=3"]])
def test_validate_refuses_what_does_not_fit(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert poro(["config", "validate", SMOKE, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("poro: ")


@pytest.mark.parametrize("command", [["config", "validate"], ["train"]])
def test_more_blocks_than_a_rank_has_are_refused_before_anything_starts(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert poro([*command, SMOKE, "engine.recompute=full", "engine.recompute_blocks=[4,0]"]) == 2
    sentence = "engine.recompute_blocks[0]=4 is more than the 2 blocks of pipeline rank 0. Use 0 to 2."
    assert sentence in capsys.readouterr().err


def test_diff_prints_each_key_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "diff", SMOKE, "vs", SMOKE, "parallel.data=2", "run.seed=7", status=1)
    assert text == "run.seed: 42 -> 7\nparallel.data: null -> 2\n"


def test_diff_of_equals_is_silent_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "diff", SMOKE, SMOKE) == ""


def test_diff_reads_a_run_folder_and_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(to_yaml(load_config([SMOKE, "optimizer.beta1=0.8"])), encoding="utf-8")
    for side in (tmp_path, tmp_path / "resolved.yaml"):
        assert printed(capsys, "diff", str(side), "vs", SMOKE, status=1) == "optimizer.beta1: 0.8 -> 0.9\n"


@pytest.mark.parametrize(
    "words", [[], [SMOKE], [SMOKE, "vs"], ["vs", SMOKE], [SMOKE, "a=1", "b=2"], ["a", "vs", "b", "vs"]]
)
def test_diff_needs_two_sides(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="does not name two configs; write LEFT vs RIGHT"):
        main(["diff", *words])


def test_a_folder_of_ones_own_configs_is_added(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke_cpu]\nrun: {name: mine}\n", encoding="utf-8"
    )
    assert "runs/mine\n" in printed(capsys, "validate", "experiment=mine", "--config-dir", str(tmp_path))


def test_no_torch_is_imported_by_any_of_it() -> None:
    code = (
        "import sys\n"
        "from megatron_poro.cli.main import main\n"
        "for argv in (['show', '--resolved', 'experiment=poro_34b'], ['validate', 'experiment=poro_34b'],\n"
        "             ['diff', 'experiment=poro_34b', 'experiment=smoke_cpu'], ['reference'], ['validate', 'x=1']):\n"
        "    main(['config', *argv])\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
