"""One job at a time writes to a run, on one machine or on several that share a file system.

On one machine a lock of the kernel decides: it ends with its holder, however that ends. Across machines such a lock may
be unknown or stay local, so the holder also keeps a record in ``<run>/lease/``, whose heartbeat it changes every few
seconds. Another job takes the run over once the heartbeat has stood still for as long as the record promises.

The records are numbered, and a job takes the run by creating the next number, which only one can. The highest number is
the holder, so a job that was frozen and wakes up after a takeover finds a higher one than its own before it commits a
checkpoint, and ends. A released run keeps its last record, so that numbers never repeat.

Source: fencing tokens, M. Kleppmann, "How to do distributed locking", 2016.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import IO

from megatron_poro.errors import RunInUseError, UnsavableError
from megatron_poro.logs import get_logger

LEASE_FOLDER = "lease"

_BEATS_PER_LEASE = 4
_LOOKS_PER_LEASE = 40
_NO_SUCH_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

logger = get_logger(__name__)


class LeaseLostError(UnsavableError):
    """Another job has taken the run over; this one may not write to it any more."""

    exit_status = RunInUseError.exit_status


@dataclass(frozen=True)
class LeaseRecord:
    """What a holder says of itself.

    Attributes:
        host, pid, job: for people; the job is the scheduler's number, or None.
        machine: one running system; a kernel's lock is proof for whoever runs on the same one.
        seconds: how long the heartbeat must stand still before another may take over.
        beat: the heartbeat, a number that grows.
        released: the holder has ended and let go.
    """

    host: str
    pid: int
    job: str | None
    machine: str
    seconds: float
    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        job = "" if self.job is None else f"job {self.job}, "
        return f"{job}process {self.pid} on {self.host}"

    def encode(self) -> bytes:
        """The text of a record file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Lease:
    """The right to write to a run folder.

    Args:
        folder: the run's folder; it exists.
        seconds: how long the heartbeat may stand still before another machine takes over; it beats four times as often.
        job: number of the scheduler's job, for messages.
        machine: of this process; None asks the system.
    """

    def __init__(self, folder: Path, *, seconds: float, job: str | None = None, machine: str | None = None) -> None:
        self._folder = folder / LEASE_FOLDER
        self._lock_path = folder / ".lock"
        machine = this_machine() if machine is None else machine
        self._record = LeaseRecord(socket.gethostname(), os.getpid(), job, machine, seconds)
        self._number = 0
        # a file object, not a descriptor: a run that fails while it is built lets go of it as it is forgotten
        self._lock: IO[bytes] | None = None
        self._lost = Event()
        self._ending = Event()
        self._heart: Thread | None = None
        self._seen_at = 0.0

    def acquire(self) -> bool:
        """Takes the run, or waits until its silent holder has been silent for long enough.

        Returns:
            Whether it was taken from a silent holder that may be frozen and wake up one day.

        Raises:
            RunInUseError: if another job holds the run.
            OSError: if a file cannot be made.
        """
        self._folder.mkdir(exist_ok=True)
        is_locked = self._try_lock()
        number, content = self._newest()
        holder = _decode(content)
        is_proven_dead = holder is not None and is_locked and holder.machine == self._record.machine
        is_free = number == 0 or is_proven_dead or (holder is not None and holder.released)
        silenced = not is_free and self._wait_for_silence(number, content)
        self._create(number + 1)
        for older in self._numbers():
            if older < self._number:
                self._path(older).unlink(missing_ok=True)
        self._seen_at = time.monotonic()
        self._heart = Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()
        return silenced

    def is_lost(self) -> bool:
        """Whether another job has taken the run over; looks again if the heartbeat was late."""
        if not self._lost.is_set() and time.monotonic() - self._seen_at > self._record.seconds / 2:
            with suppress(OSError):
                self._look()
        return self._lost.is_set()

    def require_held(self) -> None:
        """Called before a commit.

        Raises:
            LeaseLostError: if another job has taken the run over.
            OSError: if that cannot be found out.
        """
        self._look()
        if self._lost.is_set():
            raise LeaseLostError(self._lost_sentence())

    def release(self) -> None:
        """Lets another job have the run at once."""
        if self._heart is not None:
            self._ending.set()
            self._heart.join()
            self._heart = None
            if not self._lost.is_set():
                with suppress(OSError):  # the next job waits for silence then
                    self._write(released=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _try_lock(self) -> bool:
        """Takes the kernel's lock; False where the file system has none."""
        self._lock = self._lock_path.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            if error.errno in _NO_SUCH_LOCK:
                logger.warning(
                    "%s cannot be locked (%s): the heartbeat alone decides.", self._lock_path, error.strerror
                )
                return False
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._in_use(_decode(self._newest()[1])) from None
            raise
        return True

    def _wait_for_silence(self, number: int, content: bytes) -> bool:
        """Waits for as long as a holder promises to beat; returns False if it lets go meanwhile.

        Raises:
            RunInUseError: as soon as it beats.
        """
        holder = _decode(content)
        seconds = max(self._record.seconds, 0.0 if holder is None else holder.seconds)
        logger.info(
            "%s is held by %s; taking it over if it gives no sign for %g s",
            self._folder.parent, holder or "a job that left no name", seconds,
        )  # fmt: skip
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(seconds / _LOOKS_PER_LEASE)
            now = self._newest()
            if now != (number, content):
                found = _decode(now[1])
                if now[0] == number and found is not None and found.released:
                    return False
                raise self._in_use(found)
        return True

    def _create(self, number: int) -> None:
        """Makes the record of a number, which one process alone can."""
        try:
            descriptor = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise self._in_use(_decode(self._newest()[1])) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._record.encode())
        self._number = number

    def _beat(self) -> None:
        """The thread: shows that the job lives, and finds out if it has lost the run."""
        complained = False
        while not self._ending.wait(self._record.seconds / _BEATS_PER_LEASE):
            try:
                self._look()
                if self._lost.is_set():
                    return
                self._write(released=False)
            except OSError as error:
                if not complained:
                    logger.warning("the heartbeat in %s cannot be written (%s).", self._folder, error.strerror)
                complained = True

    def _look(self) -> None:
        """Notes whether there is a higher number than ours."""
        if max(self._numbers(), default=0) > self._number:
            self._lost.set()
        self._seen_at = time.monotonic()

    def _write(self, *, released: bool) -> None:
        self._record = LeaseRecord(**{**asdict(self._record), "beat": self._record.beat + 1, "released": released})
        partial = self._path(self._number).with_suffix(".partial")
        partial.write_bytes(self._record.encode())
        partial.replace(self._path(self._number))

    def _newest(self) -> tuple[int, bytes]:
        """Number and content of the highest record; number 0 where there is none."""
        number = max(self._numbers(), default=0)
        content = b""
        if number:
            with suppress(FileNotFoundError):
                content = self._path(number).read_bytes()
        return number, content

    def _numbers(self) -> Iterator[int]:
        for name in os.listdir(self._folder):
            stem, dot, kind = name.partition(".")
            if stem.isdecimal() and dot + kind == ".json":
                yield int(stem)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _in_use(self, holder: LeaseRecord | None) -> RunInUseError:
        who = "another job" if holder is None else f"another job ({holder})"
        return RunInUseError(
            f"run folder {self._folder.parent} is in use by {who}; wait until it has ended, or choose another run.name."
        )

    def _lost_sentence(self) -> str:
        holder = _decode(self._newest()[1])
        return (
            f"run folder {self._folder.parent} was taken over by {holder or 'another job'} while this job gave no sign "
            f"for {self._record.seconds:g} s; this job writes nothing more to it."
        )


def this_machine() -> str:
    """What tells this running system from every other one: the number the kernel drew when it started."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _decode(content: bytes) -> LeaseRecord | None:
    """A record, or None if it is not whole: its holder has just created it, or died while it did."""
    try:
        return LeaseRecord(**json.loads(content))
    except (ValueError, TypeError):
        return None
