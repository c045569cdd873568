"""A training step of a tensor x pipeline x data grid on DeepSpeed's pipeline engine, 1F1B or DualPipeV.

What is DeepSpeed's: the schedules, sending activations and gradients between stages, fp32 gradient accumulation and the
ZeRO-1 cut of masters and moments. What is ours: the layers, the stage boundaries, the loss as a true mean over the
global batch's tokens, sums over a cut sequence, the gradient norm, clipping, and the decision whether a step is taken.

DeepSpeed averages over microbatches and replicas. That equals the token mean only when all have equally many loss
tokens, so each microbatch's loss is scaled by (microbatches * replicas) / (loss tokens of the step). In a reproducible
run the gradients are added up and averaged by :class:`~megatron_poro.engine.exact_sums.ExactSums` instead.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine as DeepSpeedPipelineEngine
from torch import Tensor, nn

from megatron_poro.config.run import OptimizerConfig, PipelineSchedule, Precision
from megatron_poro.data.batch import Batch
from megatron_poro.engine.deepspeed_config import deepspeed_config
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
from megatron_poro.engine.gradients import clip_, may_step
from megatron_poro.engine.objective import Objective, Targets
from megatron_poro.engine.optimizer import (
    adamw,
    decayed_tensors,
    moments,
    parameter_groups,
    prepare_state,
    set_learning_rate,
    set_step_count,
)
from megatron_poro.engine.stages import build_stages, quiet
from megatron_poro.engine.step_sums import PlainSums, StepSums
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.collectives import all_reduce
from megatron_poro.parallel.groups import AxisGroup, ParallelGroups
from megatron_poro.parallel.rng import DropoutClock
from megatron_poro.parallel.shards import name_of, shard_of
from megatron_poro.parallel.step_clock import Part

_PARTS: Mapping[str, Part] = {
    "LoadMicroBatch": Part.LOADING,
    "ForwardPass": Part.COMPUTE,
    "BackwardPass": Part.COMPUTE,
    "SendActivation": Part.PIPELINE,
    "RecvActivation": Part.PIPELINE,
    "SendGrad": Part.PIPELINE,
    "RecvGrad": Part.PIPELINE,
    "CommitP2P": Part.PIPELINE,  # DualPipeV's, where what it sends and receives really travels
    "ReduceTiedGrads": Part.PIPELINE,
    "ReduceGrads": Part.DATA,
    "OptimizerStep": Part.OPTIMIZER,
}
"""What the time of a schedule's instruction counts to, by its name: older DeepSpeeds do not have all of them."""


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
        precision: Precision,
        reproducible: bool,
        device: torch.device,
    ) -> None:
        self.groups = groups
        self._objective, self._config, self._clock, self._device = objective, optimizer, clock, device
        self._tied = plan.tied_roles
        self._dual = pipeline_schedule is PipelineSchedule.DUALPIPEV
        self._result: StepResult | None = None
        self._gate: StepGate = accept_every_step
        self._capture: Callable[[list[tuple[nn.Parameter, Tensor]]], None] | None = None
        dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
        module = build_stages(
            plan,
            topology=groups.topology,
            stage_weights=stage_weights,
            dual=self._dual,
            loss=self._loss,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        settings = deepspeed_config(
            precision=precision,
            microbatch_samples=microbatch_samples,
            microbatches=microbatches,
            data_size=groups.data.size,
        )
        base = adamw(parameter_groups(module.parameters(), optimizer), optimizer, reproducible=reproducible)
        self._deepspeed = _start_deepspeed(module, settings, base, dual=self._dual)
        self._deepspeed.take_step = self._take_step
        self._parameters: list[nn.Parameter] = list(module.parameters())
        self._base_optimizer: torch.optim.Optimizer = self._deepspeed.basic_optimizer
        prepare_state(self._base_optimizer)
        self._sums = self._step_sums(plan, exact=reproducible, microbatches=microbatches, num_sources=num_sources)
        instructions = dict(self._deepspeed._INSTRUCTION_MAP)  # DeepSpeed's own is shared by all its engines
        if self._sums.reduces_gradients:
            instructions[schedule.ReduceTiedGrads] = lambda _: None
        instructions[schedule.ReduceGrads] = self._reduction(instructions[schedule.ReduceGrads])
        self._deepspeed._INSTRUCTION_MAP = instructions
        self._tell_clock()

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
        set_learning_rate(self._base_optimizer, learning_rate)
        inputs = [self._objective.split(batch) for batch in microbatches]
        weights = [self._objective.weight(targets) for _, targets in inputs] if self.is_loss_stage else []
        self._sums.start_step(weights)
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
        decayed = decayed_tensors(self._base_optimizer)
        for parameter, master, start in self._master_pieces():
            average, average_square = (
                state.view(-1)[master.storage_offset : master.storage_offset + master.length]
                for state in moments(self._base_optimizer, master.tensor)
            )
            values = master.tensor.data.view(-1)[master.storage_offset : master.storage_offset + master.length]
            name, shard = name_of(parameter), shard_of(parameter)
            for kind, flat in (
                (FragmentKind.MASTER, values),
                (FragmentKind.EXP_AVG, average),
                (FragmentKind.EXP_AVG_SQ, average_square),
            ):
                yield Fragment(
                    name,
                    kind,
                    flat,
                    start,
                    shard,
                    is_owner=self._owns(parameter),
                    is_decayed=id(master.tensor) in decayed,
                )

    def copies(self) -> Iterator[Copy]:
        partitioned = isinstance(self._deepspeed.optimizer, BF16_Optimizer)
        if partitioned:  # without masters of their own the weights are the masters
            for parameter in self._parameters:
                shard, axes = shard_of(parameter), self._copy_axes(parameter)
                yield Copy(name_of(parameter), WEIGHT, parameter.data.view(-1), (shard.rank, 0), axes)
        parameter_of = {name_of(parameter): parameter for parameter in self._parameters}
        for fragment in self.fragments():
            # each replica and each end of the tie cuts its masters at other places
            elsewhere = {CopyAxis.DATA, CopyAxis.PIPELINE} if partitioned else set[CopyAxis]()
            axes = self._copy_axes(parameter_of[fragment.name]) - elsewhere
            part = (fragment.shard.rank, fragment.start)
            yield Copy(fragment.name, fragment.kind.value, fragment.flat, part, axes)

    def load_finished(self, optimizer_step: int) -> None:
        set_step_count(self._base_optimizer, optimizer_step)
        if isinstance(self._deepspeed.optimizer, BF16_Optimizer):
            self._deepspeed.optimizer.update_lp_params()

    def _loss(self, logits: Tensor, labels: Any) -> Tensor:
        """Loss of one microbatch as DeepSpeed wants it: its mean over microbatches and replicas is the token mean."""
        targets = Targets(*labels)
        return self._sums.add_losses(self._objective.loss(logits, targets), targets)

    def _step_sums(self, plan: LayerPlan, *, exact: bool, microbatches: int, num_sources: int) -> StepSums:
        """What adds up; collective."""
        total = microbatches * self.groups.data.size
        if not exact:
            return PlainSums(
                self.groups,
                has_loss=self.is_loss_stage,
                averaged_over=total,
                counts_in_norm=self._counts_in_norm,
                num_sources=num_sources,
                device=self._device,
            )
        ties = [
            (name_of(weight), self._tie_group(group))
            for weight, group in self._deepspeed.module.get_tied_weights_and_groups()
        ]
        return ExactSums(
            plan,
            groups=self.groups,
            parameters=self._parameters,
            ties={name: group for name, group in ties if group.size > 1},
            microbatches=total,
            has_loss=self.is_loss_stage,
            counts_in_norm=self._counts_in_norm,
            num_sources=num_sources,
            device=self._device,
        )

    def _reduction(self, of_deepspeed: Callable[..., None]) -> Callable[..., None]:
        """What the schedule calls after the last backward pass: our sums, and where they leave it to DeepSpeed, its."""

        def reduce(engine: Any) -> None:
            self._sums.reduce_gradients(self._gradient_views())
            if not self._sums.reduces_gradients:
                of_deepspeed(engine)

        return reduce

    def _tell_clock(self) -> None:
        """Makes the instructions of the schedule, and what DeepSpeed does after the last one, tell what they are."""
        clock, engine = self.groups.clock, self._deepspeed
        engine._INSTRUCTION_MAP = {
            kind: clock.timed(run, _PARTS.get(kind.__name__, Part.OTHER))
            for kind, run in engine._INSTRUCTION_MAP.items()
        }
        engine._aggregate_total_loss = clock.timed(engine._aggregate_total_loss, Part.AGREEMENT)

    def _tie_group(self, group: dist.ProcessGroup) -> AxisGroup:
        return AxisGroup(
            dist.get_rank(group), dist.get_world_size(group), group, part=Part.PIPELINE, clock=self.groups.clock
        )

    def _take_step(self) -> None:
        """What the schedule calls after the reduction of the gradients: norm, finite check, clipping, optimizer."""
        views = list(self._gradient_views())
        totals = self._sums.totals(views)
        with self.groups.clock.running(Part.AGREEMENT):
            taken = self._capture is None and may_step(
                self._gate, loss=totals.loss, grad_norm=totals.grad_norm, world=self.groups.world
            )
        self._result = StepResult(*totals, taken)
        if self._capture is not None:
            self._capture(views)
        if taken:
            self._update(totals.grad_norm)
        self._drop_gradients()

    def _update(self, norm: Tensor) -> None:
        """Clips and steps. DeepSpeed's own step is not used: its norm fails on a stage that holds only a tied copy."""
        optimizer = self._deepspeed.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            masters, gradients = optimizer.fp32_groups_flat_partition, optimizer.fp32_groups_gradient_flat_partition
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad = gradient
        else:
            gradients = [gradient for _, gradient in self._gradient_views()]
        clip_(gradients, norm=norm, clip_norm=self._config.clip_norm)
        self._base_optimizer.step()
        if isinstance(optimizer, BF16_Optimizer):
            optimizer.update_lp_params()

    def _gradient_views(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its reduced fp32 gradient, as a view of DeepSpeed's buffer."""
        optimizer = self._deepspeed.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            for group, gradients in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True):
                for parameter, gradient in zip(group, gradients, strict=True):
                    yield parameter, gradient.view(parameter.shape)
        else:
            for parameter in self._parameters:
                assert parameter.grad is not None, f"{name_of(parameter)} got no gradient"
                yield parameter, parameter.grad

    def _counts_in_norm(self, parameter: nn.Parameter) -> bool:
        """Whether this process adds the parameter to the global norm: each element of the model is counted once."""
        if parameter.ds_pipe_replicated:  # type: ignore[attr-defined]
            return False
        return shard_of(parameter).dim is not None or self.groups.tensor.rank == 0

    def _copy_axes(self, parameter: nn.Parameter) -> frozenset[CopyAxis]:
        """Along which axes other processes hold the whole shard of a parameter too."""
        axes = {CopyAxis.DATA}
        if shard_of(parameter).dim is None:
            axes.add(CopyAxis.TENSOR)
        if name_of(parameter).partition(".")[0] in self._tied:
            axes.add(CopyAxis.PIPELINE)
        return frozenset(axes)

    def _owns(self, parameter: nn.Parameter) -> bool:
        """Whether this process writes its piece of the parameter into checkpoints."""
        partitioned = isinstance(self._deepspeed.optimizer, BF16_Optimizer)
        return self._counts_in_norm(parameter) and (partitioned or self.groups.data.rank == 0)

    def _master_pieces(self) -> Iterator[tuple[nn.Parameter, "_MasterPiece", int]]:
        """Each parameter of which this process keeps fp32 values: where they are, and where they begin in the shard."""
        optimizer = self._deepspeed.optimizer
        if not isinstance(optimizer, BF16_Optimizer):
            for parameter in self._parameters:
                yield parameter, _MasterPiece(parameter, 0, parameter.numel()), 0
            return
        for group, partition in zip(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, strict=True):
            # the group is one flat tensor; this process keeps [low, high) of it
            low = self.groups.data.rank * partition.numel()
            high, position = low + partition.numel(), 0
            for parameter in group:
                first, last = max(position, low), min(position + parameter.numel(), high)
                if first < last:
                    yield parameter, _MasterPiece(partition, first - low, last - first), first - position
                position += parameter.numel()

    def _agreed_count(self, count: int) -> int:
        """Number of microbatches of an evaluation, told to the stages that read no data."""
        counted = torch.tensor(float(count), device=self._device)
        return int(all_reduce(counted, self.groups.replica, maximum=True))

    def _drop_gradients(self) -> None:
        optimizer = self._deepspeed.optimizer
        if isinstance(optimizer, BF16_Optimizer):
            optimizer.zero_grad()
        else:
            self._deepspeed.module.zero_grad(set_to_none=True)


class _MasterPiece:
    """A range of a tensor the optimizer updates."""

    def __init__(self, tensor: Tensor, storage_offset: int, length: int) -> None:
        self.tensor, self.storage_offset, self.length = tensor, storage_offset, length


class _OneForwardOneBackward(DeepSpeedPipelineEngine):  # type: ignore[misc]
    """DeepSpeed's 1F1B engine, with the optimizer step handed back to us."""

    take_step: Callable[[], None]

    def _exec_optimizer_step(self, lr_kwargs: Any = None) -> None:
        self.take_step()

    _INSTRUCTION_MAP: ClassVar[dict[type, Callable[..., None]]] = {
        **DeepSpeedPipelineEngine._INSTRUCTION_MAP,
        schedule.OptimizerStep: _exec_optimizer_step,
    }


def _start_deepspeed(module: Any, settings: dict[str, Any], optimizer: torch.optim.Optimizer, *, dual: bool) -> Any:
    """Wraps a module in DeepSpeed's engine, as ``deepspeed.initialize`` does for a pipeline, with our subclass."""
    engine: type[Any] = _OneForwardOneBackward
    if dual:
        from megatron_poro.engine.dualpipev import DualPipeV  # only newer DeepSpeeds have it

        engine = DualPipeV
    with quiet():
        return engine(
            args=None,
            model=module,
            optimizer=optimizer,
            mpu=module.mpu(),
            config=settings,
            config_class=DeepSpeedConfig(settings, module.mpu()),
        )
