"""Imports go downward only. The contracts are in pyproject.toml; here they are run, and shown to bite."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.checkout import PACKAGE, ROOT, package_modules, shown


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the package under ``root`` with the contracts of its pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the package and its contracts that a test may break."""
    shutil.copytree(PACKAGE, tmp_path / "megatron_poro", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_are_kept() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("data/batch.py", "import megatron_poro.engine.engine", "is not allowed to import megatron_poro.engine"),
        ("models/plan.py", "import megatron_poro.data.batch", "is not allowed to import megatron_poro.data"),
        ("config/run.py", "import torch", "is not allowed to import torch"),
        ("parallel/topology.py", "import megatron_poro.parallel.shards", "is not allowed to import torch"),
        ("cli/main.py", "import transformers", "is not allowed to import transformers"),
        ("checkpoint/store.py", "import deepspeed", "is not allowed to import deepspeed"),
        ("helpers/__init__.py", "", "helpers"),
    ],
)
def test_contracts_refuse(scratch: Path, file: str, line: str, complaint: str) -> None:
    broken = scratch / "megatron_poro" / file
    broken.parent.mkdir(exist_ok=True)
    broken.write_text(f"{line}\n" + (broken.read_text(encoding="utf-8") if broken.exists() else ""), encoding="utf-8")
    result = lint_imports(scratch)
    assert result.returncode != 0
    assert complaint in " ".join((result.stdout + result.stderr).split())


def test_deepspeed_contract_names_every_room_but_the_engine() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contract = text[text.index("Only the engine room imports deepspeed") :]
    rooms = {path.stem for path in PACKAGE.iterdir() if path.stem not in ("__init__", "__pycache__", "configs", "py")}
    assert {room for room in rooms if f'"megatron_poro.{room}"' not in contract} == {"engine"}


def importing(library: str) -> list[str]:
    """Package files that import a library anywhere, inside functions too."""
    files = []
    for path, tree in package_modules():
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if any(name.split(".")[0] == library for name in names):
            files.append(shown(path))
    return files


@pytest.mark.parametrize("library", ["transformers", "wandb", "datasets", "sentencepiece", "rich", "huggingface_hub"])
def test_a_library_at_the_edge_is_imported_in_one_file(library: str) -> None:
    assert len(importing(library)) <= 1, importing(library)


def test_environment_is_read_only_at_the_top() -> None:
    """Below the command line all a function needs is in its arguments."""
    allowed = (
        "megatron_poro/cli/",
        "megatron_poro/engine/",
        "megatron_poro/logs.py",
        "megatron_poro/metrics/wandb_sink",
    )
    readers = [
        shown(path)
        for path, tree in package_modules()
        if any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree))
    ]
    assert [path for path in readers if not path.startswith(allowed)] == []


def test_init_files_hold_a_docstring_and_no_logic() -> None:
    for path, tree in package_modules():
        if path.name == "__init__.py" and path.parent != PACKAGE:
            extra = [
                node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            ]
            assert extra == [], shown(path)
