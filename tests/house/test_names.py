"""How files are called: after what they hold, and never like a module of the standard library."""

import sys
from pathlib import Path

import pytest

from tests.house.checkout import ROOT, own_files, shown

EMPTY_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core", "stuff", "tools"}
"""Names that say nothing about what a file holds."""

DRIVERS = {"smoke"}
"""Files of launch/ that are programs of their own; every other one is a door."""


def scripts(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def test_no_file_or_folder_is_called_nothing_in_particular() -> None:
    bad = {
        shown(path) for path in own_files() for part in path.relative_to(ROOT).parts if Path(part).stem in EMPTY_NAMES
    }
    assert bad == set()


@pytest.mark.parametrize("folder", ["launch", "data_prep"])
def test_scripts_are_not_called_like_a_standard_module(folder: str) -> None:
    """Run by path, a script's folder comes first on the search path, for every library."""
    names = {path.stem for path in scripts(folder)}
    assert names
    assert names & set(sys.stdlib_module_names) == set()


def test_doors_are_short() -> None:
    """A door of launch/ only calls into the package, so that nothing of value is missing from a wheel."""
    doors = [path for path in scripts("launch") if path.stem not in DRIVERS | {"__init__"}]
    assert doors
    for door in doors:
        text = door.read_text(encoding="utf-8")
        assert "from megatron_poro.cli" in text, shown(door)
        assert len(text.splitlines()) <= 15, shown(door)


def test_every_to_do_names_an_issue() -> None:
    word = "TO" + "DO"
    for path in own_files(".py", ".yaml", ".toml", ".sh", ".sbatch"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert word not in line or f"{word}(#" in line, f"{shown(path)}:{number}"


def test_no_path_of_someones_machine() -> None:
    """Paths in the project are relative, or below a variable."""
    homes = tuple("/" + name + "/" for name in ("home", "root", "work", "Users"))
    for path in own_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for home in homes:
                at = line.find(home)
                before = line[at - 1] if at > 0 else " "
                assert at < 0 or before.isalnum() or before in "._-}~)*<>", f"{shown(path)}:{number}: {home}"
