"""A trial: publish under fire while somebody reads, publish again, compare with a publication without faults."""

import hashlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.faults.tally import Budget, Tally
from tests.publishing.drawing import FAULTS, KILL_AT_MOMENT, TIMEOUT_SECONDS, Deck, Draw
from tests.publishing.judging import KILLED, Ending, Files, different_branches, wrong_values, wrong_with_ending
from tests.publishing.publisher import MODEL, Publisher
from tests.publishing.reader import Reader, Sight
from tests.publishing.toy_run import MILESTONES, exported_files
from tests.support.hub.faults import Call
from tests.support.hub.server import Hub
from tests.support.hub.witness import clone

CLAIM = (
    "A publication that is killed or meets faults, and is run again, ends in the branches of one that did not, byte "
    "for byte; no reader ever saw a broken main, and no milestone's branch ever held a part of it"
)
LONGEST_REPEAT = 3
PART_BYTES = 40_000


class Transport(NamedTuple):
    """How large files travel."""

    name: str
    part_bytes: int | None = None
    xet: bool = False


TRANSPORTS = (Transport("LFS"), Transport("LFS in parts", part_bytes=PART_BYTES), Transport("Xet", xet=True))


class Start(NamedTuple):
    """What the hub holds when the faults begin."""

    name: str
    milestones: tuple[str, ...]


STARTS = (Start("nothing there", ()), Start("one milestone there", (MILESTONES[0],)))


@dataclass(frozen=True)
class Control:
    """A publication without faults, from one start over one transport.

    Attributes:
        before: what the hub held before, if anything.
        traffic: kinds of its requests, in order.
        seconds: that it took.
    """

    before: Path
    traffic: tuple[str, ...]
    seconds: float


@dataclass
class Zero:
    """How often something was found that must never be, and among how many."""

    found: int = 0
    among: int = 0


