"""The checkout as the house tests see it: its root, its own files, its Python modules, its documents."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_poro"

FOLDERS = ("megatron_poro", "configs", "launch", "data_prep", "slurm", "benchmarks", "docs", "tests", ".ci")
FILES = ("pyproject.toml", "Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""What the project wrote; everything else at the root is made by commands or by tools."""


def own_files(*suffixes: str) -> Iterator[Path]:
    """Every text file of the project, or those with one of the suffixes."""
    for name in FOLDERS + FILES:
        place = ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and (not suffixes or path.suffix in suffixes):
                yield path


def package_modules() -> Iterator[tuple[Path, ast.Module]]:
    """Every file of the package with its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def documents() -> list[Path]:
    """The README and everything a reader is sent to."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown(path: Path) -> str:
    """A path as it is named in a failure."""
    return path.relative_to(ROOT).as_posix()
