"""The processes of a run: how they find each other, what each computes on, and who reports an error.

What they tell each other of flags and failures travels over gloo on the host, also when the model's tensors travel over
NCCL: asking "was anyone told to stop?" after each step must not wait for a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # public, but not in torch's __all__
from torch.distributed.rendezvous import rendezvous

from megatron_poro.config.guards import GuardsConfig
from megatron_poro.parallel.agreement import World
from megatron_poro.train.launch import Launch
from megatron_poro.train.peers import Peer
from megatron_poro.train.watchdog import Watchdog

UNGUARDED = GuardsConfig(hang_seconds=0.0, hang_startup_seconds=0.0)
"""No process is ended for taking long."""

_TIMEOUT = timedelta(minutes=30)

_SIGNS_OF_A_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
"""What gloo and torch's store say."""


def device_of(launch: Launch) -> torch.device:
    """The device this process computes on: its GPU if the machine has any, else the CPU.

    On a CPU denormal numbers are flushed to zero: they change no result that matters and slow matrix products down
    by an order of magnitude.
    """
    if not torch.cuda.is_available():
        torch.set_flush_denormal(True)
        return torch.device("cpu")
    device = torch.device("cuda", launch.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


class Processes:
    """The processes of a run, joined.

    Attributes:
        launch: this process's number among them.
        device: what this process computes on.
        world: how it agrees with the others.
        watchdog: is told what the process is doing, and ends it when it does not get on.
    """

    def __init__(
        self, launch: Launch, device: torch.device, world: World, store: Store | None, watchdog: Watchdog
    ) -> None:
        self.launch = launch
        self.device = device
        self.world = world
        self.watchdog = watchdog
        self._store = store

    def claims_report(self) -> bool:
        """True for the first process of the run that asks, so that one error is told once."""
        if self._store is None:
            return True
        try:
            return bool(self._store.add("reports", 1) == 1)
        except Exception:  # the process that held the store is gone: better told twice than not at all
            return True


def sign_of_a_lost_peer(error: BaseException) -> str | None:
    """How an error says that another process of the run is gone (its connections are closed), or None."""
    if not isinstance(error, RuntimeError):
        return None
    return next((sign for sign in _SIGNS_OF_A_LOST_PEER if sign.lower() in str(error).lower()), None)


@contextmanager
def joined(
    launch: Launch, *, needs_group: bool, folder: Path = Path(), guards: GuardsConfig = UNGUARDED
) -> Iterator[Processes]:
    """Joins the processes of a run for the length of a block.

    Processes started by a launcher meet where it says (``MASTER_ADDR`` and ``MASTER_PORT``). A process of its own
    needs no meeting, and no group unless its engine insists on one.

    Args:
        launch: what the launcher told this process.
        needs_group: make a process group even for one process.
        folder: of the run, for stacks.
        guards: how long a process may take to get on.
    """
    device = device_of(launch)
    if launch.size == 1 and not needs_group:
        with _watching(launch, World(), folder, guards) as watchdog:
            yield Processes(launch, device, World(), None, watchdog)
        return
    store = _meet(launch)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.size,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    control = None if device.type == "cpu" else dist.new_group(backend="gloo", timeout=_TIMEOUT)
    world = World(launch.rank, launch.size, control)
    with _watching(launch, world, folder, guards) as watchdog:
        yield Processes(launch, device, world, store, watchdog)
    # not after an error: the others may be waiting in a collective, and it is the launcher's part to end them
    dist.destroy_process_group()


def _watching(launch: Launch, world: World, folder: Path, guards: GuardsConfig) -> Watchdog:
    peers = world.gather(Peer.this_process(launch.rank))
    session = world.gather(datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ"))[0]
    return Watchdog(folder, peers, rank=launch.rank, session=session, guards=guards)


def _meet(launch: Launch) -> Store:
    """The store through which the processes find each other."""
    if launch.size == 1:
        return HashStore()
    store, _, _ = next(rendezvous("env://", launch.rank, launch.size, timeout=_TIMEOUT))
    assert isinstance(store, Store)
    return store
