"""From a config to an engine: the one place where the choice between one process and a pipeline is made."""

import importlib.metadata
import os
from dataclasses import replace

import torch

from megatron_poro.config.derived import stages_of_pipeline
from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import (
    EngineKind,
    Recompute,
    StageSplit,
    TrainConfig,
    TruthCheck,
)
from megatron_poro.engine.compiler import require_compiler
from megatron_poro.engine.deepspeed_config import require_deepspeed
from megatron_poro.engine.engine import Engine
from megatron_poro.engine.local import LocalEngine
from megatron_poro.engine.objective import ObjectiveFactory
from megatron_poro.models.bloom import BlockOptions
from megatron_poro.models.count import count_parameters
from megatron_poro.models.families import family
from megatron_poro.models.init import weight_dtype
from megatron_poro.models.kernel_choice import attention_kernel
from megatron_poro.models.plan import LayerPlan, split_weights
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.recomputed import recomputed_blocks
from megatron_poro.parallel.rng import DropoutClock
from megatron_poro.parallel.stages import stage_boundaries

TRUTH_CHECK_PARAMETERS = 50_000_000
"""Up to this size ``engine.truth_check=auto`` compares the gradients of the model itself."""


def build_engine(
    config: TrainConfig,
    *,
    groups: ParallelGroups,
    objective: ObjectiveFactory,
    num_sources: int,
    device: torch.device,
) -> Engine:
    """Builds the engine that ``engine.kind`` names, with initial weights. A collective call.

    Args:
        config: the run.
        groups: the process grid.
        objective: makes the objective.
        num_sources: sources of the training or validation mixture, whichever has more.
        device: where this process computes.

    Raises:
        ConfigError, TopologyError: where config, grid and device do not fit together, or a compiler is missing.
        EngineError: for a DeepSpeed that is too old.
    """
    if config.engine.compile:
        require_compiler(device)
    clock = DropoutClock(
        seed=config.run.seed,
        data_rank=groups.data.rank,
        data_size=groups.data.size,
        tensor_rank=groups.tensor.rank,
        microbatch_samples=config.engine.microbatch_samples,
    )
    options = BlockOptions(
        backend=attention_kernel(config, device.type),
        recompute=config.engine.recompute,
        clock=clock,
        sequence=config.parallel.sequence,
        compiled=config.engine.compile,
    )
    plan = _planned(config, groups, options)
    microbatches = config.schedule.global_batch_samples // (config.engine.microbatch_samples * groups.data.size)
    if config.engine.kind is EngineKind.LOCAL:
        return LocalEngine(
            plan,
            objective=objective(groups.tensor, config.engine.compile),
            optimizer=config.optimizer,
            clock=clock,
            seed=config.run.seed,
            num_sources=num_sources,
            device=device,
            dtype=weight_dtype(config.engine.precision),
            reproducible=config.engine.reproducible,
            microbatches=microbatches,
        )
    require_deepspeed(importlib.metadata.version("deepspeed"), config.engine.pipeline_schedule)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else every process prints that it looked for a GPU
    # imported here: DeepSpeed takes seconds to load, and a local run does not need it installed
    from megatron_poro.engine.pipeline_engine import PipelineEngine

    return PipelineEngine(
        plan,
        groups=groups,
        stage_weights=_stage_weights(config, plan),
        objective=objective(groups.tensor, config.engine.compile),
        optimizer=config.optimizer,
        clock=clock,
        seed=config.run.seed,
        num_sources=num_sources,
        microbatch_samples=config.engine.microbatch_samples,
        microbatches=microbatches,
        pipeline_schedule=config.engine.pipeline_schedule,
        deferred=config.engine.deferred_weight_gradients,
        precision=config.engine.precision,
        reproducible=config.engine.reproducible,
        device=device,
    )


def _planned(config: TrainConfig, groups: ParallelGroups, options: BlockOptions) -> LayerPlan:
    """The layers of the run; where a rank recomputes some of its blocks, the cut into stages says which."""
    plan = family(config.model.family).plan(config.model, group=groups.tensor, options=options)
    if config.engine.recompute_blocks is None:
        return plan
    recomputed = recomputed_blocks(
        [entry.is_block for entry in plan.entries],
        stage_boundaries(_stage_weights(config, plan), _num_stages(config, groups)),
        config.engine.recompute_blocks,
    )
    blocks = [entry.role for entry in plan.entries if entry.is_block]
    kept = {role for number, role in enumerate(blocks) if number not in recomputed}
    return plan.with_options(replace(options, recompute=Recompute.NONE), roles=kept)


def _num_stages(config: TrainConfig, groups: ParallelGroups) -> int:
    return stages_of_pipeline(config.engine.pipeline_schedule, groups.pipeline.size)


def _stage_weights(config: TrainConfig, plan: LayerPlan) -> list[float]:
    return split_weights(plan, by_cost=config.parallel.stage_split is StageSplit.COST)


def prove_gradients(
    config: TrainConfig, engine: Engine, *, groups: ParallelGroups, objective: ObjectiveFactory, device: torch.device
) -> str:
    """The start-up gradient truth check as ``engine.truth_check`` asks for it. A collective call.

    Returns:
        One sentence on what was compared, for the log.

    Raises:
        EngineError: if this layout's gradients are not those of one process.
    """
    wanted = config.engine.truth_check
    if wanted is TruthCheck.OFF or isinstance(engine, LocalEngine):
        return "gradient truth check: off" if wanted is TruthCheck.OFF else "gradient truth check: one process"
    from megatron_poro.engine.pipeline_engine import PipelineEngine
    from megatron_poro.engine.truth import compare_gradients

    assert isinstance(engine, PipelineEngine)
    checked, subject = config, "the model"
    if wanted is TruthCheck.AUTO and count_parameters(config.model) > TRUTH_CHECK_PARAMETERS:
        checked, subject = _cut_down(config, groups), "a model cut down to one block a stage"
        small = build_engine(checked, groups=groups, objective=objective, num_sources=1, device=device)
        assert isinstance(small, PipelineEngine)
        engine = small
    worst = compare_gradients(checked, engine, objective=objective, device=device)
    return f"gradient truth check: {subject} at {groups.topology} agrees with one process, worst {worst}"


def _cut_down(config: TrainConfig, groups: ParallelGroups) -> TrainConfig:
    """The same run on a small model: as many heads, a block for each stage, everything else little. Two microbatches,
    or one for each stage if there are more, which DualPipeV needs.
    """
    stages = _num_stages(config, groups)
    model: BloomConfig = replace(
        config.model,
        num_layers=stages,
        hidden_size=8 * config.model.num_heads,
        vocab_size=128 * groups.tensor.size,
        init_std=0.02,
    )
    microbatches = max(stages, 2)
    tensor = groups.tensor.size
    return replace(
        config,
        model=model,
        engine=replace(config.engine, recompute_blocks=None),  # its numbers are of the blocks of the whole model
        data=replace(config.data, sequence_length=min(-(-64 // tensor) * tensor, config.data.sequence_length)),
        schedule=replace(
            config.schedule,
            global_batch_samples=microbatches * config.engine.microbatch_samples * groups.data.size,
        ),
    )
