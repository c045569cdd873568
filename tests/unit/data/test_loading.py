import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_poro.data.blending import Blend
from megatron_poro.data.index_cache import IndexCache
from megatron_poro.data.loading import BatchLoader
from megatron_poro.data.mixture import Mixture
from megatron_poro.data.sampler import Sampler
from megatron_poro.data.source import Sample
from megatron_poro.errors import DataError

SAMPLER = Sampler(global_batch_samples=8, microbatch_samples=2, data_size=2)


class Recorder:
    """A source whose sample i is all i; remembers which thread read what, and fails where told."""

    name = "recorder"

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.reads: list[tuple[int, threading.Thread]] = []
        self._fails_at = fails_at

    def __len__(self) -> int:
        return 40

    def sample(self, index: int) -> Sample:
        self.reads.append((index, threading.current_thread()))
        if index == self._fails_at:
            raise DataError(f"sample {index} is broken")
        return Sample(np.full(5, index))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def loader(recorder: Recorder, tmp_path: Path) -> Iterator[BatchLoader]:
    with make_loader(recorder, tmp_path) as made:
        yield made


def make_loader(recorder: Recorder, folder: Path, *, data_rank: int = 0, prefetch: bool = True) -> BatchLoader:
    mixture = Mixture([recorder], Blend([1.0], num_samples=40, cache=IndexCache(folder / "cache")))
    return BatchLoader(mixture, SAMPLER, data_rank=data_rank, prefetch=prefetch)


def loaded(loader: BatchLoader, consumed: int) -> list[list[int]]:
    return [batch.tokens[:, 0].tolist() for batch in loader.load(consumed)]


def test_rank_gets_the_microbatches_the_sampler_deals_it(recorder: Recorder, tmp_path: Path) -> None:
    for rank in (0, 1):
        with make_loader(recorder, tmp_path, data_rank=rank) as loader:
            for consumed in (0, 8, 16, 24, 32):
                assert loaded(loader, consumed) == SAMPLER.microbatches(consumed, rank)


def test_any_step_can_be_asked_for_in_any_order(loader: BatchLoader) -> None:
    for consumed in (16, 0, 0, 32, 8):
        assert loaded(loader, consumed) == SAMPLER.microbatches(consumed, 0)


def test_next_step_is_read_by_a_daemon_thread(loader: BatchLoader, recorder: Recorder) -> None:
    loader.load(0)
    loader.close()
    here = threading.current_thread()
    assert [index for index, thread in recorder.reads if thread is here] == [0, 1, 4, 5]
    ahead = [(index, thread.daemon) for index, thread in recorder.reads if thread is not here]
    assert ahead == [(8, True), (9, True), (12, True), (13, True)]


def test_what_was_read_ahead_is_not_read_again(loader: BatchLoader, recorder: Recorder) -> None:
    for consumed in (0, 8, 16, 24, 32):
        loader.load(consumed)
    indices = [index for index, _ in recorder.reads]
    assert len(indices) == len(set(indices)) == 20


def test_one_thread_reads_step_after_step(loader: BatchLoader, recorder: Recorder) -> None:
    for consumed in (0, 8, 16):
        loader.load(consumed)
    loader.close()
    threads = {thread for _, thread in recorder.reads if thread is not threading.current_thread()}
    assert len(threads) == 1


def test_a_step_that_was_not_foreseen_waits_for_the_one_that_was(tmp_path: Path) -> None:
    reading, may_end = threading.Event(), threading.Event()

    class Slow(Recorder):
        def sample(self, index: int) -> Sample:
            if index == 8:
                reading.set()
                assert may_end.wait(60)
            assert index != 24 or may_end.is_set(), "two threads read at a time"
            return super().sample(index)

    with make_loader(Slow(), tmp_path) as loader:
        loader.load(0)
        assert reading.wait(60)
        release = threading.Timer(0.05, may_end.set)
        release.start()
        assert loaded(loader, 24) == [[24, 25], [28, 29]]
        release.join()


def test_the_first_step_can_be_read_ahead_too(loader: BatchLoader, recorder: Recorder) -> None:
    loader.read_ahead(8)
    assert loaded(loader, 8) == [[8, 9], [12, 13]]
    assert threading.current_thread() not in [thread for _, thread in recorder.reads]
    loader.read_ahead(40)
    loader.close()
    assert max(index for index, _ in recorder.reads) < 24


def test_nothing_is_read_ahead_when_switched_off(recorder: Recorder, tmp_path: Path) -> None:
    with make_loader(recorder, tmp_path, prefetch=False) as loader:
        loader.read_ahead(0)
        loader.load(0)
    assert [index for index, _ in recorder.reads] == [0, 1, 4, 5]


def test_nothing_is_read_ahead_of_the_last_step(loader: BatchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("megatron_poro.data.loading._Reader.start")
    assert loaded(loader, 32) == [[32, 33], [36, 37]]
    with pytest.raises(AttributeError):
        loader.load(24)


def test_error_of_the_background_is_raised_by_the_load_that_needs_it(tmp_path: Path) -> None:
    with make_loader(Recorder(fails_at=12), tmp_path) as loader:
        assert loaded(loader, 0) == [[0, 1], [4, 5]]
        with pytest.raises(DataError, match="sample 12 is broken"):
            loader.load(8)
        assert loaded(loader, 16) == [[16, 17], [20, 21]]


def test_close_leaves_no_thread_and_the_loader_usable(loader: BatchLoader, recorder: Recorder) -> None:
    loader.load(0)
    loader.close()
    loader.close()
    assert not any(thread.is_alive() for _, thread in recorder.reads if thread is not threading.current_thread())
    assert loaded(loader, 8) == [[8, 9], [12, 13]]


@pytest.mark.parametrize("consumed", [-8, 33, 40])
def test_step_outside_the_mixture_is_refused_with_both_numbers(loader: BatchLoader, consumed: int) -> None:
    with pytest.raises(DataError, match=f"after {consumed} samples needs samples up to {consumed + 8}, .* for 40"):
        loader.load(consumed)


def test_any_number_of_replicas_sees_the_same_batch(recorder: Recorder, tmp_path: Path) -> None:
    mixture = Mixture([recorder], Blend([1.0], num_samples=40, cache=IndexCache(tmp_path / "cache")))
    seen = []
    for data_size, microbatch in ((1, 1), (1, 8), (2, 2), (4, 1), (8, 1)):
        sampler = Sampler(global_batch_samples=8, microbatch_samples=microbatch, data_size=data_size)
        ranks = [BatchLoader(mixture, sampler, data_rank=rank, prefetch=False).load(8) for rank in range(data_size)]
        rounds = [batch.tokens for batches in zip(*ranks, strict=True) for batch in batches]
        seen.append(torch.cat(rounds)[:, 0].tolist())
    assert seen == [list(range(8, 16))] * 5
