"""All processes of a run as one: they know what each of them knows, and succeed or fail together.

Files are read and written by each process alone, and a disk can fail on one node. A phase that can fail so ends with an
exchange of what went wrong where: one failure anywhere becomes the same error everywhere, and none waits for a process
that has given up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_poro.errors import PoroError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """All processes of a run and this one's place among them; a world of one needs no distributed runtime.

    Attributes:
        rank: this process's number in torch's default group.
        size: how many processes there are.
        process_group: what values and flags travel over: a group of all processes, whose backend takes tensors on the
            host; ``None`` is torch's default group.
    """

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    @classmethod
    def default(cls) -> "World":
        """The processes of torch's default group; this process alone where there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_first(self) -> bool:
        """Whether this process does what one process must do for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value, in rank order, on every process. All processes call it; values travel by pickle."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process. All processes call it."""
        return bool(self.union(int(flag)))

    def union(self, bits: int) -> int:
        """The bits that are set on any process. All processes call it.

        Args:
            bits: up to 62 flags as one number, 0 or more.
        """
        if self.size == 1:
            return bits
        merged = torch.tensor(bits, dtype=torch.int64)
        dist.all_reduce(merged, op=dist.ReduceOp.BOR, group=self.process_group)
        return int(merged)

    def numbers(self, number: float) -> list[float]:
        """Every process's number, in rank order, on every process. All processes call it; nothing is pickled."""
        if self.size == 1:
            return [number]
        numbers = torch.zeros(self.size, dtype=torch.float64)
        numbers[self.rank] = number
        dist.all_reduce(numbers, group=self.process_group)
        return [float(one) for one in numbers]

    @contextmanager
    def together(
        self,
        *,
        faults: tuple[type[BaseException], ...] = (PoroError,),
        explain: Callable[[BaseException], Exception] | None = None,
    ) -> Iterator[None]:
        """Runs a block on all processes; if it fails on one, it raises on all.

        Every process enters it, also those whose block does nothing. The block itself must not communicate after
        anything that can fail on one process alone: the others would wait for it.

        Args:
            faults: exceptions that are the input's fault; any other is a bug.
            explain: makes of one process's exception the error that all raise; its class is called with its sentence.
                By default a :class:`PoroError` stays what it is.

        Raises:
            Exception: on every process, what ``explain`` makes of the exception of the lowest rank that failed. A
                process that met a bug raises that instead, with its traceback.
        """
        caught: tuple[type[BaseException], ...] = (Exception, *faults)
        mine: BaseException | None = None
        try:
            yield
        except caught as error:
            mine = error
        told = None
        if mine is not None:
            error_of_all = (explain or _same_error)(mine)
            told = type(error_of_all), str(error_of_all)
        failures = [failure for failure in self.gather(told) if failure is not None]
        if mine is not None and not isinstance(mine, faults):
            raise mine
        if failures:
            kind, sentence = failures[0]
            raise kind(sentence) from mine


def _same_error(error: BaseException) -> Exception:
    """An error of the input as it is; of a bug, that another process has met one."""
    if isinstance(error, PoroError):
        return error
    return RuntimeError(f"another process failed ({type(error).__name__}: {error}); its own traceback says where.")
