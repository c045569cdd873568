"""Steps of published runs on LUMI, worked out with the parts of ``poro plan``, beside what was published.

Run from the checkout: ``python -m benchmarks.published_runs``. Takes a second; nothing is measured here.

The runs were made with Megatron-DeepSpeed, whose step differs from this engine's in what follows the passes:
gradients, added up in fp32, are summed over replicas as bf16 numbers with an all-reduce; then every process updates its
part, and the new weights are gathered. Between stages each tensor rank sends its part of an activation, and the parts
are gathered behind. All of that is in the logs below (bytes of each call) and in DeepSpeed 0.8's files
``runtime/bf16_optimizer.py``, ``runtime/engine.py`` (``allreduce_bucket``) and ``runtime/pipe/engine.py``.

One number is fitted for each software: the share of the peak that passes reach, from the smallest run that was
published for it. The bandwidth between nodes is read off the logs: 2.93 GB all-reduced over 8, 16 and 32 nodes in
1.046, 1.109 and 1.148 s, by all devices of the nodes at once, is 4.9 to 5.0 GB/s that a device sends.

Source: github.com/spyysalo/lumi-llm-scaling, ``meg-ds-sing`` (33B), ``meg-ds`` and its
``experiments/175B-scaling-comms`` (175B); arXiv:2404.01856 (Poro 34B).
"""

import dataclasses
from typing import NamedTuple

from megatron_poro.config.derived import batch_plan
from megatron_poro.config.hardware import HardwareConfig
from megatron_poro.config.load import load_config, load_plan
from megatron_poro.config.run import TrainConfig
from megatron_poro.metrics.throughput import SpeedOfRun, step_flops
from megatron_poro.planning.layers import held_parameters, rank_layers
from megatron_poro.planning.passes import PassTimes
from megatron_poro.planning.pipeline import step_length
from megatron_poro.planning.traffic import activation_bytes, links, ring_bytes

_ACCUMULATE_BYTES = 18.0
"""A bf16 gradient is read, written as fp32, read again, and its sum read and written."""

_REDUCE_BYTES = 16.0
"""Of memory, for a parameter: fp32 read and bf16 written, divided in place, bf16 read and fp32 written."""

_STEP_BYTES = 16.0
"""Of memory, for a parameter: norm, clipping, and sums set to zero."""

_UPDATE_BYTES = 28.0
"""Of memory, for a parameter of this process's part: gradient, masters, moments read; masters, moments written."""


class Published(NamedTuple):
    """A run.

    Attributes:
        name: what it was.
        model: layers, hidden size, heads, vocabulary.
        layout: tensor, pipeline, data.
        samples: of a microbatch, of a step.
        tflops: published TFLOP/s of a device, recomputation counted.
    """

    name: str
    model: tuple[int, int, int, int]
    layout: tuple[int, int, int]
    samples: tuple[int, int]
    tflops: float

    @property
    def devices(self) -> int:
        """All of them."""
        tensor, pipeline, data = self.layout
        return tensor * pipeline * data

    def config(self) -> TrainConfig:
        """The run in this project's words."""
        model = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.vocab_size")
        layout = ("parallel.tensor", "parallel.pipeline", "parallel.data")
        samples = ("engine.microbatch_samples", "schedule.global_batch_samples")
        pairs = zip((*model, *layout, *samples), (*self.model, *self.layout, *self.samples), strict=True)
        return load_config(["experiment=poro_34b", *(f"{key}={value}" for key, value in pairs)])


def _of_33b(name: str, data: int, tflops: float) -> Published:
    return Published(name, (60, 6656, 52, 50432), (2, 4, data), (2, 1024), tflops)


