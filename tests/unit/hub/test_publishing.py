"""Whole publications into a repository in memory: what is there afterwards, and at every moment in between."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_poro.errors import CheckpointError, HubError, HubUnavailableError
from megatron_poro.hub import release as release_module
from megatron_poro.hub.details import read_details
from megatron_poro.hub.exports import LocalFile
from megatron_poro.hub.facts import read_run
from megatron_poro.hub.plan import CARD_NAME
from megatron_poro.hub.publishing import carry_out, observe
from megatron_poro.hub.release import prepare
from megatron_poro.hub.repository import Changes
from tests.unit.hub.memory_remote import ROOT_TREE, Died, MemoryRemote, Tree, described
from tests.unit.hub.run_folder import export_files, make_export, make_run

LABELS = ("2k", "4k", "6k")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", LABELS)


def publish(run: Path, remote: MemoryRemote, *, wanted: Sequence[str] | None = None) -> list[str]:
    """Plans and carries out; returns what was done."""
    release = prepare(run, remote, details=read_details(None), wanted=wanted)
    done: list[str] = []
    carry_out(release.actions, remote, say=done.append)
    return done


def model_files(tree: Tree) -> dict[str, bytes]:
    """What a library loads of a tree."""
    return {
        path: data for path, data in tree.items() if path not in (CARD_NAME, ".gitattributes", "export_report.json")
    }


def test_every_milestone_becomes_a_branch_and_main_is_the_newest(run: Path) -> None:
    remote = MemoryRemote()
    assert publish(run, remote) == [
        "create the repository",
        "upload and verify 2k",
        "upload and verify 4k",
        "upload and verify 6k",
        "point main to 6k",
    ]
    trees = remote.trees()
    assert trees.keys() == {"main", *LABELS}
    for label in LABELS:
        assert model_files(trees[label]) == export_files(label)
    assert model_files(trees["main"]) == export_files("6k")


def test_a_second_time_there_is_nothing_to_do(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote)
    writes = remote.writes
    assert publish(run, remote) == []
    assert remote.writes == writes


def test_main_follows_and_leaves_no_file_of_the_milestone_before(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    assert "model-00001-of-00002.safetensors" in remote.trees()["main"]
    assert publish(run, remote, wanted=["4k"]) == ["upload and verify 4k", "point main to 4k"]
    assert model_files(remote.trees()["main"]) == export_files("4k")


def test_an_older_milestone_that_comes_late_does_not_move_main_back(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["6k"])
    assert publish(run, remote, wanted=["2k"]) == ["upload and verify 2k", "update the card of main"]
    assert model_files(remote.trees()["main"]) == export_files("6k")
    assert b"[2k](" in remote.trees()["main"][CARD_NAME]


def test_an_export_that_is_gone_keeps_its_branch_and_its_line_in_the_card(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k", "4k"])
    shutil.rmtree(run / "exports" / "2k")
    shutil.rmtree(run / "exports" / "4k")
    publish(run, remote)
    assert model_files(remote.trees()["2k"]) == export_files("2k")
    card = remote.trees()["main"][CARD_NAME].decode()
    assert [label for label in LABELS if f"[{label}](" in card] == list(LABELS)


def test_main_can_be_finished_when_the_newest_export_is_gone(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    before = remote.heads["main"]
    publish(run, remote, wanted=["4k"])
    remote.heads["main"] = before  # as after a kill between the branch and main
    shutil.rmtree(run / "exports" / "4k")
    assert publish(run, remote, wanted=["2k"]) == ["point main to 4k"]
    assert model_files(remote.trees()["main"]) == export_files("4k")


def calls_of_a_publication(run: Path) -> int:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    before = remote.calls
    publish(run, remote)
    return remote.calls - before


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_publisher_may_be_killed_at_any_call(run: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader ever sees a part, and the next run ends where an undisturbed one does."""
    known = read_run(run, {})
    monkeypatch.setattr(release_module, "read_run", lambda *_: known)  # the same every time, and slow to read
    undisturbed = MemoryRemote()
    publish(run, undisturbed)
    whole = [ROOT_TREE, *undisturbed.trees().values()]
    calls = calls_of_a_publication(run)
    assert calls > 25
    for fatal in range(1, calls + 1):
        remote = MemoryRemote()
        publish(run, remote, wanted=["2k"])
        already = remote.calls

        def die(number: int, at: int = already + fatal) -> None:
            if number == at:
                raise Died

        setattr(remote, moment, die)
        with pytest.raises(Died):
            publish(run, remote)
        for branch, tree in remote.trees().items():
            if branch in LABELS:
                assert model_files(tree) == export_files(branch), f"{branch} after dying at call {fatal}"
        setattr(remote, moment, lambda number: None)
        publish(run, remote)
        assert remote.trees() == undisturbed.trees(), f"after dying at call {fatal}"
        for seen in remote.main_history:
            assert model_files(seen) in [model_files(tree) for tree in whole], f"main after dying at call {fatal}"


