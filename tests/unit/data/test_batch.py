import numpy as np
import torch

from megatron_poro.data.batch import collate
from megatron_poro.data.source import Sample


def test_labels_are_the_tokens_one_further_on() -> None:
    batch = collate([(Sample(np.array([1, 2, 3])), 4), (Sample(np.array([5, 6, 7])), 0)])
    assert batch.tokens.tolist() == [[1, 2], [5, 6]]
    assert batch.labels.tolist() == [[2, 3], [6, 7]]
    assert batch.sources.tolist() == [4, 0]


def test_every_label_counts_unless_the_sample_says_otherwise() -> None:
    masked = Sample(np.array([1, 2, 3]), np.array([0.0, 0.5], dtype=np.float32))
    batch = collate([(Sample(np.array([1, 2, 3])), 0), (masked, 0)])
    assert batch.loss_mask.tolist() == [[1.0, 1.0], [0.0, 0.5]]


def test_dtypes_and_storage_are_what_engines_expect() -> None:
    batch = collate([(Sample(np.arange(5)), 0)] * 3)
    assert (batch.tokens.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
    assert (batch.loss_mask.dtype, batch.sources.dtype) == (torch.float32, torch.int64)
    assert batch.tokens.is_contiguous()
    assert batch.labels.is_contiguous()


def test_batch_does_not_share_memory_with_the_samples() -> None:
    tokens = np.array([1, 2, 3])
    batch = collate([(Sample(tokens), 0)])
    tokens[:] = 9
    assert batch.tokens.tolist() == [[1, 2]]