def _of_175b(nodes: int, tflops: float) -> Published:
    return Published(f"175B on {nodes} nodes", (70, 14336, 112, 51200), (8, 8, nodes // 8), (2, 1024), tflops)


CALIBRATION_33B = _of_33b("33B on 8 nodes", 8, 64.8)
PORO_34B = Published("Poro 34B on 128 nodes", (54, 7168, 56, 128000), (2, 4, 128), (1, 2048), 48.46)
CALIBRATION_175B = _of_175b(16, 67.0)
SCALED_175B = (_of_175b(64, 59.59), _of_175b(128, 52.91), _of_175b(256, 40.27))


class OriginalStep(NamedTuple):
    """Seconds of a step of Megatron-DeepSpeed; they add up to :attr:`total`.

    Attributes:
        pipeline: passes, transfers and waiting.
        reduce: sums of the gradients over replicas, and of those of the tied matrix between both ends.
        gather: of the new weights.
        optimizer: the update, and memory traffic of the sums.
    """

    pipeline: float
    reduce: float
    gather: float
    optimizer: float

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self)


def original_step(config: TrainConfig, machine: HardwareConfig, *, devices: int) -> OriginalStep:
    """Seconds of a step as Megatron-DeepSpeed took it."""
    batch, parallel, model = batch_plan(config, devices), config.parallel, config.model
    tensor, link = parallel.tensor, links(config, machine, world_size=devices)
    # each tensor rank sends its part; behind, the parts are gathered
    part = activation_bytes(config) / tensor
    transfer = part / link.pipeline + (tensor - 1) * part / link.tensor + 2 * link.latency
    pipeline = step_length(
        config.engine.pipeline_schedule,
        ranks=parallel.pipeline,
        microbatches=batch.microbatches,
        seconds=PassTimes(config, machine, link, accumulated=_ACCUMULATE_BYTES),
        transfer_seconds=transfer,
    ).seconds
    parameters = max(held_parameters(layers, tensor) for layers in rank_layers(config))
    tied = ring_bytes(4.0 * model.vocab_size * model.hidden_size / tensor, 2)
    touched = _REDUCE_BYTES + _STEP_BYTES + _UPDATE_BYTES / batch.data_size
    return OriginalStep(
        pipeline=pipeline,
        reduce=ring_bytes(2.0 * parameters, batch.data_size) / link.data + tied / link.pipeline,
        gather=ring_bytes(2.0 * parameters, batch.data_size) / 2 / link.data,
        optimizer=touched * parameters / machine.memory_bandwidth,
    )


def predicted_tflops(run: Published, machine: HardwareConfig) -> float:
    """TFLOP/s of a device, recomputation counted, at the machine's efficiency."""
    return _tflops(run.config(), machine, devices=run.devices)


def _tflops(config: TrainConfig, machine: HardwareConfig, *, devices: int) -> float:
    flops = step_flops(
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        vocab_size=config.model.vocab_size,
        sequence_length=config.data.sequence_length,
        samples=config.schedule.global_batch_samples,
        recompute=config.engine.recompute,
    )
    speed = SpeedOfRun(flops, tokens_per_step=batch_plan(config).tokens_per_step, devices=devices)
    return speed.of(original_step(config, machine, devices=devices).total).hardware_tflops


def fitted(run: Published, machine: HardwareConfig) -> HardwareConfig:
    """The machine at the efficiency at which the run comes out as published."""
    config, low, high = run.config(), 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        at_middle = dataclasses.replace(machine, efficiency=middle)
        slow = _tflops(config, at_middle, devices=run.devices) < run.tflops
        low, high = (middle, high) if slow else (low, middle)
    return dataclasses.replace(machine, efficiency=round(high, 3))


def lumi_g() -> HardwareConfig:
    """``configs/hardware/lumi_g.yaml``."""
    return load_plan(["hardware=lumi_g"]).hardware


def main() -> None:
    """Prints a Markdown table."""
    print("| run | efficiency | s of a step | TFLOP/s predicted | published | more |\n|---|---|---|---|---|---|")
    for calibration, others in ((CALIBRATION_33B, (PORO_34B,)), (CALIBRATION_175B, SCALED_175B)):
        machine = fitted(calibration, lumi_g())
        for run in (calibration, *others):
            seconds = original_step(run.config(), machine, devices=run.devices).total
            found = predicted_tflops(run, machine)
            word = "fitted" if run is calibration else "of the first"
            cells = (
                run.name,
                f"{machine.efficiency:.3f}, {word}",
                f"{seconds:.1f}",
                f"{found:.1f}",
                f"{run.tflops:.1f}",
                f"{found / run.tflops - 1:+.1%}",
            )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
