"""What the documents say is so: their commands run, their links lead somewhere, the files they name exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.recipes.sample.own_texts import finnish_texts
from megatron_poro.cli.main import VERBS
from tests.house.checkout import FOLDERS, ROOT, documents, shown

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of the README that a reader may type."""
    lines = [line.split("  #")[0].strip() for block in blocks(README, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the corpus and the config that the README speaks of, far from the checkout."""
    folder = tmp_path_factory.mktemp("reader")
    experiment = folder / "my" / "configs" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    (config,) = blocks(README, "yaml")
    experiment.write_text(config, encoding="utf-8")
    records = [json.dumps({"text": document.text}) for document in finnish_texts()]
    (folder / "my" / "corpus.jsonl").write_text("\n".join(records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with what an installation puts there, started by this interpreter."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("poro", "megatron_poro.cli.main"), ("torchrun", "torch.distributed.run")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return folder


def test_commands_of_the_readme_work_in_their_order(elsewhere: Path, programs: Path) -> None:
    """All but those of make, which are the whole of CI."""
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    typed = [command for command in commands() if not command.startswith("make ")]
    assert {command.split()[0] for command in typed} == {"poro", "torchrun"}
    for command in typed:
        result = subprocess.run(
            command, shell=True, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    report = json.loads((elsewhere / "my" / "model" / "export_report.json").read_text(encoding="utf-8"))
    assert report["parity"]["met"]
    assert report["checkpoint"]["layout"] == {"tensor": 2, "pipeline": 1, "data": 1}


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for document in documents():
        text = document.read_text(encoding="utf-8")
        for words in re.findall(r"(?:`|^)make ([A-Za-z][^`\n#]*)", text, re.MULTILINE):
            named = [word for word in words.split() if re.fullmatch(r"[a-z]+", word)]
            assert named, f"{shown(document)}: make {words}"
            assert set(named[:1]) <= targets, f"{shown(document)}: make {words}"


def test_verbs_and_experiments_that_are_named_exist() -> None:
    experiments = {path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml")} | {"mine", "NAME"}
    for document in documents():
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r"`poro ([a-z]+)", text)) <= set(VERBS), shown(document)
        assert set(re.findall(r"experiment=(\w+)", text)) <= experiments, shown(document)


def test_links_between_documents_lead_somewhere() -> None:
    for document in documents():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{shown(document)}: {target}"


def test_files_that_are_named_exist() -> None:
    for document in documents():
        text = document.read_text(encoding="utf-8")
        for name in re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./]*)`", text):
            assert (ROOT / name).exists(), f"{shown(document)}: {name}"
