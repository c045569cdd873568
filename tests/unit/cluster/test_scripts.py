"""The shell scripts: what is rendered for LUMI is what was looked at, and every script passes its linters."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cluster.templates import render, site_file, slurm_folder
from megatron_poro.errors import ConfigError
from tests.house.checkout import ROOT, own_files, shown
from tests.unit.cluster.rendered import GOLDEN, rendered

TEMPLATES = sorted(slurm_folder().glob("*.sbatch"))
SCRIPTS = [path for path in own_files(".sh", ".sbatch") if path.parent != GOLDEN]
LUMI = (slurm_folder() / "sites" / "lumi.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(rendered()))
def test_scripts_for_lumi_are_the_ones_that_were_looked_at(name: str) -> None:
    assert rendered()[name] == (GOLDEN / name).read_text(encoding="utf-8"), (
        "look at the difference, then run: python -m tests.unit.cluster.rendered"
    )


def test_every_template_has_a_golden_file() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(rendered())
    templates = {path.read_text(encoding="utf-8").splitlines()[3] for path in TEMPLATES}
    assert {text.splitlines()[text.splitlines().index("#") + 1] for text in rendered().values()} == templates


def linted(path: Path, folder: Path) -> Path:
    """A script as a linter can read it: the options line of a template is a comment, its words are words."""
    copy = folder / path.name
    shutil.copy(path, copy)
    return copy


@pytest.mark.parametrize("path", SCRIPTS, ids=shown)
def test_scripts_are_clean_to_shellcheck(path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    command = ["shellcheck", "--shell=bash", "--external-sources", f"--source-path={slurm_folder()}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", sorted(rendered()))
def test_rendered_scripts_are_clean_to_shellcheck_and_bash(name: str) -> None:
    assert subprocess.run(["bash", "-n", str(GOLDEN / name)], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    excluded = "SC1091,SC2154"  # what is sourced lies elsewhere
    done = subprocess.run(
        ["shellcheck", f"--exclude={excluded}", str(GOLDEN / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_scripts_are_formatted() -> None:
    if shutil.which("shfmt") is None:
        pytest.skip("shfmt is not installed: apt-get install shfmt")
    command = ["shfmt", "-d", "-i", "4", "-ci", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_templates_hold_no_setting_of_a_run() -> None:
    """What a run is stands in its config, and nowhere in shell."""
    for path in SCRIPTS:
        if path.is_relative_to(slurm_folder()):
            text = re.sub(r"^ *#.*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert not re.search(r"(model|parallel|schedule|optimizer|data|engine|run)\.\w+=", text), shown(path)


def test_a_word_that_nothing_is_known_for_is_not_left_in() -> None:
    with pytest.raises(AssertionError, match="@SITE_FILE@"):
        render(
            "command.sbatch",
            options=[],
            words={"PYTHON": "", "CONTAINER": "", "BINDS": "", "CHECKOUT": "", "SLURM_FOLDER": ""},
            raw={},
        )


def test_words_are_quoted() -> None:
    words = dict.fromkeys(("PYTHON", "CONTAINER", "BINDS", "CHECKOUT", "SLURM_FOLDER", "SITE_FILE"), "/a b/$(c)")
    text = render("command.sbatch", options=["--x"], words=words, raw={"WORDS": "export"})
    assert "PORO_PYTHON='/a b/$(c)'\n" in text
    assert "\n#SBATCH --x\n" in text


def test_unknown_site_names_the_places() -> None:
    with pytest.raises(ConfigError, match=r"cluster.site=mars: there is no .*sites/mars.sh"):
        site_file("mars")


# --- LUMI ------------------------------------------------------------------------------------------------------------


def test_masks_are_the_cores_next_to_each_gcd() -> None:
    masks = re.search(r"PORO_CPU_MASKS=(\S+)", LUMI)
    assert masks
    cores = [[core for core in range(64) if int(mask, 16) >> core & 1] for mask in masks[1].split(",")]
    firsts = (49, 57, 17, 25, 1, 9, 33, 41)
    assert cores == [list(range(first, first + 7)) for first in firsts]


@pytest.mark.parametrize(
    "line",
    [
        "NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3",
        "NCCL_NET_GDR_LEVEL=PHB",
        "FI_CXI_DEFAULT_CQ_SIZE=262144",
        "FI_CXI_DISABLE_CQ_HUGETLB=1",
        "CXI_FORK_SAFE=1",
        "CXI_FORK_SAFE_HP=1",
        "CUDA_DEVICE_MAX_CONNECTIONS=1",
        "HSA_ENABLE_SDMA=0",
        "HSA_FORCE_FINE_GRAIN_PCIE=1",
        "PYTORCH_HIP_ALLOC_CONF=max_split_size_mb:512",
        "OMP_NUM_THREADS=1",
        "TOKENIZERS_PARALLELISM=false",
    ],
)
def test_lumi_sets_what_its_guide_and_its_runs_set(line: str) -> None:
    assert exported_on_lumi()[line.partition("=")[0]] == line.partition("=")[2]


def exported_on_lumi(**variables: str) -> dict[str, str]:
    """The environment after the site's two functions, in a task of a job of whole nodes."""
    environment = {
        "PATH": os.environ["PATH"], "USER": "somebody", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NODEID": "5", **variables,
    }  # fmt: skip
    command = f"set -eu; source {ROOT}/slurm/sites/lumi.sh; site_setup; site_task; env"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_miopen_keeps_its_cache_off_lustre_and_apart_for_each_node() -> None:
    environment = exported_on_lumi()
    assert environment["MIOPEN_USER_DB_PATH"] == "/tmp/somebody-miopen-cache-5"
    assert environment["MIOPEN_CUSTOM_CACHE_DIR"] == environment["MIOPEN_USER_DB_PATH"]
    Path(environment["MIOPEN_USER_DB_PATH"]).rmdir()


