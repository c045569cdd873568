"""Where lists of layers are cut into stages."""

import pytest

from megatron_poro.errors import TopologyError
from megatron_poro.parallel.stages import stage_boundaries


@pytest.mark.parametrize(
    ("weights", "stages", "expected"),
    [
        ([1, 1, 1, 1], 2, (0, 2, 4)),
        ([1] * 10, 4, (0, 3, 6, 8, 10)),
        ([1, 0, 1, 1, 0, 1], 2, (0, 3, 6)),
        ([5, 1, 1, 1, 1, 1], 2, (0, 1, 6)),
        ([0, 1, 1], 2, (0, 2, 3)),
    ],
)
def test_stages_are_as_even_as_can_be(weights: list[float], stages: int, expected: tuple[int, ...]) -> None:
    assert stage_boundaries(weights, stages) == expected


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(TopologyError, match=r"parallel.pipeline=4 needs at least 4 layers to deal out, the model has"):
        stage_boundaries([1, 0, 1, 1], 4)
