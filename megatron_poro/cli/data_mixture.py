"""``poro data plan`` and ``poro data show``: what a mixture will read, and what one step of it did read.

Both take a run's config and none of its processes. ``plan`` needs no more than the .idx files, and says what is missing
where there are none; ``show`` finds the documents behind a step, for looking into a spike of the loss.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from megatron_poro.config.command_line import add_selection_arguments, parse_selection, selection
from megatron_poro.config.data import SourceConfig
from megatron_poro.config.fields import plain
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.data.indexed import IndexedDataset
from megatron_poro.data.mixture import Mixture, build_mixture
from megatron_poro.data.mixture_plan import SourcePlan, plan_mixture, require_epochs
from megatron_poro.data.weighted_paths import read_weighted_paths, source_configs
from megatron_poro.errors import ConfigError
from megatron_poro.schedule.plan import RunPlan, plan_run
from megatron_poro.tokenizer.tokenizer import Tokenizer

PUBLISHED_TOLERANCE = 0.0005
"""A published number agrees with the plan if they differ by no more than this part of the run's tokens: the numbers
are printed with two digits of a per cent, or one of a billion."""

_COLUMNS = ("source", "weight", "samples", "tokens to read", "tokens available", "epochs", "published")


def plan(argv: Sequence[str]) -> int:
    """Runs ``poro data plan`` with the arguments after it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="poro data plan",
        description="Prints what a run reads of each source of its training mixture. Needs the .idx files only; a "
        "source without one is planned without its epochs. Refuses more epochs than data.max_epochs.",
    )
    parser.add_argument(
        "--weighted-paths", type=Path, metavar="FILE", help="plan a mixture file of Megatron-DeepSpeed in its place"
    )
    parser.add_argument("--group", metavar="NAME", help="which of its groups, if it has several")
    parser.add_argument("--as-config", action="store_true", help="print that group as a data config, and plan nothing")
    add_selection_arguments(parser)
    arguments = parse_selection(parser, argv)
    if arguments.weighted_paths is None and (arguments.group is not None or arguments.as_config):
        raise ConfigError("--group and --as-config are about the file that --weighted-paths names.")
    config = selection(arguments).load()
    if arguments.weighted_paths is not None:
        config.data.train = _group(arguments.weighted_paths, arguments.group)
    validate(config)
    if arguments.as_config:
        print(OmegaConf.to_yaml(OmegaConf.create(plain(config.data))), end="")
        return 0
    run = plan_run(config)
    plans = plan_mixture(config.data.train, num_samples=run.total_samples, sequence_length=config.data.sequence_length)
    print("\n".join(_table(config.data.train, plans)))
    print()
    for line in _remarks(config, run, plans):
        print(line)
    require_epochs(plans, config.data.max_epochs)
    return 0


