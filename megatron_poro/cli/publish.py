"""``poro publish``: the milestones of a run as branches of a repository on the Hub; ``poro publish status``: how far.

It looks at exports only, so it runs beside a training job and beside ``poro export``, on a machine without torch.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from megatron_poro import locks
from megatron_poro.checkpoint.export_report import REPORT_NAME
from megatron_poro.checkpoint.locating import EXPORTS_FOLDER
from megatron_poro.errors import CheckpointError, HubUnavailableError
from megatron_poro.hub.details import read_details
from megatron_poro.hub.exports import is_label
from megatron_poro.hub.facts import CONFIG_NAME, EVALUATIONS_FOLDER, require_run
from megatron_poro.hub.patience import Patience
from megatron_poro.hub.publishing import carry_out
from megatron_poro.hub.release import Release, Standing, prepare, standings
from megatron_poro.hub.remote import HubRemote
from megatron_poro.hub.repository import Remote
from megatron_poro.logs import configure, get_logger
from megatron_poro.units import format_seconds

LOCK_NAME = ".publish.lock"

logger = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs ``poro publish`` or ``poro publish status`` with the arguments after it; returns the exit status."""
    configure()
    words = list(argv)
    if words[:1] == ["status"]:
        return _status(_status_parser().parse_args(words[1:]))
    arguments = _parser().parse_args(words)
    remote = _remote(arguments)
    if not arguments.watch:
        require_run(arguments.run)
    elif not arguments.run.is_dir():
        raise CheckpointError(f"{arguments.run} is not a folder: give the run folder, <run.root>/<run.name>.")
    if arguments.dry_run:
        return _announce(_prepared(arguments, remote), remote)
    with ExitStack() as stack:
        _work_alone(arguments.run, stack)
        return _watch(arguments, remote) if arguments.watch else _publish(arguments, remote)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro publish",
        description="Uploads exported milestones, each to a branch of its own, verifies every file against the server, "
        "and then points main to the newest. What is there already is not sent again. `poro publish status` compares. "
        "Status 0: done. 2: something is wrong with the input or the repository. 75: the Hub could not be reached or "
        "is in trouble; run the same command again later.",
    )
    _add_repository(parser)
    parser.add_argument(
        "--milestones",
        type=_labels,
        metavar="all|LABEL,LABEL",
        help="which milestones, such as 100B,200B (default: every export of the run)",
    )
    parser.add_argument(
        "--card", metavar="FILE|NAME", help="what the model card needs and the run does not know (docs/publishing.md)"
    )
    parser.add_argument("--private", action="store_true", help="if the repository is made, only its owners see it")
    parser.add_argument("--unproven", action="store_true", help="also publish what was exported with --no-parity")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    how.add_argument(
        "--watch",
        action="store_true",
        help="publish each further milestone when its export is there, until the run's last; may be killed at any time",
    )
    parser.add_argument(
        "--poll",
        type=_positive(float),
        default=60.0,
        metavar="SECONDS",
        help="between two looks of --watch (default: 60)",
    )
    return parser


