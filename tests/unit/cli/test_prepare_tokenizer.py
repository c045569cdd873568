"""``poro data prepare`` trains the kind of tokenizer that the config names."""

from pathlib import Path

import pytest

from megatron_poro.tokenizer.special_tokens import SPECIAL_TOKENS
from megatron_poro.tokenizer.tokenizer import Tokenizer
from tests.unit.cli.test_data_prepare import command_leaves_no_trace, prepare, raw

__all__ = ["command_leaves_no_trace", "raw"]


def test_the_kind_decides_what_is_trained(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("tokenizer.kind=sentencepiece", "model.vocab_size=512")
    assert prepare(raw, tmp_path, overrides=overrides) == 0, capsys.readouterr().err
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.token_id("<0x00>") is not None
    assert tokenizer.vocab_size == 512
    assert [tokenizer.token_id(token) for token in SPECIAL_TOKENS] == list(range(24))
