"""What a disk does is told as a CheckpointError; for several processes see ``tests/distributed/checkpoint``."""

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from megatron_poro.checkpoint.phases import phase
from megatron_poro.errors import CheckpointError, DataError
from megatron_poro.parallel.agreement import World


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_what_a_disk_says_is_explained(kind: type[Exception]) -> None:
    with pytest.raises(CheckpointError, match=r"^disk: broken$"), phase(World(), lambda error: f"disk: {error}"):
        raise kind("broken")


def test_what_torch_wraps_is_explained_by_its_cause() -> None:
    failures = {3: (OSError("broken"), None), 5: (OSError("broken too"), None)}
    with pytest.raises(CheckpointError, match=r"^disk: broken$"), phase(World(), lambda error: f"disk: {error}"):
        raise CheckpointException("write", failures)  # type: ignore[arg-type]  # torch leaves out traces as well


def test_our_own_errors_keep_their_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"^a tokenizer is missing$"), phase(World(), lambda _: "never asked"):
        raise DataError("a tokenizer is missing")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="bug") as caught, phase(World()):
        raise KeyError("bug")
    assert str(caught.traceback[-1].path) == __file__