def _status_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro publish status", description="The milestones of a run against the branches of a repository."
    )
    _add_repository(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository on the Hub")
    parser.add_argument(
        "--attempts", type=_positive(int), default=5, metavar="N", help="tries of a request (default 5)"
    )
    parser.add_argument(
        "--timeout",
        type=_positive(float),
        default=60.0,
        metavar="SECONDS",
        help="silence after which a request counts as failed (default 60)",
    )


def _labels(text: str) -> list[str] | None:
    if text == "all":
        return None
    labels = [label.strip() for label in text.split(",") if label.strip()]
    if not labels or not all(map(is_label, labels)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor milestones such as 100B,200B")
    return labels


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} must be more than 0")
        return value

    return read


def _work_alone(run: Path, stack: ExitStack) -> None:
    """Two publishers of one run do no harm, but each may throw away what the other has just prepared."""
    in_use = HubUnavailableError(f"another `poro publish` works on {run}; wait until it has ended, or stop it.")
    try:
        stack.enter_context(locks.hold(run / LOCK_NAME, in_use))
    except OSError as error:  # somebody may publish a run that belongs to somebody else
        logger.warning("%s cannot be written to (%s); take care that nobody else publishes it.", run, error.strerror)


def _remote(arguments: argparse.Namespace) -> Remote:
    return HubRemote(arguments.repo, patience=Patience(attempts=arguments.attempts), timeout=arguments.timeout)


def _prepared(arguments: argparse.Namespace, remote: Remote) -> Release:
    return prepare(
        arguments.run,
        remote,
        details=read_details(arguments.card),
        wanted=arguments.milestones,
        accept_unproven=arguments.unproven,
    )


def _announce(release: Release, remote: Remote) -> int:
    for action in release.actions:
        print(action)
    print(f"{_count(release)} at {remote.name}; nothing was done")
    return 0


def _publish(arguments: argparse.Namespace, remote: Remote) -> int:
    release = _prepared(arguments, remote)
    if not release.labels:
        raise CheckpointError(
            f"run {arguments.run} has no exported milestone: make them with `poro export {arguments.run} --milestones`."
        )
    _carry_out(release, remote, arguments)
    print(f"{remote.name} holds {', '.join(release.labels)}; main is {release.labels[-1]}")
    return 0


def _watch(arguments: argparse.Namespace, remote: Remote) -> int:
    """Publishes what is there, again and again; trouble that may pass is waited out.

    The Hub is asked only when something has changed here since the last look that went well.
    """
    published: dict[Path, float] | None = None
    while True:
        found = _times(arguments)
        # a run that has only begun may not have its config yet
        if found != published and (arguments.run / CONFIG_NAME).is_file():
            try:
                release = _prepared(arguments, remote)
                _carry_out(release, remote, arguments)
                if not release.missing:
                    print(f"{remote.name} holds all milestones of {arguments.run}: {', '.join(release.labels)}")
                    return 0
                published = found
            except HubUnavailableError as error:
                logger.warning("%s", error)
        time.sleep(arguments.poll)


def _times(arguments: argparse.Namespace) -> dict[Path, float]:
    """When each file was last changed that a publication depends on."""
    run: Path = arguments.run
    files = [
        run / CONFIG_NAME,
        *run.glob(f"{EXPORTS_FOLDER}/*/{REPORT_NAME}"),
        *run.glob(f"{EVALUATIONS_FOLDER}/*.json"),
    ]
    if arguments.card is not None:
        files.append(Path(arguments.card))
    times = {}
    for file in files:
        with suppress(FileNotFoundError):  # a packaged card, or an export that was removed since
            times[file] = file.stat().st_mtime
    return times


def _carry_out(release: Release, remote: Remote, arguments: argparse.Namespace) -> None:
    for branch in release.foreign_cards:
        logger.warning(
            "the card of %s was not made by this command, or was changed since: it is left. Remove README.md there to "
            "get the generated one.",
            branch,
        )
    began = time.monotonic()

    def say(text: str) -> None:
        nonlocal began
        now = time.monotonic()
        print(f"{text}: done in {format_seconds(now - began)}", flush=True)
        began = now

    carry_out(release.actions, remote, private=arguments.private, say=say)


def _count(release: Release) -> str:
    number = len(release.actions)
    return "nothing to do" if number == 0 else f"{number} step{'s' * (number > 1)} to do"


def _status(arguments: argparse.Namespace) -> int:
    remote = _remote(arguments)
    rows = standings(arguments.run, remote)
    if arguments.json:
        record = {
            "repository": remote.name,
            "main": next((row.label for row in reversed(rows) if row.is_main), None),
            "milestones": [dataclasses.asdict(row) for row in rows],
        }
        print(json.dumps(record, indent=2))
        return 0
    table = [("milestone", "step", "tokens", "checkpoint", "export", "branch", "main"), *map(_row, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(row: Standing) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.step:,}",
        f"{row.tokens:,}",
        "here" if row.has_checkpoint else "",
        "here" if row.has_export else "",
        row.branch,
        "main" if row.is_main else "",
    )
