"""How many floating-point operations a step takes, and what that says about the speed of the hardware.

*Model* FLOPs are what the mathematics needs; *hardware* FLOPs add what activation recomputation does a second time.
Both count a multiply-add as two operations and the attention matrix as full, although half of it is masked: the
published figures of the field do so, and ours are to be compared with them.
"""

from dataclasses import dataclass

from megatron_poro.config.run import Recompute


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of one optimizer step over the whole global batch.

    Attributes:
        model: forward and backward pass, each operation once.
        hardware: the same plus the operations of recomputation.
    """

    model: float
    hardware: float


def step_flops(
    *,
    num_layers: int,
    hidden_size: int,
    vocab_size: int,
    sequence_length: int,
    samples: int,
    recompute: Recompute,
    recomputed_layers: int | None = None,
) -> StepFlops:
    """Counts the matrix products of a decoder whose feed-forward layer is four times as wide as the residual stream.

    With full recomputation the hardware count is ``96 b s L h^2 (1 + s / 6h + v / 16 L h)``. The backward pass costs
    twice the forward pass. Full recomputation repeats every block but not the head; selective repeats the two
    products with the attention matrix.

    Args:
        num_layers: transformer blocks (L).
        hidden_size: width of the residual stream (h).
        vocab_size: rows of the embedding, padding included (v).
        sequence_length: tokens per sample (s).
        samples: samples in the global batch (b).
        recompute: which activations are computed again in the backward pass.
        recomputed_layers: in how many blocks; ``None`` for all.

    Source: Narayanan et al. 2021, arXiv:2104.04473, equation 3, split into its parts.
    """
    tokens = samples * sequence_length
    attention_products = 4.0 * tokens * sequence_length * hidden_size * num_layers
    blocks = 24.0 * tokens * hidden_size**2 * num_layers + attention_products
    head = 2.0 * tokens * hidden_size * vocab_size
    again = {Recompute.NONE: 0.0, Recompute.SELECTIVE: attention_products, Recompute.FULL: blocks}[recompute]
    share = 1.0 if recomputed_layers is None else recomputed_layers / num_layers
    model = 3.0 * (blocks + head)
    return StepFlops(model=model, hardware=model + share * again)


@dataclass(frozen=True)
class Throughput:
    """Speed of the steps of one interval.

    Attributes:
        step_seconds: wall time of one step.
        tokens_per_second: tokens of all replicas per second.
        model_tflops: model TFLOP/s of one device.
        hardware_tflops: hardware TFLOP/s of one device.
        mfu: ``model_tflops`` as a fraction of the device's peak; ``None`` if the peak is not known.
    """

    step_seconds: float
    tokens_per_second: float
    model_tflops: float
    hardware_tflops: float
    mfu: float | None


@dataclass(frozen=True)
class SpeedOfRun:
    """What does not change during a run and turns seconds into speed.

    Attributes:
        flops: operations of one step.
        tokens_per_step: tokens of the global batch.
        devices: devices that share the work.
        peak_tflops: peak TFLOP/s of one device, or ``None``.
    """

    flops: StepFlops
    tokens_per_step: int
    devices: int
    peak_tflops: float | None = None

    def of(self, seconds: float, steps: int = 1) -> Throughput:
        """Speed of ``steps`` steps that took ``seconds`` together."""
        step_seconds = seconds / steps
        per_device = 1.0 / (step_seconds * self.devices * 1e12)
        model_tflops = self.flops.model * per_device
        return Throughput(
            step_seconds=step_seconds,
            tokens_per_second=self.tokens_per_step / step_seconds,
            model_tflops=model_tflops,
            hardware_tflops=self.flops.hardware * per_device,
            mfu=None if self.peak_tflops is None else model_tflops / self.peak_tflops,
        )