def test_a_commit_whose_answer_is_lost_counts_as_done(run: Path) -> None:
    remote = MemoryRemote()
    real = remote.commit

    def forgetful(branch: str, changes: Changes, *, message: str, parent: str) -> str:
        """The first try arrives, the second one finds the branch moved."""
        real(branch, changes, message=message, parent=parent)
        return real(branch, changes, message=message, parent=parent)

    remote.commit = forgetful  # type: ignore[method-assign]
    publish(run, remote)
    assert model_files(remote.trees()["main"]) == export_files("6k")


def test_what_the_server_spoilt_gets_no_name_and_is_sent_again(run: Path) -> None:
    remote = MemoryRemote()
    real = remote.commit

    def spoiling(branch: str, changes: Changes, *, message: str, parent: str) -> str:
        adds = {path: b"spoilt" if path == "config.json" else data for path, data in changes.adds.items()}
        return real(branch, Changes(adds, changes.copies, changes.deletes), message=message, parent=parent)

    remote.commit = spoiling  # type: ignore[method-assign]
    with pytest.raises(HubUnavailableError, match=r"config\.json differs.*was thrown away"):
        publish(run, remote)
    assert remote.trees() == {"main": ROOT_TREE}
    remote.commit = real  # type: ignore[method-assign]
    publish(run, remote)
    assert model_files(remote.trees()["main"]) == export_files("6k")


