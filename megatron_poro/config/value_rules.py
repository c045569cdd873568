"""What a single value of a config must be.

A rule is a small function that yields one sentence per problem, with the key, its value and what would work.
"""

import math
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from megatron_poro.config.continuation import acceptable_keys
from megatron_poro.config.data import SourceConfig
from megatron_poro.config.identity import identity
from megatron_poro.config.model import MODEL_SCHEMAS
from megatron_poro.config.profile import profiled_steps
from megatron_poro.config.run import TrainConfig
from megatron_poro.config.typed import enumerate_words
from megatron_poro.errors import ConfigError

ValueRule = Callable[[TrainConfig], Iterator[str]]


def run_name_is_a_folder_name(config: TrainConfig) -> Iterator[str]:
    """It becomes a folder, and one that can be typed without quotes."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", config.run.name):
        yield (
            f"run.name={config.run.name} cannot name a folder; use up to 128 letters, digits, dots, dashes and "
            "underscores, with a letter or digit first."
        )


def texts_are_not_empty(config: TrainConfig) -> Iterator[str]:
    """An empty path would mean the working directory by accident."""
    named = {
        "run.root": config.run.root,
        "data.folder": config.data.folder,
        "data.index_cache": config.data.index_cache,
        "tokenizer.path": config.tokenizer.path,
        **{f"{key}.name": source.name for key, source in _sources(config)},
        **{f"{key}.path": source.path for key, source in _sources(config)},
    }
    yield from (f"{key} is empty; give it a text." for key, text in named.items() if not text.strip())


def family_is_known(config: TrainConfig) -> Iterator[str]:
    """The family picks the code that builds the model."""
    if config.model.family not in MODEL_SCHEMAS:
        yield f"model.family={config.model.family} is not known; use {enumerate_words(MODEL_SCHEMAS)}."


def sizes_are_positive(config: TrainConfig) -> Iterator[str]:
    """Whatever is counted and needed at least once."""
    sizes = {
        "model.num_layers": config.model.num_layers,
        "model.hidden_size": config.model.hidden_size,
        "model.num_heads": config.model.num_heads,
        "model.vocab_size": config.model.vocab_size,
        "parallel.tensor": config.parallel.tensor,
        "parallel.pipeline": config.parallel.pipeline,
        "parallel.data": config.parallel.data,
        "engine.microbatch_samples": config.engine.microbatch_samples,
        "data.sequence_length": config.data.sequence_length,
        "schedule.global_batch_samples": config.schedule.global_batch_samples,
        "run.stop_after_steps": config.run.stop_after_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "export.max_shard_bytes": config.export.max_shard_bytes,
        "metrics.log_every_steps": config.metrics.log_every_steps,
        "guards.spike_window_steps": config.guards.spike_window_steps,
    }
    yield from (f"{key}={size} must be at least 1." for key, size in sizes.items() if size is not None and size < 1)


def epochs_are_limited_above_zero(config: TrainConfig) -> Iterator[str]:
    """No source could be read otherwise."""
    limit = config.data.max_epochs
    if limit is not None and not (limit > 0 and math.isfinite(limit)):
        yield f"data.max_epochs={limit:g} must be more than 0; null sets no limit."


def intervals_are_not_negative(config: TrainConfig) -> Iterator[str]:
    """0 switches an interval off, less means nothing."""
    intervals = {
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "validation.every_steps": config.validation.every_steps,
        "guards.max_skips_in_row": config.guards.max_skips_in_row,
        "guards.rewind_margin_steps": config.guards.rewind_margin_steps,
        "guards.max_rewinds": config.guards.max_rewinds,
        "guards.replica_check_every_steps": config.guards.replica_check_every_steps,
    }
    yield from (
        f"{key}={steps} must be a number of steps, or 0 for never." for key, steps in intervals.items() if steps < 0
    )


def waiting_passes_are_not_negative(config: TrainConfig) -> Iterator[str]:
    """0 computes weight gradients once a stage's input gradient is sent; not to wait at all is null."""
    waiting = config.engine.deferred_weight_gradients
    if waiting is not None and waiting < 0:
        yield (
            f"engine.deferred_weight_gradients={waiting} must be a number of microbatches, 0 or above; null computes "
            "weight gradients inside of backward passes."
        )


def guards_can_tell_good_from_bad(config: TrainConfig) -> Iterator[str]:
    """A limit that healthy runs pass all the time would end them."""
    guards = config.guards
    limits = {
        "guards.spike_sigma": (guards.spike_sigma, 2.0),
        "guards.straggler_ratio": (guards.straggler_ratio, 1.01),
        "guards.hang_seconds": (guards.hang_seconds, 1.0),
        "guards.hang_startup_seconds": (guards.hang_startup_seconds, 1.0),
    }
    for key, (value, lowest) in limits.items():
        if value != 0 and not lowest <= value < math.inf:
            yield f"{key}={value:g} must be at least {lowest:g}, or 0 to switch it off."


