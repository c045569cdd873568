"""LocalEngine against the plainest possible training step, and its guards."""

import dataclasses
import weakref

import pytest
import torch
from torch.nn import functional as F

from megatron_poro.config.run import EngineKind, Precision
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.engine.local import LocalEngine
from megatron_poro.engine.optimizer import parameter_groups
from megatron_poro.models.causal_lm import whole_model
from megatron_poro.parallel.groups import ParallelGroups
from tests.support.tiny import full_values, make_engine, microbatches, run_steps, tiny_config

CONFIG = tiny_config(kind=EngineKind.LOCAL, microbatch=4)
SINGLE = ParallelGroups.single()


def test_a_step_is_token_mean_then_clip_then_adamw() -> None:
    """Written out with torch alone: one big batch, cross entropy over masked tokens, torch's clip and AdamW."""
    model = whole_model(CONFIG.model, seed=CONFIG.run.seed)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() == 1]
    settings = CONFIG.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=CONFIG.schedule.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    expected = []
    for step in range(3):
        batches = microbatches(CONFIG, step, SINGLE)
        tokens, labels = (torch.cat([getattr(b, part) for b in batches]) for part in ("tokens", "labels"))
        mask = torch.cat([b.loss_mask for b in batches])
        losses = F.cross_entropy(model(tokens).transpose(1, 2), labels, reduction="none")
        loss = (losses * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        expected.append((float(loss.detach()), float(norm)))
    engine = make_engine(CONFIG)
    losses, norms, _ = run_steps(engine, CONFIG, range(3))
    assert list(zip(losses, norms, strict=True)) == [pytest.approx(pair, rel=1e-5) for pair in expected]
    found = full_values(engine)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[f"master.{name}"], parameter.detach(), atol=1e-4, rtol=0)


def test_nothing_of_the_last_step_is_left_where_a_step_gives_no_gradient() -> None:
    engine = make_engine(CONFIG)
    assert isinstance(engine, LocalEngine)
    name = "blocks.1.mlp.up.bias"
    engine.accumulate(microbatches(CONFIG, 0, SINGLE))
    assert engine.gradients()[name].any()
    engine.model.get_parameter(name).requires_grad_(False)
    engine.accumulate(microbatches(CONFIG, 1, SINGLE))
    assert not engine.gradients()[name].any()


@pytest.mark.parametrize("precision", list(Precision))
def test_sums_of_gradients_are_held_from_the_first_one_to_the_end_of_the_step(precision: Precision) -> None:
    engine = make_engine(tiny_config(kind=EngineKind.LOCAL, precision=precision))
    assert isinstance(engine, LocalEngine)
    batches = microbatches(CONFIG, 0, SINGLE)
    engine.accumulate(batches)
    sums = engine.gradients()
    assert list(sums) == [name for name, _ in engine.model.named_parameters()]
    assert {gradient.dtype for gradient in sums.values()} == {torch.float32}
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    held = weakref.ref(sums["embedding.weight"])
    del sums
    engine.train_step(batches, learning_rate=1e-2, consumed_samples=0)
    assert held() is None
    assert not engine.gradients()


def test_an_fp32_weight_is_its_own_master() -> None:
    engine = make_engine(CONFIG)
    assert isinstance(engine, LocalEngine)
    masters = {f.name: f.flat.data_ptr() for f in engine.fragments() if f.kind is FragmentKind.MASTER}
    assert masters == {name: parameter.data_ptr() for name, parameter in engine.model.named_parameters()}


def test_norms_and_biases_are_not_decayed_and_the_embedding_is() -> None:
    model = whole_model(CONFIG.model, seed=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = parameter_groups(model.parameters(), CONFIG.optimizer)
    assert decayed["weight_decay"] == CONFIG.optimizer.weight_decay
    assert kept["weight_decay"] == 0.0
    assert "embedding.weight" in {names[id(p)] for p in decayed["params"]}
    assert all(names[id(p)].endswith(("bias", "norm.weight")) for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_bf16_keeps_fp32_masters() -> None:
    """A step of 1e-7 is lost in bf16 weights and kept in their masters."""
    config = tiny_config(kind=EngineKind.LOCAL, precision=Precision.BF16)
    config.schedule.learning_rate = 1e-7
    engine = make_engine(config)
    before = full_values(engine)
    run_steps(engine, config, range(1))
    after = full_values(engine)
    moved = [name for name in before if name.startswith("master.") and not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len([name for name in before if name.startswith("master.")])
    weights = dict(engine.model.named_parameters())  # type: ignore[attr-defined]
    assert torch.equal(weights["blocks.0.mlp.up.weight"], after["master.blocks.0.mlp.up.weight"].bfloat16())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(poison: float) -> None:
    engine = make_engine(CONFIG)
    run_steps(engine, CONFIG, range(1))
    before = full_values(engine)
    bad = microbatches(CONFIG, 1, SINGLE)
    bad[2] = dataclasses.replace(bad[2], loss_mask=bad[2].loss_mask * poison)
    result = engine.train_step(bad, learning_rate=1e-2, consumed_samples=16)
    assert not result.taken
    after = full_values(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    control = make_engine(CONFIG)
    expected = run_steps(control, CONFIG, range(2))[0][1]
    assert run_steps(engine, CONFIG, range(1, 2))[0] == [expected], "what the bad step left behind leaked into the next"


def test_gradients_are_clipped_to_the_global_norm() -> None:
    small = tiny_config(kind=EngineKind.LOCAL)
    small.optimizer.clip_norm = 1e-3
    norms, moments = [], []
    for config in (CONFIG, small):
        engine = make_engine(config)
        norms.append(run_steps(engine, config, range(1))[1][0])
        averages = [v for name, v in full_values(engine).items() if name.startswith("exp_avg.")]
        moments.append(torch.cat([v.view(-1) for v in averages]).norm())
    assert norms[0] == pytest.approx(norms[1], rel=1e-5), "the reported norm is the one before clipping"
    assert float(moments[1]) == pytest.approx(0.1 * 1e-3, rel=1e-3), "first moment = (1 - beta1) * clipped gradient"
    assert norms[0] > CONFIG.optimizer.clip_norm, "the control would not be clipped"
    assert float(moments[0]) == pytest.approx(0.1 * CONFIG.optimizer.clip_norm, rel=1e-3)


def test_fragments_are_views_and_loading_them_restores_the_run() -> None:
    engine, other = make_engine(CONFIG), make_engine(CONFIG)
    run_steps(engine, CONFIG, range(2))
    saved: dict[tuple[str, FragmentKind], Fragment] = {(f.name, f.kind): f for f in engine.fragments()}
    for fragment in other.fragments():
        fragment.flat.copy_(saved[fragment.name, fragment.kind].flat)
    other.load_finished(optimizer_step=2)
    assert run_steps(other, CONFIG, range(2, 4)) == run_steps(engine, CONFIG, range(2, 4))


def test_evaluation_changes_nothing_and_repeats() -> None:
    engine = make_engine(tiny_config(kind=EngineKind.LOCAL, hidden_dropout=0.5))
    batches = microbatches(CONFIG, 5, SINGLE)
    first, second = engine.eval_step(batches), engine.eval_step(batches)
    assert torch.equal(first.source_loss_sums, second.source_loss_sums)
    assert float(first.source_weights.sum()) == float(sum(b.loss_mask.sum() for b in batches))
