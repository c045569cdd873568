"""``poro rewind`` on the folder of a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cli.ckpt import main as ckpt
from megatron_poro.cli.main import main
from megatron_poro.train.folder import RunFolder
from megatron_poro.train.lineage import read_record
from tests.unit.train.run_on_disk import contents, lines, train


def _told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """The sentence with which a command line is refused."""
    capsys.readouterr()
    assert main(["rewind", *words]) == status
    return capsys.readouterr().err


def test_run_goes_back_and_the_abandoned_branch_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, range(1, 10), saved=(3, 6, 9))
    assert main(["rewind", str(tmp_path), "--to", "6", "--skip", "7:8", "--reason", "a spike"]) == 0
    out = capsys.readouterr().out
    assert "at step 6 again; what came after it is in abandoned/1" in out
    assert "steps 7 to 8" in out
    record = read_record(tmp_path)
    assert record is not None
    assert [(one.to, str(one.skip), one.reason) for one in record.rewinds] == [(6, "7:8", "a spike")]
    assert ckpt(["ls", str(tmp_path / "abandoned" / "1")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "9"


def test_run_that_lost_its_checkpoints_begins_again_when_told_so(tmp_path: Path) -> None:
    train(tmp_path, range(1, 4), saved=(3,))
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    assert main(["rewind", str(tmp_path), "--to", "0"]) == 0
    record = read_record(tmp_path)
    assert record is not None
    assert record.committed_step == 0
    assert lines(tmp_path / "metrics.jsonl") == []


def test_run_that_a_job_holds_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, range(1, 10), saved=(3, 6, 9))
    folder = RunFolder(tmp_path, job="1234")
    folder.claim()
    before = contents(tmp_path / "checkpoints")
    assert "in use by another job (job 1234, process" in _told(capsys, str(tmp_path), "--to", "3", status=80)
    assert contents(tmp_path / "checkpoints") == before
    folder.release()
    assert main(["rewind", str(tmp_path), "--to", "3"]) == 0


def test_folder_that_is_no_run_is_refused_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not the folder of a run" in _told(capsys, str(tmp_path), "--to", "3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("skip", ["7", "a:b", "7-8", ":8", "-1:2"])
def test_range_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], skip: str) -> None:
    with pytest.raises(SystemExit):
        main(["rewind", str(tmp_path), "--to", "6", f"--skip={skip}"])
    assert "write first:last" in capsys.readouterr().err


def test_verb_needs_no_torch() -> None:
    code = "import sys, megatron_poro.cli.rewind; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
