"""A model as a git repository: revisions, listings, commits, and what a branch ever was."""

from pathlib import Path

import pytest

from tests.support.hub.exchange import Refused
from tests.support.hub.large_files import Pointer
from tests.support.hub.repository import ABSENT, GIT_ATTRIBUTES, Change, Repository

POINTER = Pointer("ab" * 32, 12_345)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "tiny.git", "poro/tiny")
    made.create(private=True)
    return made


def add(repository: Repository, *changes: Change, branch: str = "main") -> str:
    parent = repository.resolve(branch)
    return repository.commit(f"refs/heads/{branch}", parent, changes, "a change", "poro")


def test_a_new_repository_has_one_commit_with_the_patterns_of_large_files(repository: Repository) -> None:
    root = repository.resolve("main")
    assert repository.branches() == {"main": root}
    assert list(repository.files(root)) == [".gitattributes"]
    assert repository.content(repository.files(root)[".gitattributes"]) == GIT_ATTRIBUTES.encode()
    assert "*.safetensors filter=lfs" in GIT_ATTRIBUTES
    assert repository.private


def test_a_commit_adds_replaces_and_deletes(repository: Repository) -> None:
    add(repository, Change("a", b"1"), Change("folder/b", b"2"), Change("c", b"3"))
    commit = add(repository, Change("a", b"new"), Change("c", None))
    contents = {path: repository.content(entry) for path, entry in repository.files(commit).items()}
    assert contents == {".gitattributes": GIT_ATTRIBUTES.encode(), "a": b"new", "folder/b": b"2"}


def test_a_commit_on_an_old_parent_is_refused_and_changes_nothing(repository: Repository) -> None:
    root = repository.resolve("main")
    head = add(repository, Change("a", b"1"))
    with pytest.raises(Refused) as refusal:
        repository.commit("refs/heads/main", root, [Change("a", b"2")], "late")
    assert refusal.value.status == 412
    assert repository.resolve("main") == head


def test_a_large_file_is_listed_with_the_size_of_its_content(repository: Repository) -> None:
    commit = add(repository, Change("model.safetensors", POINTER.encode()), Change("small", b"x"))
    entries = repository.files(commit)
    assert entries["model.safetensors"].pointer == POINTER
    assert entries["model.safetensors"].size == 12_345
    assert entries["small"].pointer is None
    assert entries["small"].size == 1


def test_folders_are_listed_by_level(repository: Repository) -> None:
    commit = add(repository, Change("folder/a", b"1"), Change("folder/deeper/b", b"2"))
    assert [entry.path for entry in repository.entries(commit)] == [".gitattributes", "folder"]
    assert [entry.path for entry in repository.entries(commit, "folder")] == ["folder/a", "folder/deeper"]
    everything = [entry.path for entry in repository.entries(commit, recursive=True)]
    assert everything == [".gitattributes", "folder", "folder/a", "folder/deeper", "folder/deeper/b"]
    folder = repository.entry(commit, "folder")
    assert folder is not None
    assert folder.is_folder
    assert repository.entry(commit, "nothing") is None
    with pytest.raises(Refused, match="nothing does not exist"):
        repository.entries(commit, "nothing")


def test_revisions_are_branches_tags_and_commits(repository: Repository) -> None:
    root = repository.resolve("main")
    head = add(repository, Change("a", b"1"))
    repository.move("refs/heads/100B", root, expected=ABSENT)
    repository.move("refs/tags/v1", head, expected=ABSENT)
    for revision, commit in (("100B", root), ("v1", head), (head, head), (head[:8], head), ("refs/heads/100B", root)):
        assert repository.resolve(revision) == commit
    for revision in ("200B", "0" * 40, "refs/heads/200B"):
        with pytest.raises(Refused) as refusal:
            repository.resolve(revision)
        assert refusal.value.status == 404


def test_every_value_of_a_branch_is_remembered(repository: Repository) -> None:
    root = repository.resolve("main")
    first = add(repository, Change("a", b"1"))
    repository.move("refs/heads/main", root, expected=first)
    second = add(repository, Change("a", b"2"))
    assert repository.every_value("main") == [root, first, root, second]


def test_history_is_newest_first(repository: Repository) -> None:
    head = add(repository, Change("a", b"1"))
    newest, oldest = repository.history(head)
    assert (newest.sha, newest.author, newest.title) == (head, "poro", "a change")
    assert oldest.title == "initial commit"


def test_an_order_of_git_that_fails_says_so(repository: Repository) -> None:
    with pytest.raises(Refused, match="git cat-file: .*Not a valid object name"):
        repository.blob("0" * 39)