class Campaign:
    """Trials on one run.

    Args:
        run: with exported milestones.
        folder: an empty one.
        random: draws.
        transports: over which to publish.
        starts: from which.
    """

    def __init__(
        self,
        run: Path,
        folder: Path,
        random: random.Random,
        *,
        transports: Sequence[Transport] = TRANSPORTS,
        starts: Sequence[Start] = STARTS,
    ) -> None:
        self.run = run
        self.folder = folder
        self.random = random
        self.milestones = exported_files(run)
        self.counts: Counter[str] = Counter()
        self.zeros: dict[str, Zero] = {}
        self.met: set[tuple[str, str]] = set()
        self.checked_by = ""
        self._milestones_file = folder / "milestones.json"
        self._milestones_file.write_text(json.dumps(self.milestones))
        self.wanted: Mapping[str, Files] = {}
        self.controls = {
            (transport, start): self._control(transport, start) for transport in transports for start in starts
        }
        self.deck = Deck([control.traffic for control in self.controls.values()], random)

    def trials(self, budget: Budget) -> Tally:
        """Makes trials until the budget is spent."""
        tally = Tally(CLAIM).run(budget, self.trial)
        tally.facts.update(self.counts)
        return tally

    def trial(self, number: int) -> str:
        """One trial; returns the kind of its first fault.

        Raises:
            AssertionError: with everything that was found wrong.
        """
        transport, start = self.random.choice(list(self.controls))
        control = self.controls[transport, start]
        lives = self.random.choice((1, 1, 1, 2, 3))
        at_once = [2 if self.random.random() < 0.2 else 1 for _ in range(lives)]
        drawn = [[self.deck.draw(control.traffic, control.seconds) for _ in range(count)] for count in at_once]
        folder = self.folder / f"trial_{number}"
        folder.mkdir()
        if start.milestones:
            shutil.copytree(control.before, folder / "hub")
        try:
            problems = self._publish_under_fire(folder, transport, drawn)
        except AssertionError as error:  # it went on for ever, or the hub itself failed: say with what it was drawn
            problems = [str(error)]
        shutil.rmtree(folder)
        assert not problems, "\n".join([f"{transport.name}, {start.name}, {drawn}", *problems])
        return drawn[0][0].kind

    def _control(self, transport: Transport, start: Start) -> Control:
        """The publication without faults that trials are compared with."""
        folder = self.folder / f"control {transport.name} {start.name}"
        folder.mkdir()
        if start.milestones:
            with self._hub(folder, transport) as hub:
                words = ("--milestones", ",".join(start.milestones))
                _demand_success(Publisher(self.run, hub, folder, *words, xet=transport.xet).wait())
            shutil.copytree(folder / "hub", folder / "before")
        with self._hub(folder, transport) as hub:
            began = time.monotonic()
            _demand_success(Publisher(self.run, hub, folder, xet=transport.xet).wait())
            seconds = time.monotonic() - began
            traffic = tuple(entry.route for entry in hub.log)
            held = self._cloned(hub, folder)
        self.wanted = self.wanted or held
        assert held == self.wanted, "publications without faults differ"
        assert held.keys() == {"main", *MILESTONES}
        return Control(folder / "before", traffic, seconds)

    # --- a trial ---

    def _publish_under_fire(self, folder: Path, transport: Transport, drawn: list[list[Draw]]) -> list[str]:
        problems: list[str] = []
        with self._hub(folder, transport) as hub, self._reader(hub) as seen:
            for draws in drawn:
                ending = self._fire(hub, folder, transport, draws)
                problems += self._judge(ending, hub, may_be_killed=any(draw.is_kill for draw in draws))
            problems += self._publish_again(hub, folder, transport)
            problems += self._judge_history(hub)
            held = self._cloned(hub, folder)
            other = [f"branch {name} differs from the control" for name in different_branches(held, self.wanted)]
            problems += self._found("branches that differ from the control", other, among=len(held))
        self.counts["heads of main that a reader saw"] += len(seen.heads)
        broken = [f"a reader saw {text}" for text in seen.broken]
        problems += self._found("broken main seen by a reader, among its looks", broken, among=seen.looks)
        return problems

    def _found(self, never: str, problems: list[str], *, among: int) -> list[str]:
        """Counts problems of one kind, and among how many they were looked for."""
        zero = self.zeros.setdefault(never, Zero())
        zero.found += len(problems)
        zero.among += among
        return problems

    def _fire(self, hub: Hub, folder: Path, transport: Transport, draws: list[Draw]) -> Ending:
        """One publication that meets what was drawn."""
        hub.forget()
        publishers: list[Publisher] = []
        for draw in draws:
            draw.order(hub, lambda: publishers[0].kill())
        words = ("--attempts", str(self.random.choice((1, 1, 2))), "--timeout", str(TIMEOUT_SECONDS))
        publishers.append(Publisher(self.run, hub, folder, *words, xet=transport.xet))
        timers = [publishers[0].kill_after(draw.seconds) for draw in draws if draw.kind == KILL_AT_MOMENT]
        ending = publishers[0].wait()
        for timer in timers:
            timer.cancel()
        self._count(hub, ending, draws)
        hub.forget()
        return ending

    def _count(self, hub: Hub, ending: Ending, draws: list[Draw]) -> None:
        """Counts what a publication under fire has met; what it has not goes back to the deck."""
        met = [entry for entry in hub.log if entry.fault is not None]
        was_killed = ending.status == KILLED
        for draw in draws:
            if draw.is_kill and was_killed:
                self.met.add((draw.kind, str(draw.skip)))
            elif not draw.is_kill and any(
                entry.fault == FAULTS[draw.kind] and entry.route == draw.route for entry in met
            ):
                self.met.add((draw.kind, draw.route))
            else:
                self.deck.put_back(draw)
        self.counts["publications under fire"] += 1
        self.counts["faults met by a request"] += sum(not isinstance(entry.fault, Call) for entry in met)
        self.counts["publications killed"] += was_killed
        self.counts["publications under fire that met nothing"] += not met and not was_killed
        self.counts[f"publications under fire that ended with {ending.status}"] += 1

    def _publish_again(self, hub: Hub, folder: Path, transport: Transport) -> list[str]:
        """The same command without faults until it succeeds; then it must have nothing left to do."""
        problems: list[str] = []
        for attempt in range(LONGEST_REPEAT):
            ending = Publisher(self.run, hub, folder, xet=transport.xet).wait()
            problems += self._judge(ending, hub, may_be_killed=False)
            if ending.status == 0:
                self.counts["repetitions until success"] += attempt + 1
                break
        else:
            problems.append(f"publishing failed {LONGEST_REPEAT} times without a fault:\n{ending.output}")
            return self._found("publications that cannot be repeated", problems, among=1)
        self._found("publications that cannot be repeated", [], among=1)
        if self.random.random() < 0.75:  # the last question takes as long as a publication
            return problems
        idle = Publisher(self.run, hub, folder, "--dry-run", xet=transport.xet).wait()
        is_done = idle.status == 0 and "nothing to do" in idle.output
        left = [] if is_done else [f"after a success there is something left to do:\n{idle.output}"]
        return problems + self._found("successes after which something was left to do", left, among=1)

    def _judge(self, ending: Ending, hub: Hub, *, may_be_killed: bool) -> list[str]:
        problems = wrong_with_ending(ending, token=hub.token, may_be_killed=may_be_killed)
        return self._found("endings with a traceback, with the token, or without a reason", problems, among=1)

    def _judge_history(self, hub: Hub) -> list[str]:
        """What is wrong with any value that any branch ever had, which git has kept a log of."""
        problems = []
        repository = hub.repository(MODEL)
        for branch in ("main", *MILESTONES):
            allowed = self.milestones if branch == "main" else {branch: self.milestones[branch]}
            wrong = wrong_values(repository, branch, allowed, may_be_empty=branch == "main")
            never = "values of main that were broken" if branch == "main" else "milestones' branches that were partial"
            problems += self._found(never, wrong, among=len(repository.every_value(branch)))
        return problems

    # --- around it ---

    @contextmanager
    def _hub(self, folder: Path, transport: Transport) -> Iterator[Hub]:
        with Hub(folder / "hub", part_bytes=transport.part_bytes) as hub:
            yield hub

    @contextmanager
    def _reader(self, hub: Hub) -> Iterator[Sight]:
        """Reads ``main`` from now on; what was seen is there when the block ends."""
        sight = Sight()
        reader = Reader(hub.url, hub.read_only_token, MODEL, self._milestones_file)
        try:
            yield sight
            vars(sight).update(vars(reader.stop()))
        finally:
            reader.kill()

    def _cloned(self, hub: Hub, folder: Path) -> dict[str, Files]:
        """Every branch as git sees it."""
        held: dict[str, Files] = {}
        for branch in hub.repository(MODEL).branches():
            found = clone(hub.url, hub.read_only_token, MODEL, branch, folder / "clones" / branch)
            self.checked_by = found.checked_by
            held[branch] = {path: hashlib.sha256(content).hexdigest() for path, content in found.files.items()}
        shutil.rmtree(folder / "clones")
        return held


def _demand_success(ending: Ending) -> None:
    assert ending.status == 0, f"a publication without faults ended with {ending.status}:\n{ending.output}"
