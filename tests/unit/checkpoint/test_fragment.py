"""Flat ranges as rectangles: exact cover, few pieces, and views of the memory they came from."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_poro.checkpoint.fragment import ChunkedTensor, chunked_tensors, rectangles, split_key, tensor_key
from megatron_poro.engine.engine import Fragment, FragmentKind
from megatron_poro.parallel.shards import ShardSpec


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    total = math.prod(shape)
    start = draw(st.integers(0, total))
    return shape, start, draw(st.integers(0, total - start))


@given(ranges())
def test_rectangles_hold_the_range_in_order_and_nothing_else(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, count = case
    tensor = torch.arange(math.prod(shape)).view(shape)
    found: list[int] = []
    for box in rectangles(shape, start, count):
        assert box.begin == len(found)
        part = tensor[tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))]
        found += part.reshape(-1).tolist()
    assert found == list(range(start, start + count))


@given(ranges())
def test_a_range_needs_at_most_two_rectangles_per_dim_less_one(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, count = case
    assert len(rectangles(shape, start, count)) <= max(1, 2 * len(shape) - 1)


def test_a_matrix_range_is_the_tail_of_a_row_whole_rows_and_the_head_of_a_row() -> None:
    assert [(box.offsets, box.sizes) for box in rectangles((5, 4), 3, 11)] == [
        ((0, 3), (1, 1)),
        ((1, 0), (2, 4)),
        ((3, 0), (1, 2)),
    ]


def test_a_range_outside_the_tensor_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="leaves a tensor of 6"):
        rectangles((2, 3), 4, 3)


def test_pieces_are_views_placed_in_the_full_tensor() -> None:
    flat = torch.zeros(5)
    shard = ShardSpec((4, 6), dim=1, rank=1, size=2)  # columns 3..5
    fragment = Fragment("w", FragmentKind.MASTER, flat, 2, shard, is_owner=True)
    pieces = chunked_tensors([fragment])["master.w"].pieces
    assert [(piece.offsets, piece.sizes) for piece in pieces] == [((0, 5), (1, 1)), ((1, 3), (1, 3)), ((2, 3), (1, 1))]
    pieces[1].data().fill_(7.0)
    assert flat.tolist() == [0.0, 7.0, 7.0, 7.0, 0.0]


def test_two_fragments_of_one_tensor_become_one_entry() -> None:
    shard = ShardSpec((10,))
    two = [Fragment("w", FragmentKind.EXP_AVG, torch.zeros(3), start, shard, is_owner=True) for start in (0, 6)]
    tensor = chunked_tensors(two)["exp_avg.w"]
    assert (tensor.num_elements_held, tuple(tensor.shape), len(tensor.pieces)) == (6, (10,), 2)


def test_a_chunk_is_found_by_its_place_when_its_number_is_another_processs() -> None:
    """The coordinator of a save counts the chunks of all processes; two copies of one range have one place."""
    shard = ShardSpec((10,))
    parts = [Fragment("w", FragmentKind.MASTER, torch.full((2,), float(n)), n, shard, is_owner=True) for n in (0, 4, 4)]
    tensor = chunked_tensors(parts)["master.w"]
    for number in (None, 0, 1, 7):
        assert tensor.__get_tensor_shard__(MetadataIndex("master.w", (0,), number)).tolist() == [0.0, 0.0]
    for number in (1, 2):
        assert (
            tensor.__get_tensor_shard__(MetadataIndex("master.w", (4,), number)).data_ptr()
            == parts[number].flat.data_ptr()
        )
    with pytest.raises(KeyError, match=r"no chunk of master\.w begins at torch\.Size\(\[5\]\)"):
        tensor.__get_tensor_shard__(MetadataIndex("master.w", (5,), 0))


def test_an_empty_fragment_is_left_out() -> None:
    empty = Fragment("w", FragmentKind.MASTER, torch.zeros(0), 4, ShardSpec((10,)), is_owner=True)
    assert chunked_tensors([empty]) == {}


def test_a_chunked_tensor_refuses_to_compute() -> None:
    with pytest.raises(NotImplementedError, match="only describes chunks"):
        ChunkedTensor((2, 2), []) + 1


def test_keys_name_kind_and_parameter() -> None:
    key = tensor_key(FragmentKind.EXP_AVG_SQ, "blocks.7.mlp.up.weight")
    assert key == "exp_avg_sq.blocks.7.mlp.up.weight"
    assert split_key(key) == (FragmentKind.EXP_AVG_SQ, "blocks.7.mlp.up.weight")
