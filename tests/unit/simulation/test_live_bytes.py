"""Live storages, each counted once."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_poro.simulation.live_bytes import LiveBytes


def test_a_view_is_no_second_tensor_and_a_dropped_one_counts_no_more() -> None:
    with LiveBytes(lambda tensor: "all") as live:
        kept = torch.zeros(100)
        view = kept.view(10, 10)
        assert live.now["all"] == 400
        dropped = view + 1
        assert live.now["all"] == 800
        del dropped
        assert live.now["all"] == 400
    assert live.peak == 800


def test_fake_tensors_count_what_real_ones_would() -> None:
    with FakeTensorMode(), LiveBytes(lambda tensor: "all") as live:
        held = torch.zeros(1 << 40, dtype=torch.bfloat16)
        assert live.peak == 1 << 41
        del held
        assert live.now["all"] == 0


def test_the_peak_is_told_by_parts_and_starts_anew() -> None:
    with LiveBytes(lambda tensor: "wide" if tensor.shape[-1] > 5 else "narrow") as live:
        wide, narrow = torch.zeros(10), torch.zeros(5)
        live.relabel(narrow, "told")
        assert live.now == {"wide": 40, "narrow": 0, "told": 20}
        del wide
        live.restart()
        assert (live.peak, live.at_peak["told"], live.at_peak["wide"]) == (20, 20, 0)


def test_a_tensor_from_before_counts_when_it_is_told() -> None:
    before = torch.zeros(7)
    with LiveBytes(lambda tensor: "made") as live:
        live.relabel(before, "weights")
        live.relabel(before, "gradients")
    assert live.now == {"weights": 0, "gradients": 28}
