"""Which blocks a pipeline rank recomputes."""

import pytest

from megatron_poro.errors import ConfigError
from megatron_poro.parallel.recomputed import recomputed_blocks

# embedding, its norm, six blocks, final norm, head
IS_BLOCK = [False, False, *[True] * 6, False, False]


def test_they_are_the_first_of_each_stage() -> None:
    assert recomputed_blocks(IS_BLOCK, (0, 5, 10), [2, 1]) == {0, 1, 3}
    assert recomputed_blocks(IS_BLOCK, (0, 5, 10), [0, 3]) == {3, 4, 5}
    assert recomputed_blocks(IS_BLOCK, (0, 10), [4]) == {0, 1, 2, 3}


def test_a_rank_of_two_stages_begins_with_the_one_that_is_earlier_in_the_model() -> None:
    """Rank 0 has blocks 0 and 5, rank 1 has blocks 1 to 4."""
    bounds = (0, 3, 5, 7, 10)
    assert recomputed_blocks(IS_BLOCK, bounds, [1, 3]) == {0, 1, 2, 3}
    assert recomputed_blocks(IS_BLOCK, bounds, [2, 0]) == {0, 5}


def test_more_than_a_rank_has_is_refused() -> None:
    sentence = r"engine.recompute_blocks\[1\]=4 is more than the 3 blocks of pipeline rank 1. Use 0 to 3."
    with pytest.raises(ConfigError, match=sentence):
        recomputed_blocks(IS_BLOCK, (0, 5, 10), [2, 4])