def seeds_fit_their_generators(config: TrainConfig) -> Iterator[str]:
    """The shuffle is numpy's ``RandomState``, whose seed has 32 bits; torch's has 64."""
    for key, seed, bits in (("run.seed", config.run.seed, 63), ("data.shuffle_seed", config.data.shuffle_seed, 32)):
        if not 0 <= seed < 2**bits:
            yield f"{key}={seed} must be from 0 to 2^{bits} - 1."


def probabilities_are_below_one(config: TrainConfig) -> Iterator[str]:
    """Dropping everything leaves nothing to scale up; a moment that decays by 1 never moves."""
    values = {
        "model.hidden_dropout": config.model.hidden_dropout,
        "model.attention_dropout": config.model.attention_dropout,
        "optimizer.beta1": config.optimizer.beta1,
        "optimizer.beta2": config.optimizer.beta2,
    }
    yield from (f"{key}={value} must be at least 0 and below 1." for key, value in values.items() if not 0 <= value < 1)


def scales_are_positive(config: TrainConfig) -> Iterator[str]:
    """Numbers that are divided by, or that would make a model that cannot learn."""
    values = {
        "model.layer_norm_epsilon": config.model.layer_norm_epsilon,
        "model.init_std": config.model.init_std,
        "optimizer.epsilon": config.optimizer.epsilon,
        "schedule.learning_rate": config.schedule.learning_rate,
        "metrics.peak_tflops": config.metrics.peak_tflops,
        "run.lease_seconds": config.run.lease_seconds,
    }
    for key, value in values.items():
        if value is not None and not (0 < value < math.inf):
            yield f"{key}={value} must be a number above 0."


def penalties_are_not_negative(config: TrainConfig) -> Iterator[str]:
    """0 switches them off."""
    values = {
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "optimizer.clip_norm": config.optimizer.clip_norm,
        "schedule.min_learning_rate": config.schedule.min_learning_rate,
    }
    for key, value in values.items():
        if not 0 <= value < math.inf:
            yield f"{key}={value} must be a number, 0 or above."


def weights_are_positive(config: TrainConfig) -> Iterator[str]:
    """A source of weight 0 would never be read; leaving it out says so."""
    for key, source in _sources(config):
        if not 0 < source.weight < math.inf:
            yield (
                f"{key}.weight={source.weight} ({source.name}) must be a number above 0; leave out a source that is "
                "not wanted."
            )


def document_fractions_are_in_order(config: TrainConfig) -> Iterator[str]:
    """A source is a part of its dataset, from a fraction of the documents to a later one."""
    for key, source in _sources(config):
        if not 0 <= source.start < source.end <= 1:
            yield (
                f"{key}.start={source.start} and {key}.end={source.end} ({source.name}) must be fractions of the "
                "documents, 0 <= start < end <= 1."
            )


def accepted_keys_exist(config: TrainConfig) -> Iterator[str]:
    """A pattern that matches nothing is a mistyped one, or asks for what cannot be had."""
    defining = identity(config)
    acceptable = acceptable_keys(defining)
    for pattern in config.resume.accept:
        if pattern in defining:
            yield f"resume.accept={pattern} defines the run and can never differ; start a new run under another name."
        elif not any(fnmatchcase(key, pattern) for key in acceptable):
            yield (
                f"resume.accept={pattern} is no key that could be accepted; use keys of optimizer and schedule, or "
                "patterns such as optimizer.*."
            )


def profiled_steps_are_a_range(config: TrainConfig) -> Iterator[str]:
    """Steps that no run has would silently give no profile."""
    try:
        profiled_steps(config.profile.steps)
    except ConfigError as error:
        yield str(error)


VALUE_RULES: tuple[ValueRule, ...] = (
    run_name_is_a_folder_name,
    texts_are_not_empty,
    family_is_known,
    sizes_are_positive,
    epochs_are_limited_above_zero,
    intervals_are_not_negative,
    waiting_passes_are_not_negative,
    guards_can_tell_good_from_bad,
    seeds_fit_their_generators,
    probabilities_are_below_one,
    scales_are_positive,
    penalties_are_not_negative,
    weights_are_positive,
    document_fractions_are_in_order,
    accepted_keys_exist,
    profiled_steps_are_a_range,
)


def _sources(config: TrainConfig) -> Iterator[tuple[str, SourceConfig]]:
    for part, sources in (("train", config.data.train), ("validation", config.data.validation)):
        for index, source in enumerate(sources):
            yield f"data.{part}[{index}]", source
