"""A thread in every process that ends a run which does not get on, and says why.

The main thread says what it is doing (:meth:`Watchdog.phase`). When it has said nothing for ``guards.hang_seconds``,
its watchdog writes its stacks to ``<run>/stacks/hang_<session>/rank_NNN.txt``; that the folder is there tells the
others to do the same. The lowest rank that could write reads all of them, names the odd one in ``report.txt`` (and in
``delaying.txt``, for job scripts, the ranks that others wait for), and every process leaves with ``ExitCode.HUNG``. A
process that is stopped cannot leave by itself: another one of its machine ends it.

Notable: nothing here communicates but through files, because communication is what hangs. If even this thread cannot
go on (native code holds the interpreter, or a disk or a terminal does not take what it writes), a timer of
``faulthandler`` prints the stacks and ends the process, with status 1, the only one it knows.

The same thread answers the control file ``dump-stacks``, and ends the process when another one of its machine is gone.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from megatron_poro.config.guards import GuardsConfig
from megatron_poro.logs import get_logger
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.peers import Peer
from megatron_poro.train.stacks import Stacks, capture, delaying_ones, report

STACKS_FOLDER = "stacks"
DUMP_REQUEST = Path("control") / "dump-stacks"
REPORT_NAME = "report.txt"
DELAYING_NAME = "delaying.txt"

TICK_SECONDS = 0.5
_REQUEST_TICKS = 4
_GATHER_SECONDS = 2.0
"""How long the stacks of the others are waited for."""

_REPORT_SECONDS = 1.5
"""How long a process waits for the report before it leaves."""

_GONE_SECONDS = 2.0
"""How long the main thread has to find out by itself that another process is gone: it can say more."""

_NAME_SECONDS = 1.0
"""A dying process loses its connections first and its process id a moment later: how long the id is waited for."""

_TIMER_SECONDS = 3.0
"""By how much the timer of last resort is later than the watchdog."""

logger = get_logger(__name__)


def delaying_since(folder: Path, since: float) -> list[int]:
    """The ranks that held up a run when it last hung, in order; empty if it has not, or nobody can tell.

    Args:
        folder: of the run.
        since: hangs before this time, in seconds since 1970, do not count.
    """
    told = [(path.stat().st_mtime, path) for path in (folder / STACKS_FOLDER).glob(f"hang_*/{DELAYING_NAME}")]
    when, newest = max(told, default=(0.0, folder))
    return [int(line) for line in newest.read_text().split()] if when >= since and told else []


@dataclass(frozen=True)
class _Mark:
    """What the main thread said last: its phase, how many it has named, and when."""

    phase: str
    count: int
    at: float


class Watchdog:
    """Watches the process it is made in, for the length of a ``with`` block.

    Args:
        folder: of the run.
        peers: all processes of the run, by rank.
        rank: of this one.
        session: a text that is the same on all processes, and another one each time the run is started.
        guards: how long to wait.
        leave: ends the process with an exit code, at once.
    """

    def __init__(
        self,
        folder: Path,
        peers: Sequence[Peer],
        *,
        rank: int,
        session: str,
        guards: GuardsConfig,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.peers = tuple(peers)
        self._here = self.peers[rank]
        self._folder = folder
        self._hang_folder = folder / STACKS_FOLDER / f"hang_{session}"
        self._lost_file = folder / STACKS_FOLDER / f"lost_{session}.txt"
        self._hang_seconds = guards.hang_seconds
        self._limit = guards.hang_startup_seconds
        self._leave = leave
        self._mark = _Mark("start-up", 0, time.monotonic())
        self._answered: int | None = None
        self._gone_since: float | None = None
        self._closing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def phase(self, name: str) -> None:
        """The main thread gets on, and what follows is ``name``. All processes name the same phases in one order."""
        self._mark = _Mark(name, self._mark.count + 1, time.monotonic())

    def started(self) -> None:
        """The first step is done: from now on ``guards.hang_seconds`` holds."""
        self._limit = self._hang_seconds

    def closing(self) -> None:
        """The run is over for this process: the others may be gone from now on."""
        self._closing = True

    def loss_to_tell(self, sign: str) -> str | None:
        """What to say about a process that is gone, if this process is the first of the run to say it.

        The sentence is also kept in ``<run>/stacks/lost_<session>.txt``.

        Args:
            sign: how this process noticed.
        """
        deadline = time.monotonic() + _NAME_SECONDS
        while not (gone := self._gone()) and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS / 20)
        who = ", ".join(map(str, gone)) or "another process of the run, on another machine,"
        sentence = (
            f"{who} ended before its time ({sign}); what it printed last says why. The others end too. Start again to "
            "go on from the last checkpoint."
        )
        try:
            self._hang_folder.parent.mkdir(parents=True, exist_ok=True)
            with self._lost_file.open("x") as file:
                print(sentence, file=file)
        except FileExistsError:
            return None
        except OSError:
            return sentence  # better told twice than not at all
        return sentence

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        tick = 0
        while not self._ended.wait(TICK_SECONDS):
            tick += 1
            if self._limit > 0:
                faulthandler.dump_traceback_later(self._limit + _TIMER_SECONDS, exit=True, file=2)
                if self._is_hung():
                    self._end_of_hang()
                    return
            if self._is_alone():
                self._end_of_lost_peer()
                return
            if tick % _REQUEST_TICKS == 0:
                self._answer_request()

    # --- a process that does not get on ------------------------------------------------------------------------------

    def _is_hung(self) -> bool:
        """Too quiet; or rather quiet, and another process has found itself too quiet."""
        quiet = time.monotonic() - self._mark.at
        return quiet >= self._limit or (quiet >= self._limit / 2 and self._hang_folder.is_dir())

    def _end_of_hang(self) -> None:
        began = time.monotonic()
        try:
            self._write(self._hang_folder)
            told = self._gathered(self._hang_folder, began)
            if self._is_first_of(told):
                heading = (
                    f"no process has got on for {time.monotonic() - self._mark.at:.0f} s. Stacks: {self._hang_folder}"
                )
                delaying = delaying_ones(told, [peer.rank for peer in self.peers])
                (self._hang_folder / DELAYING_NAME).write_text("".join(f"{rank}\n" for rank in delaying))
                self._tell([heading, *report(told, self.peers)], self._hang_folder)
            else:
                self._wait_for(self._hang_folder / REPORT_NAME, began + _GATHER_SECONDS + _REPORT_SECONDS)
            self._end_stopped({one.rank for one in told})
        except OSError as error:  # the disk is what hangs
            logger.error("rank %d hangs, and its stacks cannot be written: %s", self._here.rank, error)
            faulthandler.dump_traceback(file=2)
        self._leave(ExitCode.HUNG)

    def _end_stopped(self, alive: set[int]) -> None:
        """Ends the processes of this machine that wrote no stacks; the lowest rank that did does it."""
        here = [peer for peer in self.peers if peer.host == self._here.host]
        if self._here.rank == min(peer.rank for peer in here if peer.rank in alive | {self._here.rank}):
            for peer in here:
                if peer.rank not in alive and peer.rank != self._here.rank:
                    peer.kill()

    # --- a process that is gone --------------------------------------------------------------------------------------

    def _is_alone(self) -> bool:
        """Whether another process of this machine has been gone for a while, although the run is not over."""
        if self._closing or not self._gone():
            self._gone_since = None
            return False
        if self._gone_since is None:
            self._gone_since = time.monotonic()
        return time.monotonic() - self._gone_since >= _GONE_SECONDS

    def _end_of_lost_peer(self) -> None:
        sentence = self.loss_to_tell("its process id is gone")
        if sentence is not None:
            logger.error("%s", sentence)
        self._leave(ExitCode.LOST_PEER)

    def _gone(self) -> list[Peer]:
        """The other processes of this machine that have ended."""
        return [peer for peer in self.peers if peer.host == self._here.host and peer != self._here and peer.is_gone()]

    # --- a person who asks -------------------------------------------------------------------------------------------

    def _answer_request(self) -> None:
        """Writes the stacks for the control file ``dump-stacks``; the run goes on."""
        request = self._folder / DUMP_REQUEST
        try:
            asked = request.stat().st_mtime_ns
        except OSError:
            return
        if asked == self._answered:
            return
        self._answered, began = asked, time.monotonic()
        when = datetime.fromtimestamp(asked // 1_000_000_000, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        folder = self._folder / STACKS_FOLDER / when
        try:
            self._write(folder)
            # the others look for the request now and then; it stays until they have
            told = self._gathered(folder, began + _REQUEST_TICKS * TICK_SECONDS)
            if self._is_first_of(told):
                self._tell([f"stacks as asked: {folder}", *report(told, self.peers)], folder)
                request.unlink(missing_ok=True)
        except OSError as error:
            logger.error("the stacks of rank %d cannot be written: %s", self._here.rank, error)

    # --- files -------------------------------------------------------------------------------------------------------

    def _write(self, folder: Path) -> None:
        mark = self._mark
        own = capture(
            rank=self._here.rank, phase=mark.phase, marks=mark.count, quiet_seconds=time.monotonic() - mark.at
        )
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"rank_{self._here.rank:03d}.partial"
        partial.write_text(own.encode())
        partial.rename(partial.with_suffix(".txt"))

    def _gathered(self, folder: Path, began: float) -> list[Stacks]:
        """The stacks of all processes that write theirs in time, in rank order."""
        files: list[Path] = []
        while len(files) < len(self.peers) and time.monotonic() < began + _GATHER_SECONDS:
            time.sleep(TICK_SECONDS / 5)
            files = sorted(folder.glob("rank_*.txt"))
        return sorted((Stacks.decode(path.read_text()) for path in files), key=lambda one: one.rank)

    def _is_first_of(self, told: Sequence[Stacks]) -> bool:
        return self._here.rank == min((one.rank for one in told), default=self._here.rank)

    def _tell(self, lines: Sequence[str], folder: Path) -> None:
        """Prints a report from whichever process it is, and puts it beside the stacks."""
        for line in lines:
            logger.error("%s", line)
        (folder / REPORT_NAME).write_text("\n".join(lines) + "\n")

    def _wait_for(self, path: Path, deadline: float) -> None:
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS / 5)
