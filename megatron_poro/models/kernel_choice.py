"""Which attention kernel runs: one rule, for engines and, without torch, for plans.

It depends on the config and the kind of device alone, never on a timing at start-up: a resumed run must compute what it
computed before.
"""

from megatron_poro.config.run import AttentionBackend, Precision, TrainConfig
from megatron_poro.errors import ConfigError

EAGER_LENGTH_LIMIT = 512
"""On a CPU eager attention is faster up to this length, and flash above it (``python -m benchmarks.attention``)."""

TILED_LENGTH_LIMITS = {Precision.BF16: 2048, Precision.FP32: 512}
"""In compiled code on a CPU ``tiled`` is faster than flash up to these lengths (the same command; bf16 was not measured
above). It keeps attention weights, which flash does not: the longer the sample, the more."""


def attention_kernel(config: TrainConfig, device_type: str) -> AttentionBackend:
    """The kernel that computes a run's attention.

    Args:
        config: the run.
        device_type: torch's name of the kind of device: ``cpu``, ``cuda``.

    Raises:
        ConfigError: for one that cannot run there.
    """
    return choose_kernel(
        config.engine.attention,
        device_type=device_type,
        length=config.data.sequence_length,
        dropout=config.model.attention_dropout,
        precision=config.engine.precision,
        compiled=config.engine.compile,
        reproducible=config.engine.reproducible,
    )


def choose_kernel(
    wanted: AttentionBackend,
    *,
    device_type: str,
    length: int,
    dropout: float,
    precision: Precision,
    compiled: bool = False,
    reproducible: bool = False,
) -> AttentionBackend:
    """The kernel that will run.

    Args:
        wanted: ``engine.attention``.
        device_type: where the model runs.
        length: tokens per sample.
        dropout: probability of dropping an attention weight.
        precision: ``engine.precision``.
        compiled: ``engine.compile``.
        reproducible: ``engine.reproducible``: on a GPU the eager kernel, since fused backward passes add there by
            atomics.

    Raises:
        ConfigError: for ``flex`` without a GPU or ``tiled`` on one, for a fused kernel with attention dropout (its mask
            could not be reproduced at another layout or in recomputation), and for one that adds up in no fixed order
            in a reproducible run.
    """
    on_cpu = device_type == "cpu"
    if wanted is AttentionBackend.AUTO:
        if dropout > 0.0 or (reproducible and not on_cpu):
            return AttentionBackend.EAGER
        if on_cpu and compiled and length <= TILED_LENGTH_LIMITS[precision]:
            return AttentionBackend.TILED
        return AttentionBackend.EAGER if on_cpu and length <= EAGER_LENGTH_LIMIT else AttentionBackend.FLASH
    if wanted is AttentionBackend.EAGER:
        return wanted
    if wanted is AttentionBackend.FLEX and on_cpu:
        raise ConfigError("engine.attention=flex needs a GPU and cannot run on a CPU. Use eager, sdpa, flash or auto.")
    if wanted is AttentionBackend.TILED and not on_cpu:
        raise ConfigError(
            "engine.attention=tiled is for compiled code on a CPU and cannot run on a GPU. Use eager, sdpa, flash or "
            "auto."
        )
    if reproducible and not on_cpu:
        raise ConfigError(
            f"engine.attention={wanted.value} adds up in no fixed order on a GPU, and engine.reproducible=true needs "
            "one. Use eager or auto, or engine.reproducible=false."
        )
    if dropout > 0.0:
        raise ConfigError(
            f"engine.attention={wanted.value} cannot drop attention weights (model.attention_dropout={dropout}). "
            "Use eager or auto, or set model.attention_dropout=0."
        )
    return wanted