def test_main_that_somebody_else_changed_meanwhile_is_not_taken_for_done(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    real = remote.commit

    def raced(branch: str, changes: Changes, *, message: str, parent: str) -> str:
        if branch == "main":
            remote.put("main", {**remote.trees()["main"], "notes.md": b"mine"})
        return real(branch, changes, message=message, parent=parent)

    remote.commit = raced  # type: ignore[method-assign]
    with pytest.raises(HubUnavailableError, match="main of poro/tiny was changed by somebody else"):
        publish(run, remote)
    assert remote.trees()["main"]["notes.md"] == b"mine"
    remote.commit = real  # type: ignore[method-assign]
    publish(run, remote)
    assert model_files(remote.trees()["main"]) == {**export_files("6k"), "notes.md": b"mine"}


def test_a_card_that_somebody_else_changed_meanwhile_is_not_taken_for_ours(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote)
    (run / "evaluations").mkdir()
    (run / "evaluations" / "6k.json").write_text('{"results": [{"benchmark": "B", "metric": "acc", "value": 0.5}]}')
    real = remote.commit

    def raced(branch: str, changes: Changes, *, message: str, parent: str) -> str:
        remote.put(branch, {path: data for path, data in remote.trees()[branch].items() if path != CARD_NAME})
        return real(branch, changes, message=message, parent=parent)

    remote.commit = raced  # type: ignore[method-assign]
    with pytest.raises(HubUnavailableError, match="branch 6k of poro/tiny was changed by somebody else"):
        publish(run, remote)


def test_a_branch_that_somebody_else_made_meanwhile_is_not_taken_for_ours(run: Path) -> None:
    remote = MemoryRemote()
    real = remote.create_branch

    def raced(branch: str, *, commit: str) -> None:
        if branch == "4k":
            remote.put("4k", {**ROOT_TREE, "config.json": b"theirs"})
        real(branch, commit=commit)

    remote.create_branch = raced  # type: ignore[method-assign]
    with pytest.raises(HubError, match="branch 4k of poro/tiny was made by somebody else while it was uploaded"):
        publish(run, remote)
    assert model_files(remote.trees()["4k"]) == {"config.json": b"theirs"}
    assert model_files(remote.trees()["main"]) == {}


def test_a_branch_with_other_content_stops_everything_before_it_begins(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    shutil.rmtree(run / "exports" / "2k")
    make_export(run, "2k", salt="made again")
    before = remote.trees()
    with pytest.raises(
        HubError, match=r"branch 2k of poro/tiny exists with other content \(export_report\.json differs"
    ):
        publish(run, remote)
    assert remote.trees() == before


@pytest.mark.parametrize("path", ["config.json", "model-00001-of-00004.safetensors", "pytorch_model.bin"])
def test_a_main_that_holds_another_model_is_not_touched(run: Path, path: str) -> None:
    remote = MemoryRemote()
    remote.create(private=False)
    remote.put("main", {**ROOT_TREE, path: b"another model"})
    with pytest.raises(HubError, match=f"main of poro/tiny holds files that are of no milestone of this run .{path}"):
        publish(run, remote)
    assert remote.heads.keys() == {"main"}


def test_files_on_main_that_nothing_loads_stay(run: Path) -> None:
    remote = MemoryRemote()
    remote.create(private=False)
    remote.put("main", {**ROOT_TREE, "logo.png": b"reindeer", "LICENSE": b"free"})
    publish(run, remote)
    tree = remote.trees()["main"]
    assert (tree["logo.png"], tree["LICENSE"]) == (b"reindeer", b"free")
    assert publish(run, remote) == []


def test_branches_inherit_nothing_from_the_first_commit(run: Path) -> None:
    remote = MemoryRemote()
    remote.exists = True
    remote.put("main", {**ROOT_TREE, "old.safetensors": b"squashed history"})
    remote.put("main", dict(ROOT_TREE))
    publish(run, remote)
    assert model_files(remote.trees()["2k"]) == export_files("2k")


def test_a_card_that_a_person_wrote_is_left(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    own = {**remote.trees()["main"], CARD_NAME: b"# My own words\n"}
    remote.put("main", own)
    release = prepare(run, remote, details=read_details(None))
    assert release.foreign_cards == ["main"]
    publish(run, remote)
    assert remote.trees()["main"][CARD_NAME] == b"# My own words\n"
    assert model_files(remote.trees()["main"]) == export_files("6k")


def test_the_card_that_a_website_makes_is_replaced(run: Path) -> None:
    remote = MemoryRemote()
    remote.create(private=False)
    remote.put("main", {**ROOT_TREE, CARD_NAME: b"---\nlicense: mit\n---\n"})
    publish(run, remote)
    assert b"## Checkpoints" in remote.trees()["main"][CARD_NAME]


def test_new_results_reach_the_cards_and_nothing_else(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote)
    before = remote.trees()
    (run / "evaluations").mkdir()
    (run / "evaluations" / "4k.json").write_text('{"results": [{"benchmark": "B", "metric": "acc", "value": 0.5}]}')
    assert publish(run, remote) == ["update the card of 4k", "update the card of 6k", "update the card of main"]
    assert {name: model_files(tree) for name, tree in remote.trees().items()} == {
        name: model_files(tree) for name, tree in before.items()
    }


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_a_damaged_export_is_not_uploaded(run: Path, damage: str) -> None:
    remote = MemoryRemote()
    file = run / "exports" / "4k" / "model.safetensors"
    if damage == "flip":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        (file.parent / "optimizer.pt").write_bytes(b"what is this")
    with pytest.raises(CheckpointError, match=r"export .*4k is damaged: (model\.safetensors|optimizer\.pt) is"):
        publish(run, remote)
    assert not any(branch.startswith("4k") for branch in remote.heads)
    assert model_files(remote.trees()["main"]) == {}


def test_an_export_that_was_never_compared_is_published_on_request_only(run: Path) -> None:
    make_export(run, "6400", parity=None)
    remote = MemoryRemote()
    with pytest.raises(CheckpointError, match=r"6400 was never compared with its checkpoint.*--unproven"):
        publish(run, remote)
    release = prepare(run, remote, details=read_details(None), accept_unproven=True)
    assert release.labels[-1] == "6400"


def test_exports_in_the_making_and_of_other_steps_are_passed_over(run: Path) -> None:
    shutil.copytree(run / "exports" / "4k", run / "exports" / "6400.tmp")
    shutil.copytree(run / "exports" / "4k", run / "exports" / "8k.failed")
    shutil.copytree(run / "exports" / "4k", run / "exports" / "step_00000062")
    shutil.copytree(run / "exports" / "4k", run / "exports" / "9k")  # renamed by hand
    remote = MemoryRemote()
    publish(run, remote)
    assert remote.heads.keys() == {"main", *LABELS}


def test_what_an_interrupted_upload_left_is_seen_and_removed(run: Path) -> None:
    remote = MemoryRemote()
    publish(run, remote, wanted=["2k"])
    remote.put("2k.incomplete", ROOT_TREE)
    remote.put("4k.incomplete", {**ROOT_TREE, "old.bin": b"of an export that was made again"})
    assert observe(remote).staging == {"2k", "4k"}
    publish(run, remote)
    assert remote.heads.keys() == {"main", *LABELS}
    assert model_files(remote.trees()["4k"]) == export_files("4k")


def test_a_large_file_is_compared_by_sha256_and_a_small_one_by_git(tmp_path: Path) -> None:
    file = LocalFile.of_bytes(b"content")
    assert file.is_held_as(described("a.safetensors", b"content"))
    assert file.is_held_as(described("a.json", b"content"))
    assert not file.is_held_as(described("a.safetensors", b"CONTENT"))
    assert not file.is_held_as(described("a.json", b"CONTENT"))
    assert not file.is_held_as(described("a.json", b"contents"))
