"""How long one waits for a server: tries, and pauses that double between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from megatron_poro.errors import HubUnavailableError
from megatron_poro.logs import get_logger
from megatron_poro.units import format_seconds

Answer = TypeVar("Answer")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Trouble:
    """A failure that may pass.

    Attributes:
        text: what happened, without a full stop.
        wait: seconds that the server asked to wait, or None.
    """

    text: str
    wait: float | None = None


@dataclass(frozen=True)
class Patience:
    """When to try again.

    Attributes:
        attempts: tries in all.
        first_wait: seconds before the second try; each later pause is twice as long.
        longest_wait: no pause is longer, whatever the server asks for.
        sleep: how time passes.
    """

    attempts: int = 5
    first_wait: float = 2.0
    longest_wait: float = 120.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def pause(self, attempt: int, asked: float | None = None) -> float:
        """Seconds to wait after a try that failed, the first one being 1."""
        return min(self.longest_wait, max(self.first_wait * 2.0 ** (attempt - 1), asked or 0.0))

    def ask(self, doing: str, call: Callable[[], Answer], trouble: Callable[[Exception], Trouble | None]) -> Answer:
        """Calls until there is an answer.

        Args:
            doing: what is being done, for messages: ``listing the branches of a/b``.
            call: may be repeated without harm.
            trouble: tells a failure that may pass from one that will not; of the latter it returns None or raises what
                the user is to read.

        Raises:
            HubUnavailableError: if the last try failed too.
            Exception: what ``call`` or ``trouble`` raises.
        """
        attempt = 1
        while True:
            try:
                return call()
            except Exception as error:
                passing = trouble(error)
                if passing is None:
                    raise
                if attempt >= self.attempts:
                    tries = "once" if attempt == 1 else f"{attempt} times"
                    raise HubUnavailableError(
                        f"{doing} failed: {passing.text} (tried {tries}). Nothing is half done; run the command again "
                        "later."
                    ) from error
                pause = self.pause(attempt, passing.wait)
            logger.warning("%s: %s; trying again in %s", doing, passing.text, format_seconds(pause))
            self.sleep(pause)
            attempt += 1
