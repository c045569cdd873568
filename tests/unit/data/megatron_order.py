"""Megatron's data order in plain loops, written from its description: the control for samples, blend and sampler."""

import numpy as np


def order_by_loops(
    sizes: list[int], *, num_samples: int, sequence_length: int, seed: int
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Documents, boundaries and shuffle of one dataset."""
    tokens = sum(sizes)
    epochs = 1
    while (epochs * tokens - 1) // sequence_length < num_samples:
        epochs += 1
    all_samples = (epochs * tokens - 1) // sequence_length
    together, before_last = epochs, all_samples
    if epochs > 1:
        held = ((epochs - 1) * tokens - 1) // sequence_length
        if num_samples - held < int(0.95 * ((tokens - 1) // sequence_length)):
            together, before_last = epochs - 1, held

    random = np.random.RandomState(seed)
    documents: list[int] = []
    for repeats in [together] + [1] * (epochs - together):
        part = np.array([document for _ in range(repeats) for document in range(len(sizes))], dtype=np.int32)
        random.shuffle(part)
        documents += part.tolist()

    position, offset = 0, 0
    boundaries = [(position, offset)]
    while len(boundaries) <= all_samples:
        left = sequence_length + 1
        while True:
            available = sizes[documents[position]] - offset
            if available >= left:
                offset += left - 1  # the last token is also the first of the next sample
                break
            left -= available
            position, offset = position + 1, 0
        boundaries.append((position, offset))

    shuffle: list[int] = []
    for start, stop in [(0, before_last), (before_last, all_samples)]:
        samples = np.arange(start, stop, dtype=np.uint32)
        if len(samples):
            random.shuffle(samples)
        shuffle += samples.tolist()
    return documents, boundaries, shuffle


def blend_by_loop(weights: list[float], num_samples: int) -> tuple[list[int], list[int]]:
    """Source, and sample within the source, of each sample of a blend of normalised weights."""
    taken = [0] * len(weights)
    sources, samples = [], []
    for number in range(num_samples):
        best, most = 0, -float("inf")
        for source, weight in enumerate(weights):
            behind = weight * float(max(number, 1)) - float(taken[source])
            if behind > most:
                best, most = source, behind
        sources.append(best)
        samples.append(taken[best])
        taken[best] += 1
    return sources, samples


def dealt_by_loop(consumed: int, total: int, *, microbatch: int, data_size: int, data_rank: int) -> list[list[int]]:
    """Microbatches of one rank from ``consumed`` to ``total``: gather a block for all ranks, keep one's own slice."""
    microbatches, block = [], []
    for number in range(consumed, total):
        block.append(number)
        if len(block) == microbatch * data_size:
            microbatches.append(block[data_rank * microbatch : (data_rank + 1) * microbatch])
            block = []
    return microbatches
