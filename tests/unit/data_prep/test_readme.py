"""The commands of data_prep/README.md work, in their order, in an empty folder."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[3] / "data_prep" / "README.md"


def commands() -> list[list[str]]:
    """The lines of the file's one shell block."""
    (block,) = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


def run(command: list[str]) -> int:
    """Runs ``python -m MODULE ARGUMENT...`` or ``poro ROOM ARGUMENT...`` in this process."""
    if command[:2] == ["python", "-m"]:
        module, arguments = command[2], command[3:]
    else:
        assert command[0] == "poro"
        module, arguments = f"megatron_poro.cli.{command[1]}", command[2:]
    status: int = importlib.import_module(module).main(arguments)
    return status


def test_five_commands_lead_from_text_to_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands()) == 5
    for command in commands():
        assert run(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "ends with the end-of-document token" in shown
    assert "Aamu järvellä" in shown
