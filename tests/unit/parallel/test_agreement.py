"""One process alone agrees with itself; what several do is in ``tests/distributed/test_agreement.py``."""

import pytest
import torch.distributed as dist

from megatron_poro.errors import ConfigError, DataError, EngineError
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.topology import Topology


def test_a_world_of_one_agrees_with_itself_without_a_runtime() -> None:
    assert not dist.is_initialized()
    world = World.default()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.gather("x") == ["x"]
    assert world.any(True)
    assert not world.any(False)


def test_a_grid_of_one_is_a_world_of_one() -> None:
    assert ParallelGroups.single().world == ParallelGroups.create(Topology()).world == World()


def test_an_error_of_the_input_stays_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^a sentence$") as caught, World().together():
        raise ConfigError("a sentence")
    assert type(caught.value) is ConfigError


def test_an_exception_that_is_called_a_fault_is_explained() -> None:
    with (
        pytest.raises(DataError, match=r"^disk: broken$") as caught,
        World().together(faults=(OSError,), explain=lambda error: DataError(f"disk: {error}")),
    ):
        raise OSError("broken")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_bug_keeps_its_traceback() -> None:
    with (
        pytest.raises(KeyError, match="bug") as caught,
        World().together(faults=(OSError,), explain=lambda _: EngineError("for the others")),
    ):
        raise KeyError("bug")
    assert str(caught.traceback[-1].path) == __file__


def test_an_interrupt_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may never come to the exchange."""
    gathered: list[object] = []
    monkeypatch.setattr(World, "gather", lambda _, value: gathered.append(value))
    with pytest.raises(KeyboardInterrupt), World().together():
        raise KeyboardInterrupt
    assert gathered == []
