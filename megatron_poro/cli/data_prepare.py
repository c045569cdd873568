"""``poro data prepare``: recipes and raw files -> tokenizer, datasets, the plan of the mixture and a report.

One command for a whole mixture. It may be killed at any moment and given again: what is done is not done again, what is
half done is gone on with, and the files are the same in the end, byte by byte.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_poro import logs
from megatron_poro.cli.data_inspect import report
from megatron_poro.cli.data_mixture import plan
from megatron_poro.cli.data_tokenize import Reporter
from megatron_poro.config.command_line import add_selection_arguments, parse_selection, selection
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.validate import validate
from megatron_poro.data.documents import CorpusFile
from megatron_poro.data.indexed_format import idx_path
from megatron_poro.data.manifest import read_manifest
from megatron_poro.data.recipe import RecipeFolder, Split, parse_options
from megatron_poro.data.recipe_reader import corpus_files
from megatron_poro.data.recipe_sample import sample_texts
from megatron_poro.data.tokenizing import tokenize_corpus
from megatron_poro.errors import ConfigError, DataError
from megatron_poro.tokenizer.sample import plan_shares, take_evenly
from megatron_poro.tokenizer.tokenizer import Tokenizer
from megatron_poro.tokenizer.training import Trainer, train_tokenizer
from megatron_poro.units import parse_count

SAMPLE_CHARACTERS = "500M"
PICTURE = "report.svg"
TOKENIZER_FILE = "tokenizer.json"


def prepare(argv: Sequence[str]) -> int:
    """Runs ``poro data prepare`` with the arguments after it; returns the exit status.

    Raises:
        ConfigError: if the config, the recipes or their options are wrong.
        DataError: if raw files are missing or damaged, or a dataset of something else has the name of a new one.
    """
    arguments = parse_selection(_parser(), argv)
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers} must be at least 1.")
    if arguments.workers > 1:
        # the workers inherit it: each process uses one core instead of all of them using all cores
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logs.configure()
    config = selection(arguments).load()
    validate(config)
    folder = RecipeFolder(arguments.recipes, parse_options(arguments.option))
    jobs = list(_jobs(config, folder, arguments.raw))
    _refuse_missing(jobs, arguments.raw, allow=arguments.allow_missing)
    _train_tokenizer_if_missing(config, folder, jobs, arguments)
    for job in jobs:
        _tokenize(job, config, arguments)
    print()
    prefixes = [str(job.output) for job in jobs if idx_path(job.output).exists()]
    picture = Path(config.data.folder) / PICTURE
    for leftover in picture.parent.glob(f".{PICTURE}.*.tmp"):  # of a command that was killed
        leftover.unlink(missing_ok=True)
    report([*prefixes, "--tokenizer", config.tokenizer.path, "--picture", str(picture)])
    print()
    places = [word for place in arguments.config_dir for word in ("--config-dir", str(place))]
    return plan([*places, "--config-name", arguments.config_name, *arguments.overrides])


@dataclass(frozen=True)
class _Job:
    """One dataset to be made.

    Attributes:
        source: name in the mixture.
        split: what it is for.
        output: prefix of the dataset.
        corpora: its files, under the names of the recipes that read them.
    """

    source: str
    split: Split
    output: Path
    corpora: dict[str, list[CorpusFile]]

    @property
    def files(self) -> list[CorpusFile]:
        """The files of all corpora, in the order in which the dataset holds them."""
        return [file for files in self.corpora.values() for file in files]

    @property
    def missing(self) -> list[str]:
        """Recipes without a file."""
        return [name for name, files in self.corpora.items() if not files]


def _jobs(config: TrainConfig, folder: RecipeFolder, raw: Path) -> Iterator[_Job]:
    if not raw.is_dir():
        raise DataError(f"--raw {raw} is not a folder; give the one that holds the corpora.")
    for split, sources in ((Split.TRAIN, config.data.train), (Split.VALIDATION, config.data.validation)):
        for source in sources:
            corpora = corpus_files(folder, source.name, raw=raw, split=split)
            if not corpora:
                known = ", ".join(dict.fromkeys(recipe.source for recipe in folder.recipes))
                raise ConfigError(f"{folder.folder} has no recipe for source {source.name!r}; its sources are {known}.")
            yield _Job(source.name, split, Path(source.path), corpora)


def _refuse_missing(jobs: Sequence[_Job], raw: Path, *, allow: bool) -> None:
    """Before anything is made: a mixture without one of its corpora must be meant so."""
    for job in jobs:
        if not job.missing:
            continue
        if not job.files and idx_path(job.output).exists():
            print(f"{job.output}: kept as it is, since there are no raw files of it")
        elif job.split is Split.VALIDATION:
            print(f"{job.output}: no validation files of {', '.join(job.missing)}")
        elif allow and job.files:
            print(f"{job.output}: left out, since there are no raw files: {', '.join(job.missing)}")
        else:
            raise DataError(
                f"source {job.source} has no raw files of {', '.join(job.missing)} below {raw}; `train` of a recipe "
                "says where they are looked for. --allow-missing makes a source of those of its corpora that are there."
            )


def _train_tokenizer_if_missing(
    config: TrainConfig, folder: RecipeFolder, jobs: Sequence[_Job], arguments: argparse.Namespace
) -> None:
    """Trains on an equal sample of each source; the vocabulary is the model's."""
    place = Path(config.tokenizer.path)
    shutil.rmtree(_beside(place), ignore_errors=True)  # of a command that was killed
    if not (place / TOKENIZER_FILE).exists():
        started = time.monotonic()
        tokenizer = train_tokenizer(
            _equal_sample(folder, jobs, arguments),
            config.model.vocab_size,
            kind=config.tokenizer.kind,
            trainer=Trainer(arguments.trainer),
            show_progress=sys.stderr.isatty(),
        )
        _save_at_once(tokenizer, place)
        print(f"{place}: trained in {time.monotonic() - started:.1f} s")
    tokenizer = Tokenizer.load(place)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise DataError(
            f"tokenizer {place} has {tokenizer.vocab_size} ids, model.vocab_size={config.model.vocab_size}: raise the "
            "latter, or set tokenizer.path to a folder without a tokenizer to have one trained."
        )
    print(f"{place}: {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:12]}")


