"""What a training command reads from its environment."""

import pytest

from megatron_poro.cli.train import launch_of, main, wandb_mode
from megatron_poro.errors import ConfigError
from megatron_poro.train.exit_code import ExitCode
from megatron_poro.train.launch import Launch


def test_process_without_a_launcher_is_alone() -> None:
    assert launch_of({"PATH": "/bin"}) == Launch(rank=0, local_rank=0, size=1)


def test_launcher_says_which_process_this_is() -> None:
    environment = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16"}
    assert launch_of(environment) == Launch(rank=9, local_rank=1, size=16)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "1"}, "RANK=1 but no LOCAL_RANK and no WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "no LOCAL_RANK"),
        ({"RANK": "one", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK='one' is not a number"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE='-2' is not a number"),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        launch_of(environment)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
    ],
)
def test_wandb_is_online_only_with_a_key(environment: dict[str, str], mode: str) -> None:
    assert wandb_mode(environment) == mode


def test_wrong_config_is_told_by_the_first_process_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for rank in ("0", "1"):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        assert main(["experiment=smoke_cpu", "modle.num_layers=2"]) == ExitCode.BAD_INPUT
        told.append(capsys.readouterr().err)
    assert "modle" in told[0]
    assert told[1] == ""
