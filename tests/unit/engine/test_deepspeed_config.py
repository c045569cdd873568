"""Our settings as DeepSpeed's dictionary, and which DeepSpeed is refused."""

import pytest

from megatron_poro.config.run import PipelineSchedule, Precision
from megatron_poro.engine.deepspeed_config import deepspeed_config, require_deepspeed
from megatron_poro.errors import EngineError


def test_poro_layout() -> None:
    settings = deepspeed_config(precision=Precision.BF16, microbatch_samples=1, microbatches=16, data_size=128)
    assert settings["train_batch_size"] == 2048
    assert settings["zero_optimization"] == {"stage": 0}
    assert settings["bf16"] == {"enabled": True}
    assert settings["pipeline"] == {"pipe_partitioned": False, "grad_partitioned": False}


def test_fp32_weights_stay_fp32() -> None:
    settings = deepspeed_config(precision=Precision.FP32, microbatch_samples=1, microbatches=2, data_size=1)
    assert settings["bf16"] == {"enabled": False}


@pytest.mark.parametrize("version", ["0.8.1", "0.18.4", "0.19.2", "0.19.2+rocm"])
def test_a_deepspeed_with_wrong_pipeline_gradients_is_refused(version: str) -> None:
    with pytest.raises(EngineError, match=rf"deepspeed {version.replace('+', '.')} is installed, at least 0.19.3"):
        require_deepspeed(version, PipelineSchedule.ONE_F_ONE_B)


@pytest.mark.parametrize("version", ["0.19.3", "0.19.8+cpu", "0.20.0", "1.0.0"])
def test_a_newer_deepspeed_is_taken(version: str) -> None:
    require_deepspeed(version, PipelineSchedule.ONE_F_ONE_B)


def test_dualpipev_needs_the_release_that_brought_it() -> None:
    require_deepspeed("0.19.8", PipelineSchedule.DUALPIPEV)
    with pytest.raises(EngineError, match=r"deepspeed 0.19.7 is installed, at least 0.19.8 .* 1f1b runs on yours"):
        require_deepspeed("0.19.7", PipelineSchedule.DUALPIPEV)
