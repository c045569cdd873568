"""A training step of a tensor x pipeline x data grid on DeepSpeed's pipeline engine, 1F1B or DualPipeV.

What is DeepSpeed's: the schedules, and sending activations and gradients between stages. What is ours: the layers, the
stage boundaries, the loss as a true mean over the global batch's tokens, adding gradients up over microbatches,
replicas and whoever else holds a term (:mod:`~megatron_poro.engine.gradient_sums`), masters and moments cut over the
replicas (ZeRO-1, :class:`~megatron_poro.engine.sharded_adamw.ShardedAdamW`), the gradient norm, clipping, and the
decision whether a step is taken.

Each microbatch's loss is divided by the loss tokens of the step over all replicas, so that the sum over microbatches
and replicas is the token mean. In a reproducible run the gradients are added up and averaged by
:class:`~megatron_poro.engine.exact_sums.ExactSums` instead.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.pipe import schedule
from torch import Tensor, nn

from megatron_poro.config.run import OptimizerConfig, PipelineSchedule, Precision
from megatron_poro.data.batch import Batch
from megatron_poro.engine.deepspeed_config import deepspeed_config
from megatron_poro.engine.deepspeed_engine import OptimizerOf, start_deepspeed
from megatron_poro.engine.deferring_engine import DeferringEngine
from megatron_poro.engine.engine import (
    WEIGHT,
    Copy,
    CopyAxis,
    EvalResult,
    Fragment,
    FragmentKind,
    StepGate,
    StepResult,
    accept_every_step,
)
from megatron_poro.engine.exact_sums import ExactSums
from megatron_poro.engine.gradient_sums import ExactGradients, GradientSums, ScatteredSums
from megatron_poro.engine.gradients import may_step
from megatron_poro.engine.holders import Holders
from megatron_poro.engine.objective import Objective, Targets
from megatron_poro.engine.optimizer import decayed_tensors, moments, set_learning_rate
from megatron_poro.engine.sharded_adamw import ShardedAdamW
from megatron_poro.engine.stages import build_stages
from megatron_poro.engine.step_parts import tell_clock
from megatron_poro.engine.step_sums import PlainSums, StepSums
from megatron_poro.models.init import weight_dtype
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.lanes import Lanes
from megatron_poro.parallel.rng import DropoutClock
from megatron_poro.parallel.shards import name_of, shard_of
from megatron_poro.parallel.step_clock import Part


class PipelineEngine:
    """Runs steps on this process's stage and tensor shard. Construction is collective.

    Args:
        plan: the model, for this process's tensor group.
        groups: the process grid.
        stage_weights: where the plan is cut, see :func:`megatron_poro.models.plan.split_weights`.
        objective: what is minimised.
        optimizer: AdamW's settings.
        clock: the plan's source of dropout masks.
        seed: of the initial weights.
        num_sources: sources of the mixture, for losses per source.
        microbatch_samples: samples in one forward pass.
        microbatches: accumulation steps.
        pipeline_schedule: 1F1B or DualPipeV.
        deferred: for 1F1B, ``engine.deferred_weight_gradients``.
        precision: format of weights and activations.
        reproducible: whether a step has the same bits at every number of replicas, microbatches and stages.
        device: where this process computes.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        groups: ParallelGroups,
        stage_weights: Sequence[float],
        objective: Objective,
        optimizer: OptimizerConfig,
        clock: DropoutClock,
        seed: int,
        num_sources: int,
        microbatch_samples: int,
        microbatches: int,
        pipeline_schedule: PipelineSchedule,
        deferred: int | None,
        precision: Precision,
        reproducible: bool,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self._objective, self._clock, self._device = objective, clock, device
        self._dual = pipeline_schedule is PipelineSchedule.DUALPIPEV
        self._result: StepResult | None = None
        self._gate: StepGate = accept_every_step
        self._capture: Callable[[list[tuple[nn.Parameter, Tensor]]], None] | None = None
        module, self._parameters = build_stages(
            plan,
            topology=groups.topology,
            stage_weights=stage_weights,
            schedule=pipeline_schedule,
            loss=self._loss,
            seed=seed,
            device=device,
            dtype=weight_dtype(precision),
        )
        settings = deepspeed_config(
            precision=precision,
            microbatch_samples=microbatch_samples,
            microbatches=microbatches,
            data_size=groups.data.size,
        )
        self._holders = Holders(plan, groups=groups, module=module, dual=self._dual)

        def share_out() -> torch.optim.Optimizer:
            self._sharded = ShardedAdamW(
                self._parameters,
                optimizer,
                replicas=groups.data,
                completed_over=self._holders.completed_over,
                reproducible=reproducible,
            )
            return self._sharded.optimizer

        self._deepspeed = self._start(module, settings, share_out, deferred=deferred)
        self._sums, self._gradient_sums = self._add_up(
            plan, exactly=reproducible, microbatches=microbatches, num_sources=num_sources
        )
        self._deepspeed._INSTRUCTION_MAP = {  # DeepSpeed's own is shared by all its engines
            **self._deepspeed._INSTRUCTION_MAP,
            schedule.ReduceTiedGrads: lambda _: None,
            schedule.ReduceGrads: lambda _: self._gradient_sums.reduce(),
            schedule.OptimizerStep: lambda _: self._take_step(),
        }
        tell_clock(self._deepspeed, groups.clock)

    @property
    def is_loss_stage(self) -> bool:
        """Whether this process computes the loss; under DualPipeV the first process of a pipeline does."""
        return self.groups.is_first_stage if self._dual else self.groups.is_last_stage

    @property
    def needs_data(self) -> bool:
        return self.groups.is_first_stage or self.is_loss_stage

    def train_step(
        self,
        microbatches: Sequence[Batch],
        *,
        learning_rate: float,
        consumed_samples: int,
        gate: StepGate = accept_every_step,
    ) -> StepResult:
        self._gate = gate
        self._clock.start_step(consumed_samples)
        set_learning_rate(self._sharded.optimizer, learning_rate)
        inputs = [self._objective.split(batch) for batch in microbatches]
        weights = [self._objective.weight(targets) for _, targets in inputs] if self.is_loss_stage else []
        self._sums.start_step(weights)
        self._gradient_sums.start_step()
        self._deepspeed.train_batch(data_iter=iter(inputs))
        assert self._result is not None, "the schedule took no optimizer step"
        return self._result

    def gradients(self, microbatches: Sequence[Batch]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Forward and backward of a step without taking it: the mean gradient over the global batch, in fp32.

        Yields each parameter of this process with its gradient, in the parameter's shape. Collective; the gradients
        are dropped when the iterator is exhausted.
        """
        captured: list[tuple[nn.Parameter, Tensor]] = []
        self._capture = lambda views: captured.extend((p, g.detach().clone()) for p, g in views)
        try:
            self.train_step(microbatches, learning_rate=0.0, consumed_samples=0)
        finally:
            self._capture = None
        yield from captured

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switches dropout off: attention masks depend on the tensor rank, so they differ between layouts."""
        before, self._clock.enabled = self._clock.enabled, False
        try:
            yield
        finally:
            self._clock.enabled = before

    def eval_step(self, microbatches: Sequence[Batch]) -> EvalResult:
        self._sums.start_evaluation()
        inputs = [self._objective.split(batch) for batch in microbatches]
        count = self._agreed_count(len(inputs))
        # DualPipeV's buffers are laid out for the training step's number of microbatches and for no other
        at_once = self._deepspeed.micro_batches if self._dual else count
        while inputs and len(inputs) % at_once != 0:
            tokens, targets = inputs[-1]
            inputs.append((tokens, targets._replace(loss_mask=torch.zeros_like(targets.loss_mask))))
        for first in range(0, count, at_once):
            self._deepspeed.eval_batch(
                iter(inputs[first : first + at_once]),
                reduce_output=None,
                bcast_loss=False,
                num_micro_batches=at_once,
            )
        totals = self._sums.totals(())
        return EvalResult(totals.source_loss_sums, totals.source_weights)

    def fragments(self) -> Iterator[Fragment]:
        optimizer = self._sharded.optimizer
        decayed = decayed_tensors(optimizer)
        for piece, master in self._sharded.masters():
            name, shard = name_of(piece.parameter), shard_of(piece.parameter)
            average, average_square = moments(optimizer, master)
            for kind, values in (
                (FragmentKind.MASTER, master),
                (FragmentKind.EXP_AVG, average),
                (FragmentKind.EXP_AVG_SQ, average_square),
            ):
                yield Fragment(
                    name,
                    kind,
                    values[piece.inside],
                    piece.start,
                    shard,
                    is_owner=self._holders.counts_in_norm(piece.parameter),
                    is_decayed=id(master) in decayed,
                )

    def copies(self) -> Iterator[Copy]:
        for parameter in self._parameters:
            shard, axes = shard_of(parameter), self._holders.copy_axes(parameter)
            yield Copy(name_of(parameter), WEIGHT, parameter.data.view(-1), (shard.rank, 0), axes)
        parameter_of = {name_of(parameter): parameter for parameter in self._parameters}
        for fragment in self.fragments():
            # each replica has another part; who holds the same weight besides has the same part of it
            axes = self._holders.copy_axes(parameter_of[fragment.name]) - {CopyAxis.DATA}
            part = (fragment.shard.rank, fragment.start)
            yield Copy(fragment.name, fragment.kind.value, fragment.flat, part, axes)

    def load_finished(self, optimizer_step: int) -> None:
        self._sharded.load_finished(optimizer_step)

    def _start(self, module: Any, settings: dict[str, Any], share_out: OptimizerOf, *, deferred: int | None) -> Any:
        """DeepSpeed's engine for the schedule. Collective."""
        if self._dual:
            from megatron_poro.engine.dualpipev import DualPipeV  # only newer DeepSpeeds have it

            return start_deepspeed(module, settings, share_out, kind=DualPipeV)
        if deferred is None:
            return start_deepspeed(module, settings, share_out)
        started = start_deepspeed(module, settings, share_out, kind=DeferringEngine)
        started.defer(deferred, Lanes.create(self.groups))
        return started

    def _loss(self, logits: Tensor, labels: Any) -> Tensor:
        """Loss of one microbatch: its sum over microbatches and replicas is the token mean."""
        targets = Targets(*labels)
        return self._sums.add_losses(self._objective.loss(logits, targets), targets)

    def _add_up(
        self, plan: LayerPlan, *, exactly: bool, microbatches: int, num_sources: int
    ) -> tuple[StepSums, GradientSums]:
        """What adds up a step, its losses and its gradients: chosen here, and nowhere else. Collective."""
        groups, holders, buckets = self.groups, self._holders, self._sharded.buckets
        if not exactly:
            plain = PlainSums(
                groups,
                has_loss=self.is_loss_stage,
                counts_in_norm=holders.counts_in_norm,
                num_sources=num_sources,
                device=self._device,
            )
            scattered = ScatteredSums(
                buckets, replicas=groups.data, passes=lambda parameter: microbatches * holders.uses(parameter)
            )
            return plain, scattered
        exact = ExactSums(
            plan,
            groups=groups,
            parameters=self._parameters,
            ties=holders.ties,
            microbatches=microbatches * groups.data.size,
            has_loss=self.is_loss_stage,
            counts_in_norm=holders.counts_in_norm,
            num_sources=num_sources,
            device=self._device,
        )
        return exact, ExactGradients(buckets, sums=exact)

    def _take_step(self) -> None:
        """What the schedule calls after the reduction of the gradients: norm, finite check, clipping, optimizer."""
        totals = self._sums.totals(self._gradient_sums.reduced())
        with self.groups.clock.running(Part.AGREEMENT):
            taken = self._capture is None and may_step(
                self._gate, loss=totals.loss, grad_norm=totals.grad_norm, world=self.groups.world
            )
        self._result = StepResult(*totals, taken)
        if self._capture is not None:
            self._capture(list(self._gradient_sums.whole()))
        if taken:
            # DeepSpeed's own step is not used: its norm fails on a stage that holds only a tied copy
            self._sharded.update(totals.grad_norm)

    def _agreed_count(self, count: int) -> int:
        """Number of microbatches of an evaluation, told to the stages that read no data."""
        counted = torch.tensor(float(count), device=self._device)
        return int(all_reduce(counted, self.groups.replica, maximum=True))
