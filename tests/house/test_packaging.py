"""What is shipped: the package with its configs and nothing else, and a command line that starts at once."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import megatron_poro
from tests.house.checkout import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    return Path(
        next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]))
    )


def run_python(code: str, *paths: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_wheel_holds_the_package_and_its_configs_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"megatron_poro"}
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "slurm").rglob("*.s*")]:
        if path.is_file():
            assert f"megatron_poro/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "megatron_poro").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names


def test_an_installed_wheel_finds_its_configs_far_from_any_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "from megatron_poro.config.paths import config_dir; print(config_dir())"
    result = run_python(code, site, cwd=tmp_path)
    assert result.stdout.strip() == str(site / "megatron_poro" / "configs"), result.stderr


def test_sdist_holds_what_is_listed_and_nothing_else(tmp_path: Path) -> None:
    archive = Path(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    tops = {name.split("/")[0] for name in names}
    folders = {"megatron_poro", "configs", "slurm", "launch", "data_prep", "benchmarks", "docs", "tests"}
    files = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    assert tops == folders | files | {"PKG-INFO", ".gitignore"}
    assert [name for name in names if name.endswith((".pyc", ".log"))] == []


def test_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    archive = Path(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # not in 3.11.2
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    again = Path(next(WheelBuilder(str(folder)).build(directory=str(tmp_path / "wheel"), versions=["standard"])))
    with zipfile.ZipFile(again) as ours, zipfile.ZipFile(wheel) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())


def test_help_starts_without_the_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom megatron_poro.cli.main import main\nsys.argv = ['poro', '--help']\n"
        "try:\n    status = main()\nexcept SystemExit as leaving:\n    status = leaving.code\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'hydra', 'omegaconf', 'numpy', 'wandb'} & set(sys.modules)\n"
        "assert not status and not heavy, (status, heavy)"
    )
    result = run_python(code, ROOT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "poro" in result.stdout
    assert "train" in result.stdout


def test_version_is_in_the_change_log() -> None:
    heading = rf"^## {re.escape(megatron_poro.__version__)}\b"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); import megatron_poro; "
        "assert set(sys.modules) - before == {'megatron_poro'}, set(sys.modules) - before"
    )
    result = run_python(code, ROOT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_lower_bounds_that_are_declared_are_those_that_are_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = project.split("\ndependencies = [")[1].split("\n]")[0]
    declared = dict(re.findall(r'^\s*"([\w-]+)>=([\d.]+)"', dependencies, re.MULTILINE))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests/lowest.txt").read_text(), re.MULTILINE))
    assert declared.keys() == tested.keys()
    for name, bound in declared.items():
        padded = [*bound.split("."), "0", "0"][:3]
        assert tested[name].split(".") == padded, name
