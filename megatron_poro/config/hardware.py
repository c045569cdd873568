"""The schema of a machine: what a plan has to know of it. A file of the config group ``hardware`` fills it."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from megatron_poro.config.run import Precision


@dataclass(kw_only=True)
class HardwareConfig:
    """Devices and the links between them. Bandwidths are bytes per second of one device in one direction."""

    name: str = MISSING
    """What it is called in tables."""

    device_memory_bytes: int = field(default=MISSING, metadata={"count": True})
    """Memory of one device."""

    reserved_bytes: int = field(default=MISSING, metadata={"count": True})
    """Memory of a device that tensors cannot use: runtime, libraries, communication buffers, fragmentation."""

    peak_tflops: float = MISSING
    """Peak TFLOP/s of one device for bf16 matrix products."""

    fp32_peak_tflops: float = MISSING
    """Peak TFLOP/s of one device for fp32 matrix products."""

    efficiency: float = MISSING
    """Share of the peak that passes through the layers reach while they compute, in bf16 as in fp32; from a measured or
    published run."""

    memory_bandwidth: float = MISSING
    """Bytes per second between a device and its memory."""

    devices_per_node: int = MISSING
    """Devices of a node."""

    devices_per_module: int = 1
    """Neighbouring devices that share a package and its fast link."""

    module_bandwidth: float = MISSING
    """Between devices of one module."""

    node_bandwidth: float = MISSING
    """Between devices of one node."""

    network_bandwidth: float = MISSING
    """Between devices of different nodes, all devices of a node at once."""

    latency_seconds: float = 10e-6
    """Time a message takes beside its bytes."""

    device_watts: float = MISSING
    """Power of one device under load, its share of the node included."""

    node_failures_per_year: float = 2.0
    """How often one node takes a job down; 0 for never."""

    def peak_tflops_in(self, precision: Precision) -> float:
        """Peak TFLOP/s of one device for matrix products of a format."""
        return self.peak_tflops if precision is Precision.BF16 else self.fp32_peak_tflops

    @property
    def room_for_tensors(self) -> int:
        """Bytes of a device that tensors can have."""
        return self.device_memory_bytes - self.reserved_bytes


@dataclass(kw_only=True)
class PlanConfig:
    """What ``poro plan`` takes besides the config of a run."""

    hardware: HardwareConfig = MISSING
    """The machine: a file of configs/hardware."""

    nodes: int | None = None
    """Nodes of the run; null is what the process grid fills."""

    blocked_seconds: float = 5.0
    """How long training waits for one save."""

    restart_seconds: float = 1200.0
    """From a failure to the first step of the next job: waiting in the queue, starting, loading."""
