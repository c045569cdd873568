"""The judges of the campaign: each thing that would break a reader is seen by them."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.publishing.judging import (
    KILLED,
    Ending,
    different_branches,
    what_is_wrong,
    wrong_values,
    wrong_with_ending,
)
from tests.publishing.publisher import MODEL
from tests.publishing.reader import Reader, Sight, look
from tests.support.hub.faults import Answer
from tests.support.hub.large_files import Pointer
from tests.support.hub.repository import Change, Repository
from tests.support.hub.server import Hub

WEIGHTS = {"100B": b"weights of 100B", "200B": b"weights of 200B"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


MILESTONES = {
    label: {"config.json": sha256(b"{}"), "model.safetensors": sha256(weights)} for label, weights in WEIGHTS.items()
}
WHOLE = {**MILESTONES["100B"], "README.md": "the card", ".gitattributes": "patterns"}


def without(path: str) -> dict[str, str]:
    return {name: sha256 for name, sha256 in WHOLE.items() if name != path}


@pytest.mark.parametrize("files", [WHOLE, {}, {".gitattributes": "x"}, {"README.md": "x"}])
def test_a_milestone_with_its_card_is_well_and_so_is_no_model(files: Mapping[str, str]) -> None:
    assert what_is_wrong(files, MILESTONES) is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (without("config.json"), r"compared with 100B, missing \['config.json'\]"),
        ({**WHOLE, "model-00003-of-00003.safetensors": "x"}, r"more \['model-00003-of-00003.safetensors'\]"),
        ({**WHOLE, "config.json": "x"}, r"other \['config.json'\]"),
        (without("README.md"), "a model without a card"),
    ],
)
def test_anything_else_is_not(files: Mapping[str, str], said: str) -> None:
    assert re.search(said, what_is_wrong(files, MILESTONES) or "")


def test_a_mixture_of_two_milestones_is_none() -> None:
    shards = {label: {f"{part}.safetensors": f"{part} of {label}" for part in "ab"} for label in WEIGHTS}
    mixed = {"a.safetensors": "a of 100B", "b.safetensors": "b of 200B", "README.md": "card"}
    assert what_is_wrong({**shards["100B"], "README.md": "card"}, shards) is None
    assert what_is_wrong(mixed, shards) is not None


@pytest.mark.parametrize(
    ("status", "output", "said"),
    [
        (1, "poro: no.", "exit status 1"),
        (KILLED, "", "exit status -9"),
        (2, "Traceback (most recent call last):\nporo: no.", "a traceback"),
        (75, "WARNING trying again", "without a sentence"),
        (0, "Authorization: Bearer hf_secret", "the token was printed"),
    ],
)
def test_an_ending_that_nobody_should_see_is_told(status: int, output: str, said: str) -> None:
    (problem,) = wrong_with_ending(Ending(status, output), token="hf_secret", may_be_killed=False)
    assert said in problem


@pytest.mark.parametrize(
    ("status", "output"), [(0, "done"), (2, "poro: refused."), (75, "x\nporo: busy."), (KILLED, "")]
)
def test_an_ending_that_says_why_is_well(status: int, output: str) -> None:
    assert wrong_with_ending(Ending(status, output), token="hf_secret", may_be_killed=True) == []


def test_branches_that_are_missing_or_more_or_other_are_named() -> None:
    wanted = {"main": {"a": "1"}, "100B": {"a": "1"}, "200B": {"a": "2"}}
    held = {"main": {"a": "1"}, "100B": {"a": "other"}, "300B.incomplete": {}}
    assert different_branches(wanted, wanted) == []
    assert different_branches(held, wanted) == ["100B", "200B", "300B.incomplete"]


# --- the reader, and the log of a branch ---


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


def publish(repository: Repository, label: str, *, whole: bool = True) -> str:
    """Puts a milestone on ``main`` in one commit, all of it or without its config."""
    weights = WEIGHTS[label]
    repository.objects.put(sha256(weights), [weights])
    pointer = Pointer(sha256(weights), len(weights)).encode()
    config = Change("config.json", b"{}" if whole else None)
    changes = [Change("model.safetensors", pointer), config, Change("README.md", b"# card")]
    return repository.commit("refs/heads/main", repository.resolve("main"), changes, label)


def seen(hub: Hub) -> tuple[str | None, str | None]:
    return look(hub.url, hub.read_only_token, MODEL, MILESTONES)


@pytest.fixture
def repository(hub: Hub) -> Repository:
    made = hub.repository(MODEL)
    made.create(private=True)
    return made


def test_a_model_that_is_not_there_yet_is_no_failure(hub: Hub) -> None:
    assert seen(hub) == (None, None)


def test_an_empty_model_and_a_whole_one_are_read(hub: Hub, repository: Repository) -> None:
    assert seen(hub) == (repository.resolve("main"), None)
    for label in WEIGHTS:
        head = publish(repository, label)
        assert seen(hub) == (head, None)


def test_a_part_of_a_milestone_is_seen(hub: Hub, repository: Repository) -> None:
    publish(repository, "100B", whole=False)
    _, wrong = seen(hub)
    assert wrong is not None
    assert "missing ['config.json']" in wrong


def test_every_value_that_a_branch_had_is_judged(repository: Repository) -> None:
    before = publish(repository, "100B")
    assert wrong_values(repository, "main", MILESTONES, may_be_empty=True) == []
    half = publish(repository, "200B", whole=False)
    repository.move("refs/heads/main", before, expected=half)
    (problem,) = wrong_values(repository, "main", MILESTONES, may_be_empty=True)
    assert half in problem


def test_a_branch_of_a_milestone_is_never_empty(repository: Repository) -> None:
    (problem,) = wrong_values(repository, "main", MILESTONES, may_be_empty=False)
    assert "there is no model" in problem


def test_a_file_without_its_object_is_seen(hub: Hub, repository: Repository) -> None:
    publish(repository, "100B")
    repository.objects.path(sha256(WEIGHTS["100B"])).unlink()
    _, wrong = seen(hub)
    assert wrong is not None
    assert "cannot be read" in wrong


def test_a_file_that_is_not_what_is_listed_is_seen(hub: Hub, repository: Repository) -> None:
    publish(repository, "100B")
    repository.objects.path(sha256(WEIGHTS["100B"])).write_bytes(b"weights of 1OOB")
    _, wrong = seen(hub)
    assert wrong is not None
    assert "is listed as" in wrong


def test_a_reader_is_spared_the_faults_of_the_publisher(hub: Hub, repository: Repository) -> None:
    head = publish(repository, "100B")
    hub.fail(Answer(503), times=100)
    assert seen(hub) == (head, None)


def test_a_process_reads_until_it_is_stopped(hub: Hub, repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "milestones.json").write_text(json.dumps(MILESTONES))
    head = publish(repository, "100B", whole=False)
    reader = Reader(hub.url, hub.read_only_token, MODEL, tmp_path / "milestones.json")
    sight: Sight = reader.stop()
    assert sight.looks >= 1
    assert sight.heads == [head]
    assert len(sight.broken) == sight.looks
    assert head in sight.broken[0]