def test_channels_per_peer_are_refused() -> None:
    with pytest.raises(AssertionError, match="NCCL_NCHANNELS_PER_PEER=32 is set"):
        exported_on_lumi(NCCL_NCHANNELS_PER_PEER="32")


def test_part_of_a_node_is_not_bound_to_cores_it_may_not_have() -> None:
    assert "PORO_CPU_MASKS" in exported_on_lumi()
    assert "PORO_CPU_MASKS" not in exported_on_lumi(SLURM_NTASKS_PER_NODE="2")


def test_a_task_tells_its_command_its_numbers_and_notes_how_it_ended(tmp_path: Path) -> None:
    for name in ("task.sh", "inside.sh"):
        shutil.copy(slurm_folder() / name, tmp_path)
    (tmp_path / "site.sh").write_text("site_task() { export SEEN=$1; }\n")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$RANK $LOCAL_RANK $WORLD_SIZE $SEEN $*" >>"$PORO_ATTEMPT/said"\nexit "$CODE"\n')
    python.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"], "PORO_JOB_FOLDER": str(tmp_path), "PORO_ATTEMPT": str(tmp_path),
        "PORO_STEP": "train", "PORO_PYTHON": str(python), "PORO_CONTAINER": "", "PORO_BINDS": "", "PORO_CHECKOUT": "",
        "SLURM_LOCALID": "1", "SLURM_NTASKS": "16", "SLURMD_NODENAME": "nid005000",
    }  # fmt: skip

    def end_of_task(code: int, rank: int) -> int:
        variables = {**environment, "CODE": str(code), "SLURM_PROCID": str(rank)}
        return subprocess.run([str(tmp_path / "task.sh"), "train", "-x"], env=variables, check=False).returncode

    assert end_of_task(0, rank=9) == 0
    assert (tmp_path / "said").read_text() == "9 1 16 train -m megatron_poro.cli.main train -x\n"
    assert end_of_task(75, rank=0) == 0, "a task that saved must not have the others killed"
    assert (tmp_path / "train.code").read_text() == "75\n"
    assert not (tmp_path / "train.failures").exists()
    assert end_of_task(3, rank=9) == 3
    assert (tmp_path / "train.failures").read_text().split()[1:] == ["nid005000", "9", "3"]


def test_image_without_a_new_enough_torch_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # -S: no packages
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", slurm_folder() / "container" / "install.sh"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no PyTorch 2.13 or newer" in done.stderr


def test_image_is_made_of_files_that_exist() -> None:
    definition = (slurm_folder() / "container" / "poro.def").read_text(encoding="utf-8")
    copied = [line.split()[0] for line in definition.partition("%files")[2].partition("%post")[0].splitlines() if line]
    assert copied == ["pyproject.toml", "slurm/container/install.sh"]
    assert all((ROOT / name).is_file() for name in copied)
