"""What data_prep/README.md says is so: its commands work, in their order, in an empty folder."""

import importlib
import logging
import re
import shlex
from pathlib import Path

import pytest

from megatron_poro.config.load import load_config
from megatron_poro.data.documents import Dropped
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.recipe import RecipeFolder

README = Path(__file__).parents[3] / "data_prep" / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The lines of a shell block."""
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


@pytest.fixture(autouse=True)
def in_an_empty_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with nothing but this one in it; what the commands set for their process is put back."""
    (tmp_path / "data_prep").symlink_to(README.parent)
    monkeypatch.chdir(tmp_path)
    package = logging.getLogger("megatron_poro")
    for name, value in (("handlers", package.handlers), ("propagate", package.propagate), ("level", package.level)):
        monkeypatch.setattr(package, name, value)


def test_five_commands_lead_from_text_to_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    (_, block) = blocks("sh")
    assert len(commands(block)) == 5
    for command in commands(block):
        assert run(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "ends with the end-of-document token" in shown
    assert "Aamu järvellä" in shown


def test_two_commands_make_all_that_the_smoke_run_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block, _) = blocks("sh")
    assert len(commands(block)) == 2
    for command in commands(block):
        assert run(command) == 0, capsys.readouterr().err
    data = load_config(["experiment=smoke_cpu"]).data
    for source in (*data.train, *data.validation):
        assert IndexedDataset(tmp_path / source.path).num_documents > 0
    assert (tmp_path / "work" / "smoke" / "tokenizer" / "tokenizer.json").exists()


def test_a_recipe_of_ones_own_is_one(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(code, encoding="utf-8")
    (recipe,) = RecipeFolder(tmp_path / "recipes").recipes
    assert list(recipe.extract({"text": "a" * 99})) == [Dropped("short")]
    assert list(recipe.extract({"text": "a" * 100})) == ["a" * 100]


def test_the_table_of_raw_files_names_the_folders_of_the_recipes() -> None:
    text = README.read_text(encoding="utf-8")
    for recipe in RecipeFolder(README.parent / "recipes" / "poro_34b").recipes:
        folder = recipe.train[0].partition("/**")[0].split("/*")[0]
        assert f"| `{folder}/" in text, recipe.name
