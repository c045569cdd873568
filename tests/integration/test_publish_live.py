"""A run, the export of its milestones and their publication at the same time; then docs/publishing.md, line by line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from megatron_poro.hub.plan import CARD_NAME
from tests.integration.publishing import environment, outcome, read_branches, start
from tests.integration.toy import ToyCorpora
from tests.support.hub.faults import Answer
from tests.support.hub.server import Hub
from tests.support.hub.witness import clone

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
LABELS = ("1k", "2k", "3k")
STEPS = {"1k": 7, "2k": 15, "3k": 23}
PUBLIC_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Live:
    """A run that was published while it trained."""

    hub: Hub
    run: Path
    training: str


@pytest.fixture(scope="module")
def live(corpora: ToyCorpora, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Trains, exports and publishes in three processes. The hub is down until the training has ended."""
    folder = tmp_path_factory.mktemp("live")
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    words = corpora.arguments(
        folder / "runs",
        "schedule.total_tokens=3k",
        "export.every_tokens=1k",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=1",
        name="mine",
    )
    with Hub(folder / "hub") as hub:
        hub.fail(Answer(503), times=10**9)
        variables = environment(hub, folder / "home")
        watches = [
            start(["export", str(run), "--watch", "--poll", "0.2"], variables),
            start(
                ["publish", str(run), "--repo", "poro/mine", "--watch", "--poll", "0.2", "--attempts", "1"], variables
            ),
        ]
        try:
            trained = outcome(start(["train", *words], variables))
            assert trained.status == 0, trained.complaints
            assert watches[1].poll() is None, watches[1].communicate()
            hub.forget()
            for ended in map(outcome, watches):
                assert ended.status == 0, ended.complaints
        finally:
            for watch in watches:
                watch.kill()
        yield Live(hub, run, trained.output)


def test_three_milestones_are_published_beside_a_run_that_does_not_wait(live: Live, tmp_path: Path) -> None:
    steps = [json.loads(line)["train/step"] for line in (live.run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS["3k"] + 1))
    assert live.hub.repository("poro/mine").branches().keys() == {"main", *LABELS}
    for label in LABELS:
        exported = {path.name: path.read_bytes() for path in (live.run / "exports" / label).iterdir()}
        files = dict(clone(live.hub.url, live.hub.token, "poro/mine", label, tmp_path / label).files)
        card = files.pop(CARD_NAME).decode()
        assert {path: content for path, content in files.items() if path != ".gitattributes"} == exported
        assert f"| {STEPS[label]} |" in card
    main = clone(live.hub.url, live.hub.token, "poro/mine", "main", tmp_path / "main").files
    assert main["model.safetensors"] == (live.run / "exports" / "3k" / "model.safetensors").read_bytes()


def test_a_fresh_process_reads_every_branch_bit_for_bit(live: Live, tmp_path: Path) -> None:
    exports = {label: live.run / "exports" / label for label in LABELS}
    read = read_branches(live.hub, "poro/mine", {**exports, "main": exports["3k"]}, tmp_path / "reader")
    assert read["main"] == read["3k"]
    assert len({numbers["bits"] for numbers in read.values()}) == 3
    assert all(int(numbers["tensors"]) > 25 and int(numbers["ids"]) > 10 for numbers in read.values())


def test_the_card_counts_what_the_run_has_read(live: Live, tmp_path: Path) -> None:
    card = clone(live.hub.url, live.hub.token, "poro/mine", "2k", tmp_path / "2k").files[CARD_NAME].decode()
    line = json.loads((live.run / "metrics.jsonl").read_text().splitlines()[STEPS["2k"] - 1])
    assert line["train/step"] == STEPS["2k"]
    for source in ("finnish", "code"):
        epochs, tokens = line[f"data/{source}/epochs"], line[f"data/{source}/consumed_tokens"]
        assert re.search(rf"^\| {source} \|  \| [\d.]+% \| {epochs:.2f} \| ", card, re.MULTILINE), (
            epochs,
            tokens,
            card,
        )
    assert f"| {line['train/loss']:.4f} |" in card


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_work_in_their_order(live: Live, tmp_path: Path) -> None:
    shutil.copytree(live.run, tmp_path / "runs" / "mine", ignore=shutil.ignore_patterns("exports"))
    (card,) = blocks("yaml")
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "card.yaml").write_text(card)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "poro").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megatron_poro.cli.main "$@"\n')
    (programs / "poro").chmod(0o755)
    variables = environment(live.hub, tmp_path / "home")
    variables |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    variables |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    typed = [line.replace("--poll 60", "--poll 0.2") for block in blocks("bash") for line in block.splitlines()]
    assert len(typed) >= 10
    address = live.hub.url.replace("://", f"://reader:{live.hub.token}@")
    said = {}
    for command in typed:
        result = subprocess.run(
            command.replace(PUBLIC_HUB, address),
            shell=True,
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        said[command] = result.stdout
    shown = blocks("text")
    assert said["poro publish runs/mine --repo acme/mine --dry-run"] == shown[0]
    assert said["poro publish runs/mine --repo acme/mine"].splitlines()[-1] == shown[1].splitlines()[-1]
    assert said["poro publish status runs/mine --repo acme/mine"] == shown[2]
    for (program,) in [blocks("python")]:
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
    text = clone(live.hub.url, live.hub.token, "acme/mine", "main", tmp_path / "read").files[CARD_NAME].decode()
    assert text.startswith("---\nlanguage:\n- fi\n- en\nlicense: apache-2.0\n")
    assert "# Mine\n" in text
    assert "## Thanks\n\nTo the reindeer.\n" in text
    assert "| Finnish | two sentences about the north |" in text
    assert live.hub.repository("acme/mine").private


def test_the_evaluation_of_the_page_is_one(live: Live, tmp_path: Path) -> None:
    from megatron_poro.hub.facts import Result, read_results

    (example,) = blocks("json")
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "1k.json").write_text(example)
    assert read_results(tmp_path, "1k") == [Result("FIN-bench", "accuracy", 66.28, 3)]


def test_the_card_file_of_the_page_opens_like_the_packaged_ones() -> None:
    (card,) = blocks("yaml")
    assert card.startswith("# ")
    assert yaml.safe_load(card)["title"] == "Mine"
