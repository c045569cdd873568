"""`poro config`: look at a config, check it, compare two. Needs no torch, no GPU and no data."""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from megatron_poro.cli.checking import check_config
from megatron_poro.config.command_line import Selection, add_selection_arguments, parse_selection, selection
from megatron_poro.config.derived import batch_plan, replica_processes, run_folder
from megatron_poro.config.identity import differences, fingerprint
from megatron_poro.config.load import from_yaml, to_yaml
from megatron_poro.config.paths import config_dir
from megatron_poro.config.reference import render_reference
from megatron_poro.config.run import TrainConfig
from megatron_poro.errors import ConfigError
from megatron_poro.schedule.plan import plan_run
from megatron_poro.units import format_count

DIFFERENT_STATUS = 1


def main(argv: Sequence[str]) -> int:
    """Runs ``poro config show | validate | diff | reference``; raises ``ConfigError`` if a config is wrong."""
    arguments = parse_selection(_parser(), argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poro config", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="show | validate | diff | reference")

    show = verbs.add_parser("show", help="print a composed config")
    show.add_argument("--resolved", action="store_true", help="as a run writes it: references and counts worked out")
    show.set_defaults(run=_show)

    check = verbs.add_parser("validate", help="check that a config fits together, and print what follows from it")
    check.add_argument("--world-size", type=int, metavar="N", help="number of processes the run will have")
    check.set_defaults(run=_validate)

    diff = verbs.add_parser(
        "diff",
        help="compare two configs",
        description="Prints each key that differs. A side is overrides, or the resolved.yaml of a run, or a run "
        "folder; the two are separated by the word vs. Status 0 if they are equal, 1 if not.",
    )
    diff.set_defaults(run=_diff)

    for verb in (show, check, diff):
        add_selection_arguments(verb)
    reference = verbs.add_parser("reference", help="print docs/configuration.md")
    reference.set_defaults(run=_reference)
    return parser


def _show(arguments: argparse.Namespace) -> int:
    chosen = selection(arguments)
    text = to_yaml(chosen.load()) if arguments.resolved else OmegaConf.to_yaml(chosen.compose())
    print(text, end="")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    if arguments.world_size is not None and arguments.world_size < 1:
        raise ConfigError(f"--world-size {arguments.world_size} must be at least 1.")
    config = selection(arguments).load()
    check_config(config, world_size=arguments.world_size)
    rows = list(_derived(config, arguments.world_size))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    return 0


def _derived(config: TrainConfig, world_size: int | None) -> Iterator[tuple[str, str]]:
    """What follows from a valid config, as rows of a table."""
    batch, plan, parallel = batch_plan(config, world_size), plan_run(config, world_size=world_size), config.parallel
    processes = replica_processes(config) * batch.data_size
    is_open = parallel.data is None and world_size is None
    yield "run folder", str(run_folder(config))
    yield (
        "processes",
        f"{processes:,} = tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {batch.data_size}"
        + (", or any multiple with more replicas" if is_open else ""),
    )
    yield (
        "step",
        f"{batch.tokens_per_step:,} tokens = {batch.samples_per_step:,} samples of {config.data.sequence_length:,}; "
        f"{batch.microbatches:,} microbatches of {batch.microbatch_samples:,} per replica",
    )
    left_over = config.schedule.total_tokens - plan.total_steps * plan.tokens_per_step
    yield (
        "run",
        f"{plan.total_steps:,} steps = {plan.total_steps * plan.tokens_per_step:,} tokens ({left_over:,} of "
        f"{format_count(config.schedule.total_tokens)} do not fill a step); data for {plan.total_samples:,} samples",
    )
    section, rate, warmup = config.schedule, plan.learning_rate, plan.learning_rate.warmup_samples
    yield (
        "learning rate",
        f"0 to {section.learning_rate:g} over {warmup / plan.samples_per_step:,.2f} steps ({warmup:,} samples), "
        f"then {section.kind.value}, {rate.at(plan.total_samples):g} at the end",
    )
    yield "milestones", ", ".join(f"{milestone.label} = step {milestone.step:,}" for milestone in plan.milestones)
    yield "fingerprint", fingerprint(config)


def _diff(arguments: argparse.Namespace) -> int:
    sides = _sides(selection(arguments))
    left, right = (_side(side) for side in sides)
    found = differences(left, right)
    for difference in found:
        print(difference)
    return DIFFERENT_STATUS if found else 0


def _sides(chosen: Selection) -> tuple[Selection, Selection]:
    """Splits the words of ``diff`` at ``vs``; two words need none."""
    words = chosen.overrides
    if words.count("vs") == 1:
        cut = words.index("vs")
        left, right = words[:cut], words[cut + 1 :]
    elif len(words) == 2 and "vs" not in words:
        left, right = words[:1], words[1:]
    else:
        left, right = (), ()
    if not left or not right:
        raise ConfigError(
            f"`poro config diff {' '.join(words)}` does not name two configs; write LEFT vs RIGHT, each side overrides "
            "or one resolved.yaml."
        )
    return dataclasses.replace(chosen, overrides=left), dataclasses.replace(chosen, overrides=right)


def _side(chosen: Selection) -> TrainConfig:
    """A side that is one word without ``=`` is a file or a run folder."""
    (first, *others) = chosen.overrides
    if others or "=" in first:
        return chosen.load()
    path = Path(first)
    return from_yaml(path / "resolved.yaml" if path.is_dir() else path)


def _reference(arguments: argparse.Namespace) -> int:
    print(render_reference(config_dir()), end="")
    return 0
