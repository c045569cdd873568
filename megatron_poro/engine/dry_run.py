"""What a dry run must know of DeepSpeed's engine: a message that says shapes, the layers, tensors held for good.

A dry run executes the real engine with tensors that have a shape and no numbers
(:mod:`megatron_poro.simulation.rank`). One message of a step decides shapes by its numbers: before its first activation
a stage tells the next one what is coming. Everything else DeepSpeed derives from tensors that it has.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_poro.engine.engine import Engine
from megatron_poro.engine.pipeline_engine import PipelineEngine

_SHAPE_MESSAGE_NUMBERS = 256
"""Integers in DeepSpeed's message about the tensor that comes next."""


def assume_received(engine: Engine, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """From now on a stage that asks what comes next receives the message and is told this shape instead of reading it.

    Args:
        engine: one that runs without its neighbours.
        shape: of the activations that a neighbour sends.
        dtype: their format.
    """
    deepspeed = _pipeline(engine)._deepspeed

    def receive(source_stage: int) -> Any:
        message = torch.empty(_SHAPE_MESSAGE_NUMBERS, dtype=torch.int32, device=deepspeed.device)
        torch.distributed.recv(message, deepspeed.grid.stage_to_global(stage_id=source_stage))
        return deepspeed._allocate_or_extend_buffers(0, list(shape), dtype)

    deepspeed._recv_tensor_meta = receive


def layer_roles(engine: Engine) -> list[str]:
    """Roles of the plan's layers that this process computes, in the order of the model."""
    module = _pipeline(engine)._deepspeed.module
    bounds = getattr(module, "phase_bounds", [(module._local_start, module._local_stop)])  # DualPipeV has two stages
    return [spec.entry.role for start, stop in bounds for spec in module._layer_specs[start:stop]]


def held_for_good(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Tensors that an engine holds from its construction on, each with the part of a memory plan that it belongs to.

    Yields:
        ``weights``, ``gradients`` or ``optimizer``, and a tensor; several may be views of one storage.
    """
    yield from _pipeline(engine)._sharded.held_for_good()


def _pipeline(engine: Engine) -> PipelineEngine:
    assert isinstance(engine, PipelineEngine), f"a dry run is of a PipelineEngine, not of a {type(engine).__name__}"
    return engine
