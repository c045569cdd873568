"""``poro train``: one process of a training run. ``torchrun`` starts several; without it there is one.

The config is checked before torch is loaded and before processes meet, so a wrong key costs a second. Exit codes are
:class:`megatron_poro.train.exit_code.ExitCode`.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_poro import logs
from megatron_poro.cli.checking import check_config
from megatron_poro.cli.host_memory import keep_freed_memory
from megatron_poro.config.command_line import add_selection_arguments, selection
from megatron_poro.config.run import EngineKind, TrainConfig
from megatron_poro.errors import ConfigError, PoroError
from megatron_poro.metrics.wandb_sink import WandbMode
from megatron_poro.train.control import StoppedEarlyError, StopRequest
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.launch import Launch


def command(argv: Sequence[str]) -> int:
    """:func:`main` for a process that ends with it: requests to stop change nothing any more once it has returned."""
    code = main(argv, until_exit=True)
    if code == ExitCode.LOST_PEER:
        # an orderly end takes down groups and threads that may wait for the process that is gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def main(argv: Sequence[str], *, until_exit: bool = False) -> int:
    """Trains; returns the exit code.

    Args:
        argv: the words after ``poro train``.
        until_exit: ignore requests to stop from then on, where they would be obeyed again as before.
    """
    arguments = _parser().parse_args(argv)
    launch = Launch()
    # before anything that takes time: a signal that comes while torch is loaded is a request like any other
    with StopRequest(until_exit=until_exit) as stop:
        try:
            launch = launch_of(os.environ)
            logs.configure(rank=launch.rank)
            config = selection(arguments).load()
            check_config(config, world_size=launch.size)
        except PoroError as error:
            return _refuse(error, tell=launch.rank == 0)
        return _train(config, launch, stop, owns_process=until_exit)


def _train(config: TrainConfig, launch: Launch, stop: StopRequest, *, owns_process: bool) -> int:
    """Joins the other processes, builds the run and trains; an error of the input is told by one process."""
    # imported here: torch takes seconds to load, and a wrong config should be told before
    from megatron_poro.train.build import build_run
    from megatron_poro.train.loop import fit
    from megatron_poro.train.next_token import NextToken
    from megatron_poro.train.processes import Processes, joined, sign_of_a_lost_peer

    processes: Processes | None = None
    try:
        needs_group = config.engine.kind is EngineKind.DEEPSPEED
        folder = Path(config.run.root) / config.run.name
        with joined(launch, needs_group=needs_group, folder=folder, guards=config.guards) as processes:
            if owns_process and processes.device.type == "cpu":
                keep_freed_memory()
            run = build_run(
                config, processes=processes, objective=NextToken, stop=stop, wandb_mode=wandb_mode(os.environ)
            )
            return fit(run)
    except StoppedEarlyError:
        return ExitCode.STOPPED
    except PoroError as error:
        return _refuse(error, tell=processes is None or processes.claims_report())
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        sign = sign_of_a_lost_peer(error)
        if sign is not None and processes is not None:
            return _left_alone(processes.watchdog.loss_to_tell(sign))
        for line in traceback.format_exc().splitlines():
            print(f"[rank {launch.rank}] {line}", file=sys.stderr)
        return ExitCode.BUG


def launch_of(environment: Mapping[str, str]) -> Launch:
    """What torchrun, or a job script that speaks like it, tells this process; one process if nobody says anything.

    Raises:
        ConfigError: if a variable is not a number, or only some of them are there.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    missing = [name for name in names if name not in environment]
    if 0 < len(missing) < len(names):
        there = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise ConfigError(
            f"the environment has {there} but no {' and no '.join(missing)}. Start with torchrun, or set all."
        )
    return Launch(
        rank=_number(environment, "RANK", 0),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        size=_number(environment, "WORLD_SIZE", 1),
        job=environment.get("SLURM_JOB_ID"),
    )


def wandb_mode(environment: Mapping[str, str]) -> WandbMode:
    """``WANDB_MODE`` where it says one of these; else online with an API key and offline without."""
    match environment.get("WANDB_MODE"):
        case "online" | "offline" | "disabled" as mode:
            return mode
    return "online" if environment.get("WANDB_API_KEY") else "offline"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro train", description="Train a model; a run that has a checkpoint goes on from it."
    )
    add_selection_arguments(parser)
    return parser


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(
            f"the environment variable {name}={text!r} is not a number. Start with torchrun, or unset it."
        )
    return int(text)


def _refuse(error: PoroError, *, tell: bool) -> int:
    """Says what is wrong, a line per problem, if this process is the one to say it."""
    if tell:
        for line in str(error).splitlines():
            print(f"poro train: {line}", file=sys.stderr)
    return error.exit_status


def _left_alone(sentence: str | None) -> int:
    """Says that another process is gone, if this process is the one to say it."""
    if sentence is not None:
        print(f"poro train: {sentence}", file=sys.stderr)
    return ExitCode.LOST_PEER


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