def _save_at_once(tokenizer: Tokenizer, place: Path) -> None:
    """Saves beside ``place`` and moves the files there, so that a killed command leaves nothing in it."""
    beside = _beside(place)
    tokenizer.save(beside)
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted(beside.iterdir(), key=lambda file: file.name == TOKENIZER_FILE):  # it comes last
        os.replace(file, place / file.name)
    beside.rmdir()


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.new")


def _equal_sample(folder: RecipeFolder, jobs: Sequence[_Job], arguments: argparse.Namespace) -> Iterator[str]:
    """As much text of each source as the smallest has, and no more than was asked for; read twice, to be equal."""
    learnt = {recipe.name for recipe in folder.recipes if recipe.in_vocabulary}
    chosen = {
        job.source: [file for name, files in job.corpora.items() if name in learnt for file in files]
        for job in jobs
        if job.split is Split.TRAIN
    }

    def texts(source: str) -> Iterator[str]:
        skip = arguments.malformed == "skip"
        return sample_texts(chosen[source], characters=arguments.sample_characters, skip_malformed=skip)

    available = {source: sum(map(len, texts(source))) for source, files in chosen.items() if files}
    empty = [source for source, characters in available.items() if not characters]
    if empty or not available:
        raise DataError(f"no text to train a tokenizer on in source {', '.join(empty or chosen)}; see its raw files.")
    shares = plan_shares(list(available.values()), [1.0] * len(available))
    for (source, held), share in zip(available.items(), shares, strict=True):
        print(f"tokenizer: learns from {share:,} characters of {source}")
        yield from take_evenly(texts(source), available=held, wanted=share)


def _tokenize(job: _Job, config: TrainConfig, arguments: argparse.Namespace) -> None:
    if not job.files:
        return
    started = time.monotonic()
    with Reporter(str(job.output)) as reporter:
        facts = tokenize_corpus(
            job.files,
            job.output,
            load_tokenizer=partial(Tokenizer.load, config.tokenizer.path),
            workers=arguments.workers,
            skip_malformed=arguments.malformed == "skip",
            overwrite=arguments.overwrite,
            on_progress=reporter,
        )
    took = "was complete" if reporter.last is None else f"{time.monotonic() - started:.1f} s"
    print(f"{job.output}: {facts.documents:,} documents, {facts.tokens:,} tokens of {len(job.files):,} files, {took}")
    manifest = read_manifest(job.output)
    assert manifest is not None, "a dataset that was just tokenized has its manifest"
    for reason, count in manifest.dropped.items():
        print(f"{job.output}: {count:,} records left out: {reason}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poro data prepare",
        description="Makes everything that a run reads: trains the tokenizer if tokenizer.path holds none, tokenizes "
        "the sources of data.train and data.validation from raw files by their recipes, prints the plan of the mixture "
        "and a report of the datasets. Given again, it goes on where it was stopped.",
    )
    parser.add_argument("--recipes", type=Path, required=True, metavar="DIR", help="folder of recipes")
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="where recipes look for their files")
    parser.add_argument("--workers", type=int, default=_available_cores(), help="processes (default: all cores)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="FILE.OPTION=VALUE",
        help="an option of a file of recipes, such as tatoeba.separator=newline",
    )
    parser.add_argument(
        "--sample-characters",
        type=parse_count,
        default=SAMPLE_CHARACTERS,
        metavar="N",
        help=f"characters of each source that a new tokenizer learns from, such as 3.3B (default: {SAMPLE_CHARACTERS})",
    )
    parser.add_argument(
        "--trainer",
        choices=[trainer.value for trainer in Trainer],
        default=Trainer.TOKENIZERS.value,
        help="who trains a new tokenizer of kind bloom; the result is the same (default: tokenizers)",
    )
    parser.add_argument(
        "--malformed",
        choices=("fatal", "skip"),
        default="fatal",
        help="a record that cannot be read ends the command (default), or is named, counted and left out",
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="make a source without those of its corpora that have no raw files"
    )
    parser.add_argument("--overwrite", action="store_true", help="make all datasets anew, replacing those that exist")
    add_selection_arguments(parser)
    return parser


def _available_cores() -> int:
    """Cores this process may use: inside a Slurm job or a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
