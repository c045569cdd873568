"""A training step in one process with plain torch: the control of every proof, the debugger, the quick start.

It computes what the pipeline engine computes: weights and activations in the run's format, fp32 masters and moments,
and gradients of each microbatch added up in fp32. A gradient is taken the moment autograd has made it, and its sum is
held from then to the end of the step only: next to the logits of the first microbatch there is none yet.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from megatron_poro.config.run import OptimizerConfig
from megatron_poro.data.batch import Batch
from megatron_poro.engine.engine import (
    Copy,
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
from megatron_poro.engine.step_sums import PlainSums, StepSums
from megatron_poro.models.causal_lm import CausalLM
from megatron_poro.models.plan import LayerPlan
from megatron_poro.parallel.groups import ParallelGroups
from megatron_poro.parallel.rng import DropoutClock
from megatron_poro.parallel.shards import shard_of
from megatron_poro.parallel.step_clock import Part


class LocalEngine:
    """Runs steps on a whole model in this process.

    Args:
        plan: the model, for a tensor group of one.
        objective: what is minimised.
        optimizer: AdamW's settings.
        clock: the plan's source of dropout masks.
        seed: of the initial weights.
        num_sources: sources of the mixture, for losses per source.
        device: where the model lives.
        dtype: format of weights and activations.
        reproducible: whether a step has the bits that every layout gives it; needs to know ``microbatches``.
        microbatches: of a step.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        objective: Objective,
        optimizer: OptimizerConfig,
        clock: DropoutClock,
        seed: int,
        num_sources: int,
        device: torch.device,
        dtype: torch.dtype,
        reproducible: bool = False,
        microbatches: int = 1,
    ) -> None:
        self.groups = ParallelGroups.single()
        self.model = CausalLM(plan, seed=seed, device=device, dtype=dtype)
        self._objective, self._config, self._clock, self._device = objective, optimizer, clock, device
        self._parameters = dict(self.model.named_parameters())
        self._masters = {name: _master(parameter) for name, parameter in self._parameters.items()}
        self._gradients: dict[str, Tensor] = {}
        self._optimizer = adamw(
            parameter_groups(self._masters.values(), optimizer), optimizer, reproducible=reproducible
        )
        prepare_state(self._optimizer)
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(partial(self._take, name))  # type: ignore[no-untyped-call]
        self._exact = (
            ExactSums(
                plan,
                groups=self.groups,
                parameters=self._parameters.values(),
                ties={},
                microbatches=microbatches,
                has_loss=True,
                counts_in_norm=_always,
                num_sources=num_sources,
                device=device,
            )
            if reproducible
            else None
        )
        self._sums: StepSums = self._exact or PlainSums(
            self.groups,
            has_loss=True,
            counts_in_norm=_always,
            num_sources=num_sources,
            device=device,
        )

    @property
    def needs_data(self) -> bool:
        return True

    def train_step(
        self,
        microbatches: Sequence[Batch],
        *,
        learning_rate: float,
        consumed_samples: int,
        gate: StepGate = accept_every_step,
    ) -> StepResult:
        self._clock.start_step(consumed_samples)
        self.accumulate(microbatches)
        with self.groups.clock.running(Part.OPTIMIZER):
            totals = self._sums.totals(self._with_gradients())
            taken = may_step(gate, loss=totals.loss, grad_norm=totals.grad_norm, world=self.groups.world)
            if taken:
                clip_(self._gradients.values(), norm=totals.grad_norm, clip_norm=self._config.clip_norm)
                self._update(learning_rate)
            self._gradients = {}
        return StepResult(*totals, taken)

    def accumulate(self, microbatches: Sequence[Batch]) -> None:
        """Forward and backward of a step's microbatches; leaves the mean gradient in fp32."""
        self.model.train()
        self._gradients = {}
        inputs = [self._objective.split(batch) for batch in microbatches]
        self._sums.start_step([self._objective.weight(targets) for _, targets in inputs])
        for tokens, targets in inputs:
            with self.groups.clock.running(Part.LOADING):
                loaded, here = tokens.to(self._device), Targets(*(tensor.to(self._device) for tensor in targets))
            with self.groups.clock.running(Part.COMPUTE):
                parts = self._objective.loss(self.model(loaded), here)
                self._sums.add_losses(parts, here).backward()  # type: ignore[no-untyped-call]
        found = self._gradients
        self._gradients = {
            name: found[name] if name in found else torch.zeros_like(master) for name, master in self._masters.items()
        }
        if self._exact is not None:
            with self.groups.clock.running(Part.DATA):
                self._exact.reduce_gradients(self._with_gradients())

    def gradients(self) -> dict[str, Tensor]:
        """The fp32 gradients left by :meth:`accumulate`, by canonical name; a step forgets them."""
        return self._gradients

    def eval_step(self, microbatches: Sequence[Batch]) -> EvalResult:
        self.model.eval()
        self._sums.start_evaluation()
        with torch.no_grad():
            for batch in microbatches:
                tokens, targets = self._objective.split(batch)
                here = Targets(*(tensor.to(self._device) for tensor in targets))
                self._sums.add_losses(self._objective.loss(self.model(tokens.to(self._device)), here), here)
        totals = self._sums.totals(())
        return EvalResult(totals.source_loss_sums, totals.source_weights)

    def fragments(self) -> Iterator[Fragment]:
        decayed = decayed_tensors(self._optimizer)
        for name, master in self._masters.items():
            average, average_square = moments(self._optimizer, master)
            shard = shard_of(self._parameters[name])
            for kind, values in (
                (FragmentKind.MASTER, master.data),
                (FragmentKind.EXP_AVG, average),
                (FragmentKind.EXP_AVG_SQ, average_square),
            ):
                yield Fragment(name, kind, values.view(-1), 0, shard, is_owner=True, is_decayed=id(master) in decayed)

    def copies(self) -> Iterator[Copy]:
        return iter(())

    def load_finished(self, optimizer_step: int) -> None:
        set_step_count(self._optimizer, optimizer_step)
        self._refresh_weights()

    def _take(self, name: str, parameter: nn.Parameter) -> None:
        """Adds a gradient that autograd has made to its fp32 sum, and lets go of it; exact sums had it before."""
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if self._exact is None:
            if name in self._gradients:
                self._gradients[name] += gradient
            else:
                self._gradients[name] = gradient.float()

    def _update(self, learning_rate: float) -> None:
        """AdamW on the masters; the weights are rounded from them."""
        for name, master in self._masters.items():
            master.grad = self._gradients[name]
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._refresh_weights()

    def _with_gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        return zip(self._parameters.values(), self._gradients.values(), strict=True)

    def _refresh_weights(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if (master := self._masters[name]) is not parameter:
                    parameter.copy_(master)


def _always(parameter: nn.Parameter) -> bool:
    return True


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """The fp32 value that the optimizer updates: of an fp32 weight itself, else a copy, which starts as the weight."""
    return parameter if parameter.dtype is torch.float32 else nn.Parameter(parameter.detach().float())
