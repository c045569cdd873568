"""``poro publish`` against a hub over HTTP: what readers get, what faults do, what bad input gets."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.publishing import Outcome, environment, outcome, poro, read_branches, start
from tests.integration.toy import ToyCorpora
from tests.support.hub.faults import Answer, CutUpload, Fault, LoseReply, Stall
from tests.support.hub.server import Hub
from tests.support.hub.witness import clone

REPOSITORY = "poro/toy"
MILESTONES = ("256", "512", "768")
NEWEST = MILESTONES[-1]


@pytest.fixture(scope="module")
def toy(corpora: ToyCorpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and exported run in several tensor files; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("toy")
    words = corpora.arguments(folder, "schedule.total_tokens=768", "export.every_tokens=256")
    for command in (["train", *words], ["export", str(folder / "toy"), "--milestones", "--max-shard-bytes", "60k"]):
        done = poro(command, os.environ)
        assert done.status == 0, done.complaints
    return folder / "toy"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


def publish(
    run: Path,
    hub: Hub,
    home: Path,
    *words: str,
    repository: str = REPOSITORY,
    token: str | None = None,
    xet: bool = True,
) -> Outcome:
    return poro(["publish", str(run), "--repo", repository, *words], environment(hub, home, token=token, xet=xet))


def cloned(hub: Hub, branch: str, folder: Path) -> dict[str, bytes]:
    """The model files of a branch as ``git clone`` and ``git lfs`` see them."""
    files = clone(hub.url, hub.token, REPOSITORY, branch, folder / f"clone_{branch}").files
    return {path: content for path, content in files.items() if path not in ("README.md", ".gitattributes")}


def exported(run: Path, label: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "exports" / label).iterdir()}


@pytest.mark.parametrize(
    ("xet", "part_bytes"), [(True, None), (False, None), (False, 20_000)], ids=["xet", "lfs", "parts"]
)
def test_branches_hold_the_exports_whatever_way_the_files_went(
    toy: Path, tmp_path: Path, xet: bool, part_bytes: int | None
) -> None:
    with Hub(tmp_path / "hub", xet=xet, part_bytes=part_bytes) as hub:
        done = publish(toy, hub, tmp_path / "home", xet=xet)
        assert (done.status, done.complaints) == (0, "")
        assert done.output.splitlines()[-1] == f"{REPOSITORY} holds {', '.join(MILESTONES)}; main is {NEWEST}"
        for label in MILESTONES:
            assert cloned(hub, label, tmp_path) == exported(toy, label)
        assert cloned(hub, "main", tmp_path) == exported(toy, NEWEST)


def test_a_fresh_process_reads_each_branch_bit_for_bit(toy: Path, hub: Hub, tmp_path: Path) -> None:
    assert publish(toy, hub, tmp_path / "home").status == 0
    exports = {label: toy / "exports" / label for label in MILESTONES}
    read = read_branches(hub, REPOSITORY, {**exports, "main": exports[NEWEST]}, tmp_path / "reader")
    assert read.keys() == {*MILESTONES, "main"}
    assert len({numbers["bits"] for numbers in read.values()}) == len(MILESTONES)
    for numbers in read.values():
        assert int(numbers["tensors"]) > 25
        assert int(numbers["ids"]) > 10


def test_a_second_publication_writes_nothing(toy: Path, hub: Hub, tmp_path: Path) -> None:
    assert publish(toy, hub, tmp_path / "home").status == 0
    hub.forget()
    again = publish(toy, hub, tmp_path / "home")
    assert again.status == 0
    assert {entry.method for entry in hub.log} == {"GET"}
    planned = publish(toy, hub, tmp_path / "home", "--dry-run")
    assert planned.output == f"nothing to do at {REPOSITORY}; nothing was done\n"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(toy: Path, hub: Hub, tmp_path: Path) -> None:
    planned = publish(toy, hub, tmp_path / "home", "--dry-run")
    assert planned.output.splitlines() == [
        "create the repository",
        *(f"upload and verify {label}" for label in MILESTONES),
        f"point main to {NEWEST}",
        f"5 steps to do at {REPOSITORY}; nothing was done",
    ]
    assert {entry.method for entry in hub.log} == {"GET"}


def test_status_compares_milestones_with_branches(toy: Path, hub: Hub, tmp_path: Path) -> None:
    assert publish(toy, hub, tmp_path / "home", "--milestones", MILESTONES[0]).status == 0
    variables = environment(hub, tmp_path / "home")
    words = ["publish", "status", str(toy), "--repo", REPOSITORY]
    table = [line.split() for line in poro(words, variables).output.splitlines()]
    assert table == [
        ["milestone", "step", "tokens", "checkpoint", "export", "branch", "main"],
        ["256", "2", "256", "here", "here", "published", "main"],
        ["512", "4", "512", "here", "here", "none"],
        ["768", "6", "768", "here", "here", "none"],
    ]
    record = json.loads(poro([*words, "--json"], variables).output)
    assert (record["repository"], record["main"]) == (REPOSITORY, "256")
    assert [(row["label"], row["branch"], row["is_main"]) for row in record["milestones"]] == [
        ("256", "published", True),
        ("512", "none", False),
        ("768", "none", False),
    ]


@pytest.mark.parametrize(
    ("fault", "route"),
    [
        (Answer(503), "commit"),
        (Answer(429, retry_after_seconds=1), "create branch"),
        (LoseReply(), "commit"),
        (LoseReply(), "create branch"),
        (LoseReply(), "delete branch"),
        (CutUpload(), "commit"),
        (Stall(5.0), "commit"),
        (Stall(5.0), "tree"),
    ],
    ids=str,
)
def test_trouble_that_passes_is_waited_out(toy: Path, hub: Hub, tmp_path: Path, fault: Fault, route: str) -> None:
    hub.fail(fault, route=route)
    words = ("--milestones", NEWEST, "--timeout", "2")
    done = publish(toy, hub, tmp_path / "home", *words)
    assert done.status == 0, done.complaints
    assert any(entry.fault == fault for entry in hub.log)
    assert cloned(hub, "main", tmp_path) == exported(toy, NEWEST)


def test_trouble_that_stays_is_told_with_a_status_of_its_own(toy: Path, hub: Hub, tmp_path: Path) -> None:
    hub.fail(Answer(503), route="commit", times=100)
    done = publish(toy, hub, tmp_path / "home", "--attempts", "2")
    assert done.status == 75
    assert done.sentence == (
        f"poro: uploading to branch {MILESTONES[0]}.incomplete of {REPOSITORY} failed: the server is in trouble, "
        "status 503 (injected 503) (tried 2 times). Nothing is half done; run the command again later."
    )
    assert not any(label in hub.repository(REPOSITORY).branches() for label in MILESTONES)
    hub.forget()
    assert publish(toy, hub, tmp_path / "home").status == 0
    assert cloned(hub, "main", tmp_path) == exported(toy, NEWEST)


def test_a_network_that_is_not_there_is_told(toy: Path, tmp_path: Path) -> None:
    with Hub(tmp_path / "hub") as hub:
        gone = environment(hub, tmp_path / "home")
    done = poro(["publish", str(toy), "--repo", REPOSITORY, "--attempts", "1"], gone)
    assert done.status == 75
    assert "the connection failed (ConnectError) (tried once)" in done.sentence


@pytest.mark.parametrize(
    ("which", "repository", "complaint"),
    [
        ("wrong", REPOSITORY, "listing the branches of poro/toy was refused: there is no valid token"),
        ("none", REPOSITORY, "listing the branches of poro/toy was refused: there is no valid token"),
        ("read only", REPOSITORY, "creating poro/toy was refused: the token may not write to poro/toy"),
        ("owner", "somebody/toy", "creating somebody/toy was refused: the token may not write to somebody/toy"),
        ("owner", "toy", "'toy' does not name a repository; write OWNER/NAME"),
        ("owner", "poro/to y", "'poro/to y' does not name a repository"),
    ],
)
def test_who_may_not_write_gets_one_sentence(
    toy: Path, hub: Hub, tmp_path: Path, which: str, repository: str, complaint: str
) -> None:
    token = {"wrong": "hf_wrong", "none": "", "read only": hub.read_only_token, "owner": hub.token}[which]
    done = publish(toy, hub, tmp_path / "home", repository=repository, token=token)
    assert done.status == 2
    assert done.sentence.startswith(f"poro: {complaint}")
    assert len(done.complaints.splitlines()) == 1
    assert not hub.repository("poro/toy").exists


def test_a_repository_of_somebody_else_is_left_as_it_is(toy: Path, hub: Hub, tmp_path: Path) -> None:
    assert publish(toy, hub, tmp_path / "home", "--milestones", MILESTONES[0]).status == 0
    before = hub.repository(REPOSITORY).branches()
    done = publish(toy, hub, tmp_path / "home", token=hub.stranger_token)
    assert done.status == 2
    assert "the token may not write to poro/toy" in done.sentence
    assert hub.repository(REPOSITORY).branches() == before


def test_a_token_is_written_nowhere(toy: Path, hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy, run)
    hub.fail(Answer(503), route="commit")
    hub.fail(Answer(500), route="lfs upload")
    done = [
        publish(run, hub, tmp_path / "home", xet=False),
        publish(run, hub, tmp_path / "home", token="hf_secret_that_is_wrong"),
    ]
    said = "".join(outcome.output + outcome.complaints for outcome in done)
    published = b"".join(cloned(hub, "main", tmp_path).values())
    for secret in (hub.token, "hf_secret_that_is_wrong", "Bearer"):
        assert secret not in said
        assert secret.encode() not in published
        for path in run.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_a_damaged_export_is_named_and_nothing_moves(toy: Path, hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy, run)
    assert publish(run, hub, tmp_path / "home", "--milestones", MILESTONES[0]).status == 0
    before = hub.repository(REPOSITORY).branches()
    (run / "exports" / NEWEST / "config.json").write_text("{}")
    done = publish(run, hub, tmp_path / "home", "--milestones", NEWEST)
    assert done.status == 2
    assert f"{NEWEST} is damaged: config.json is not the file that was exported" in done.sentence
    assert hub.repository(REPOSITORY).branches() == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--milestones", "999"], "has no export of milestone 999; it has 256, 512, 768. Make it with `poro export"),
        (["--card", "nobody"], "--card nobody is neither a file nor one of default or poro_34b"),
    ],
)
def test_what_is_not_there_is_named(toy: Path, hub: Hub, tmp_path: Path, words: list[str], complaint: str) -> None:
    done = publish(toy, hub, tmp_path / "home", *words)
    assert done.status == 2
    assert complaint in done.sentence


def test_a_folder_that_is_no_run_is_named(hub: Hub, tmp_path: Path) -> None:
    done = publish(tmp_path, hub, tmp_path / "home")
    assert (done.status, done.sentence) == (2, f"poro: {tmp_path} is not the folder of a run: it has no resolved.yaml.")


def test_one_publisher_at_a_time(toy: Path, hub: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(toy, run)
    shutil.rmtree(run / "exports" / NEWEST)
    variables = environment(hub, tmp_path / "home")
    watch = start(["publish", str(run), "--repo", REPOSITORY, "--watch", "--poll", "0.2"], variables)
    try:
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith("create the repository: done")
        done = publish(run, hub, tmp_path / "home")
        assert done.status == 75
        assert "another `poro publish` works on" in done.sentence
        shutil.copytree(toy / "exports" / NEWEST, run / "exports" / f"{NEWEST}.tmp")
        (run / "exports" / f"{NEWEST}.tmp").rename(run / "exports" / NEWEST)
        ended = outcome(watch)
    finally:
        watch.kill()
    assert ended.status == 0, ended.complaints
    assert ended.output.splitlines()[-1].endswith(f"holds all milestones of {run}: {', '.join(MILESTONES)}")
    assert cloned(hub, "main", tmp_path) == exported(toy, NEWEST)
