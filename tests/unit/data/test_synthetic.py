from itertools import pairwise

import numpy as np
import pytest

from megatron_poro.data.synthetic import SyntheticSource
from megatron_poro.errors import ConfigError


def source(*, restart: float = 0.05, seed: int = 0, vocab_size: int = 97) -> SyntheticSource:
    return SyntheticSource(
        "toy", num_samples=50, sequence_length=200, vocab_size=vocab_size, seed=seed, restart=restart
    )


def test_without_restarts_every_token_follows_the_rule() -> None:
    for vocab_size in (1, 2, 97, 128_000, 2**31):
        tokens = source(restart=0.0, vocab_size=vocab_size).sample(3).tokens
        assert tokens.shape == (201,)
        assert all(b == (5 * a + 3) % vocab_size for a, b in pairwise(tokens.tolist()))


def test_restarts_break_the_rule_as_often_as_asked() -> None:
    toy = source(restart=0.2)
    broken = [np.mean(t[1:] != (5 * t[:-1] + 3) % 97) for t in (toy.sample(i).tokens for i in range(50))]
    assert 0.17 < np.mean(broken) < 0.23


def test_tokens_are_in_the_vocabulary() -> None:
    tokens = np.concatenate([source(restart=0.5).sample(i).tokens for i in range(50)])
    assert (tokens.min(), tokens.max()) == (0, 96)


def test_sample_is_a_function_of_seed_and_number() -> None:
    forward = [source().sample(i).tokens.tolist() for i in range(50)]
    backward = [source().sample(i).tokens.tolist() for i in reversed(range(50))]
    assert forward == backward[::-1]
    assert len({tuple(tokens) for tokens in forward}) == 50
    assert source(seed=1).sample(0).tokens.tolist() != forward[0]


def test_sample_outside_the_source_is_an_index_error() -> None:
    for index in (-1, 50):
        with pytest.raises(IndexError, match=f"sample {index} of synthetic source 'toy'"):
            source().sample(index)


@pytest.mark.parametrize("vocab_size", [0, 2**31 + 1])
def test_size_that_cannot_work_is_refused(vocab_size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size={vocab_size} must be positive"):
        source(vocab_size=vocab_size)
