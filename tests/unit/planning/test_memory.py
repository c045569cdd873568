"""What a plan says of memory is what autograd keeps and what the engine holds."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from megatron_poro.config.model import BloomConfig
from megatron_poro.config.run import AttentionBackend, Recompute
from megatron_poro.models.bloom import BlockOptions, bloom_plan
from megatron_poro.models.init import build_layer
from megatron_poro.parallel.groups import AxisGroup
from megatron_poro.planning.memory import TensorSizes, rank_memory
from tests.unit.planning.configs import poro

MODEL = BloomConfig(num_layers=2, hidden_size=64, num_heads=4, vocab_size=512)
SAMPLES, LENGTH = 2, 128


def saved_bytes(backend: AttentionBackend, recompute: Recompute, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a block, each storage once, parameters and shared constants left out."""
    options = BlockOptions(backend=backend, recompute=recompute)
    plan = bloom_plan(MODEL, group=AxisGroup.single(), options=options)
    (entry,) = [entry for entry in plan.entries if entry.role == "blocks.0"]
    block = build_layer(entry, seed=0, device="cpu").to(dtype)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.dtype is not torch.bool:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.randn(SAMPLES, LENGTH, MODEL.hidden_size, dtype=dtype, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        block(inputs)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.SELECTIVE])
@pytest.mark.parametrize("backend", [AttentionBackend.EAGER, AttentionBackend.SDPA, AttentionBackend.FLASH])
def test_a_block_keeps_the_bytes_that_are_planned(
    backend: AttentionBackend, recompute: Recompute, dtype: torch.dtype
) -> None:
    sizes = TensorSizes(
        tokens=SAMPLES * LENGTH,
        hidden=MODEL.hidden_size,
        heads=MODEL.num_heads,
        tensor=1,
        length=LENGTH,
        item=dtype.itemsize,
    )
    assert sizes.block(backend, selective=recompute is Recompute.SELECTIVE) == saved_bytes(backend, recompute, dtype)


def test_a_block_under_full_recomputation_keeps_its_input() -> None:
    bytes_of_input = SAMPLES * LENGTH * MODEL.hidden_size * 4
    assert saved_bytes(AttentionBackend.EAGER, Recompute.FULL, torch.float32) == bytes_of_input


def test_a_reproducible_run_keeps_its_gradient_in_integers_too() -> None:
    config = poro()
    config.engine.reproducible = True
    parts = rank_memory(config, world_size=1024, backend=AttentionBackend.FLASH)
    assert parts[0].gradients == (4 + 8) * 4_467_309_056


def test_poro_34b_needs_what_it_was_seen_to_need() -> None:
    """About 30 of 64 GB were used on every GCD."""
    parts = rank_memory(poro(), world_size=1024, backend=AttentionBackend.FLASH)
    assert [round(part.total / 1e9) for part in parts] == pytest.approx([30, 29, 29, 30], abs=2)
    assert parts[0].weights == 2 * 4_467_309_056
    assert parts[0].gradients == 4 * 4_467_309_056
    assert parts[0].optimizer == 12 * 4_467_309_056 / 128
    assert parts[0].head == 0 < parts[3].head
