"""Generated text: the likeliest or drawn token, where it stops, and how it streams."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from megatron_poro.errors import ConfigError
from megatron_poro.evaluate.generation import choose_token, generate_ids, generate_text
from megatron_poro.evaluate.loading import LoadedModel
from megatron_poro.models.causal_lm import CausalLM
from megatron_poro.tokenizer.bytes import byte_tokenizer

TOKENIZER = byte_tokenizer()


class _Script(nn.Module):
    """Says the same tokens whatever it is asked, and keeps what it was shown."""

    def __init__(self, tokens: Sequence[int], *, rows: int = TOKENIZER.vocab_size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self._tokens = list(tokens)
        self._rows = rows
        self.shown: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shown.append(tokens[0].tolist())
        logits = torch.zeros(1, tokens.shape[1], self._rows)
        logits[0, -1, self._tokens[len(self.shown) - 1]] = 50.0
        return logits


def _loaded(script: _Script, context_tokens: int = 100) -> LoadedModel:
    return LoadedModel(cast(CausalLM, script), TOKENIZER, context_tokens, Path("script"))


def test_pieces_join_to_the_text_of_the_tokens() -> None:
    said = TOKENIZER.encode("pöllö ja 🦉")
    pieces = list(generate_text(_loaded(_Script([*said, TOKENIZER.eos_id])), "Yöllä "))
    assert "".join(pieces) == "pöllö ja 🦉"


def test_character_of_several_tokens_is_shown_whole() -> None:
    said = TOKENIZER.encode("ä🦉")
    assert len(said) == 6
    assert list(generate_text(_loaded(_Script([*said, TOKENIZER.eos_id])), "x")) == ["ä", "🦉"]


def test_character_that_is_never_finished_is_shown_at_the_end() -> None:
    said = TOKENIZER.encode("🦉")[:2]
    assert list(generate_text(_loaded(_Script([*said, TOKENIZER.eos_id])), "x")) == ["\ufffd"]


def test_end_of_document_ends_the_text() -> None:
    script = _Script([*TOKENIZER.encode("ab"), TOKENIZER.eos_id, *TOKENIZER.encode("cd")])
    assert "".join(generate_text(_loaded(script), "x")) == "ab"


def test_number_of_new_tokens_is_bounded() -> None:
    script = _Script(TOKENIZER.encode("abcdef"))
    assert "".join(generate_text(_loaded(script), "x", max_new_tokens=3)) == "abc"
    assert list(generate_text(_loaded(_Script([])), "x", max_new_tokens=0)) == []


def test_each_token_is_drawn_after_the_whole_prefix() -> None:
    script = _Script([*TOKENIZER.encode("abc"), TOKENIZER.eos_id])
    list(generate_text(_loaded(script), "xy"))
    assert script.shown == [TOKENIZER.encode("xyabc"[:n]) for n in (2, 3, 4, 5)]


def test_prefix_is_cut_to_the_context() -> None:
    script = _Script([*TOKENIZER.encode("abc"), TOKENIZER.eos_id])
    list(generate_text(_loaded(script, context_tokens=3), "xyz"))
    assert script.shown[-1] == TOKENIZER.encode("abc")


def test_empty_prompt_begins_a_document() -> None:
    script = _Script([TOKENIZER.eos_id])
    list(generate_text(_loaded(script), ""))
    assert script.shown == [[TOKENIZER.eos_id]]


def test_rows_beyond_the_tokenizer_are_never_chosen() -> None:
    padding = TOKENIZER.vocab_size + 3
    tokens = generate_ids(
        _loaded(_Script([padding], rows=padding + 1)), [24], max_new_tokens=1, temperature=0.0, seed=0
    )
    assert next(tokens) < TOKENIZER.vocab_size


def test_temperature_zero_takes_the_likeliest_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    assert choose_token(torch.tensor([0.0, 3.0, 2.9]), temperature=0.0, generator=generator) == 1
    assert torch.equal(generator.get_state(), before)


def test_draws_follow_the_distribution_at_the_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    for temperature in (0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(5)
        drawn = [choose_token(logits, temperature=temperature, generator=generator) for _ in range(4000)]
        shares = torch.bincount(torch.tensor(drawn), minlength=3) / len(drawn)
        torch.testing.assert_close(shares, (logits / temperature).softmax(dim=0), atol=0.03, rtol=0.0)


def test_seed_decides_the_draws() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(1, tokens.shape[1], TOKENIZER.vocab_size)

    def drawn(seed: int) -> list[int]:
        loaded = LoadedModel(cast(CausalLM, Flat()), TOKENIZER, 100, Path("flat"))
        return list(generate_ids(loaded, [24], max_new_tokens=20, temperature=1.0, seed=seed))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"max_new_tokens": -1}])
def test_negative_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        list(generate_text(_loaded(_Script([])), "x", **wrong))
