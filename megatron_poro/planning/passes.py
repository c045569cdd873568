"""Seconds of passes through the stages of a pipeline, and of what stages send each other."""

from collections.abc import Sequence

from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.run import Recompute, TrainConfig
from megatron_poro.parallel.schedules import Pass
from megatron_poro.planning.layers import LayerSize, stage_layers
from megatron_poro.planning.traffic import Links, activation_bytes, boundary_bytes, ring_bytes, tensor_sums


class PassTimes:
    """Seconds of a pass through a stage.

    Args:
        config: a valid config.
        hardware: the machine.
        link: its links, of which those of tensor groups count.
        accumulated: bytes of memory that are read and written to add one number of a gradient to its sum; ``None`` is
            what this engine does, see :func:`accumulated_bytes`.
    """

    def __init__(
        self, config: TrainConfig, hardware: HardwareConfig, link: Links, *, accumulated: float | None = None
    ) -> None:
        self._config, self._link = config, link
        self._defers = config.engine.deferred_weight_gradients is not None
        self._stages = stage_layers(config)
        self._flops_per_second = 1e12 * hardware.peak_tflops_in(config.engine.precision) * hardware.efficiency
        self._add_seconds = (
            accumulated_bytes(config) if accumulated is None else accumulated
        ) / hardware.memory_bandwidth

        places = [(kind, stage) for kind in Pass for stage in range(len(self._stages))]
        self._compute = {(kind, stage): self._compute_seconds(kind, self._stages[stage]) for kind, stage in places}
        self._tensor = {(kind, stage): self._tensor_seconds(kind, self._stages[stage]) for kind, stage in places}

    def compute(self, kind: Pass, stage: int) -> float:
        """Without communication."""
        return self._compute[kind, stage]

    def tensor(self, kind: Pass, stage: int) -> float:
        """Sums over the tensor group."""
        return self._tensor[kind, stage]

    def __call__(self, kind: Pass, stage: int) -> float:
        return self._compute[kind, stage] + self._tensor[kind, stage]

    def gradients_of_first(self, stage: int, number: int) -> float:
        """The end of the pass that gives weights their gradients: through the first so many layers of a stage."""
        kind, layers = Pass.WEIGHT_GRADIENTS if self._defers else Pass.BACKWARD, self._stages[stage][:number]
        return self._compute_seconds(kind, layers) + self._tensor_seconds(kind, layers)

    def _compute_seconds(self, kind: Pass, layers: Sequence[LayerSize]) -> float:
        config = self._config
        tokens = config.engine.microbatch_samples * config.data.sequence_length
        length, size = config.data.sequence_length, config.parallel.tensor
        forward = sum(layer.forward_flops(tokens, length) for layer in layers)
        # a weight's gradient is one product, as large as the forward one; attention has no weights
        of_weights = sum(layer.forward_flops(tokens, 0) for layer in layers)
        again = sum(_recomputed_flops(layer, tokens, length) for layer in layers)
        flops = {
            Pass.FORWARD: forward,
            Pass.BACKWARD: 2 * forward + again - (of_weights if self._defers else 0.0),
            Pass.WEIGHT_GRADIENTS: of_weights if self._defers else 0.0,
        }
        adds_up = kind is (Pass.WEIGHT_GRADIENTS if self._defers else Pass.BACKWARD)
        added = self._add_seconds * sum(layer.parameters(size) for layer in layers) if adds_up else 0.0
        return flops[kind] / size / self._flops_per_second + added

    def _tensor_seconds(self, kind: Pass, layers: Sequence[LayerSize]) -> float:
        size = self._config.parallel.tensor
        if size == 1:
            return 0.0
        sums = tensor_sums(
            layers,
            drops=self._config.model.hidden_dropout > 0.0,
            sequence=self._config.parallel.sequence,
            defers=self._defers,
        )
        each = ring_bytes(activation_bytes(self._config), size) / self._link.tensor + self._link.latency
        return sums[kind] * each


def accumulated_bytes(config: TrainConfig) -> float:
    """Bytes of memory that are read and written to add one number of a gradient to its sum.

    A gradient is read in the format of the weights, its sum read and written in fp32. Exact sums
    (:meth:`megatron_poro.engine.fixed_point.FixedPointSums.add`) look for the largest one first (read, written and read
    again), make fp64 of it, scale, round, make integers of that, mask, and add: 8 bytes a number each time.
    """
    item = config.engine.precision.item_bytes
    if not config.engine.reproducible:
        return float(item + 2 * 4)
    largest, converted, in_place, added = 3 * item, item + 8, 4 * (8 + 8), 3 * 8
    return float(largest + converted + in_place + added)


def transfer_seconds(config: TrainConfig, link: Links) -> float:
    """Time that a microbatch takes from one stage to the next."""
    return boundary_bytes(config) / link.pipeline + link.latency


def _recomputed_flops(layer: LayerSize, tokens: int, length: int) -> float:
    if layer.recompute is Recompute.FULL:
        return layer.forward_flops(tokens, length)
    return 2.0 * tokens * layer.attention * length if layer.recompute is Recompute.SELECTIVE else 0.0