def show(argv: Sequence[str]) -> int:
    """Runs ``poro data show`` with the arguments after it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="poro data show",
        description="Prints the samples of one optimizer step: number, source, documents and text. Makes the indices "
        "of the mixture if data.index_cache does not hold them yet.",
    )
    parser.add_argument(
        "--step", type=int, required=True, metavar="N", help="optimizer step, as train/step counts: from 1"
    )
    parser.add_argument("--source", metavar="NAME", help="samples of this source only")
    parser.add_argument("--samples", type=int, default=4, metavar="K", help="print so many of them (default: 4)")
    parser.add_argument("--characters", type=int, default=300, metavar="C", help="of each document (default: 300)")
    add_selection_arguments(parser)
    arguments = parse_selection(parser, argv)
    config = selection(arguments).load()
    validate(config)
    run = plan_run(config)
    if not 1 <= arguments.step <= run.total_steps:
        raise ConfigError(f"--step {arguments.step} must be 1 to {run.total_steps}, the steps of the run.")
    for option in ("samples", "characters"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)} must be at least 1.")
    names = [source.name for source in config.data.train]
    if arguments.source is not None and arguments.source not in names:
        raise ConfigError(f"--source {arguments.source} is not in data.train, which has {', '.join(names)}.")
    tokenizer = Tokenizer.load(config.tokenizer.path)
    mixture = _open(config, run, tokenizer)
    first = (arguments.step - 1) * run.samples_per_step
    chosen = _of_source(mixture, range(first, first + run.samples_per_step), arguments.source)
    _print_step(mixture, arguments.step, range(first, first + run.samples_per_step))
    for number in chosen[: arguments.samples]:
        _print_sample(config, mixture, number, tokenizer, characters=arguments.characters)
    if len(chosen) > arguments.samples:
        print(f"\n{len(chosen) - arguments.samples:,} more; --samples {len(chosen)} prints all.")
    return 0


def _group(path: Path, name: str | None) -> list[SourceConfig]:
    groups = read_weighted_paths(path)
    if name is None and len(groups) > 1:
        raise ConfigError(f"{path} has the groups {', '.join(groups)}; choose one with --group.")
    chosen = next(iter(groups)) if name is None else name
    if chosen not in groups:
        raise ConfigError(f"--group {chosen}: {path} has {', '.join(groups)}.")
    return source_configs(groups[chosen], where=f"{path} group {chosen}")


def _table(sources: Sequence[SourceConfig], plans: Sequence[SourcePlan]) -> Iterator[str]:
    rows = [
        (
            plan.name,
            f"{100 * plan.weight:.4f} %",
            f"{plan.samples:,}",
            f"{plan.tokens_read:,}",
            "-" if plan.tokens_available is None else f"{plan.tokens_available:,}",
            "-" if plan.epochs is None else f"{plan.epochs:.2f}",
            "-" if source.published_tokens is None else f"{source.published_tokens:,}",
        )
        for source, plan in zip(sources, plans, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    for name, *numbers in (_COLUMNS, *rows):
        cells = [f"{name:<{widths[0]}}", *(f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _remarks(config: TrainConfig, run: RunPlan, plans: Sequence[SourcePlan]) -> Iterator[str]:
    """What the table cannot say: the run, the sum of the weights, missing files, published numbers."""
    sources = config.data.train
    tokens = run.total_samples * config.data.sequence_length
    yield (
        f"run        {run.total_steps:,} steps, data for {run.total_samples:,} samples of "
        f"{config.data.sequence_length:,} tokens = {tokens:,}"
    )
    yield f"weights    sum to {sum(source.weight for source in sources):.12g}; their shares of it are used"
    limit = config.data.max_epochs
    yield f"epochs     {'any number' if limit is None else f'at most {limit:g}'} of a source (data.max_epochs)"
    yield from (f"missing    {plan.name}: {plan.remark}" for plan in plans if plan.remark)
    published = [
        (source, plan) for source, plan in zip(sources, plans, strict=True) if source.published_tokens is not None
    ]
    agreeing = []
    for source, plan in published:
        assert source.published_tokens is not None, "only those that have one"
        excess = source.published_tokens - plan.tokens_read
        if abs(excess) <= PUBLISHED_TOLERANCE * tokens:
            agreeing.append(source.name)
            continue
        yield (
            f"published  {source.name}: {source.published_tokens:,}, {abs(excess):,} tokens "
            f"({100 * abs(excess) / tokens:.2f} % of the run) {'more' if excess > 0 else 'less'} than planned"
        )
    if agreeing:
        yield f"published  agrees to {100 * PUBLISHED_TOLERANCE:g} % of the run for {', '.join(agreeing)}"
    yield from (f"remark     {source.name}: {source.remark}" for source in sources if source.remark)


def _open(config: TrainConfig, run: RunPlan, tokenizer: Tokenizer) -> Mixture:
    """The training mixture, as the run opens it; how often a source may be read is the run's business."""
    return build_mixture(
        config.data.train,
        num_samples=run.total_samples,
        sequence_length=config.data.sequence_length,
        seed=config.data.shuffle_seed,
        index_cache=Path(config.data.index_cache),
        vocab_size=config.model.vocab_size,
        expected_tokenizer=tokenizer.fingerprint,
    )


def _of_source(mixture: Mixture, numbers: range, name: str | None) -> list[int]:
    if name is None:
        return list(numbers)
    wanted = mixture.names.index(name)
    return [number for number in numbers if mixture.place(number).source == wanted]


def _print_step(mixture: Mixture, step: int, numbers: range) -> None:
    counts = mixture.consumed(numbers.stop) - mixture.consumed(numbers.start)
    shares = ", ".join(f"{count:,} {name}" for name, count in zip(mixture.names, counts, strict=True) if count)
    print(f"step {step:,}: samples {numbers.start:,} to {numbers.stop - 1:,}: {shares}")
    epochs = ", ".join(
        f"{name} {epochs:.3f}" for name, epochs in zip(mixture.names, mixture.epochs(numbers.stop), strict=True)
    )
    print(f"epochs after it: {epochs}")


def _print_sample(config: TrainConfig, mixture: Mixture, number: int, tokenizer: Tokenizer, *, characters: int) -> None:
    place = mixture.place(number)
    source = config.data.train[place.source]
    dataset = IndexedDataset(source.path)
    part = "" if (source.start, source.end) == (0, 1) else f", documents {source.start:g}:{source.end:g}"
    print(f"\nsample {number:,}: sample {place.sample:,} of {source.name} ({source.path}{part})")
    for document, begin, end in mixture.pieces(number):
        size = int(dataset.sizes[document])
        read = "whole" if (begin, end) == (0, size) else f"tokens {begin:,} to {end - 1:,} of {size:,}"
        text = tokenizer.decode(dataset.document(document)[begin:end].tolist())
        shown = text if len(text) <= characters else f"{text[:characters]} ..."
        print(f"  document {document:,}, {read}: {shown!r}")
