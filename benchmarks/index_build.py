"""How long the order of a dataset takes to build, and how much memory: ours and Megatron-core's, in turn.

Run from the checkout: ``python -m benchmarks.index_build --documents 1000000 10000000``. One core, each build in a
process of its own, interleaved; medians of CPU seconds, and of how much the peak of resident memory grew. Documents
have 1,000 tokens on average (log-normal, as crawled text has), samples 2,048. Megatron-core's part is its document
index, its compiled sample index and its shuffle index, as its ``GPTDataset`` calls them; results are compared element
by element. The blend of the run's samples over six sources is timed likewise.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

MEAN_TOKENS = 1000
SEQUENCE_LENGTH = 2048
SEED = 1234
WEIGHTS = [0.5415810341, 0.1304808053, 0.004023063515, 0.004016818638, 0.3153543717, 0.004543906834]
BUILDERS = ("ours", "megatron-core")
PARTS = ("order", "blend")


def main() -> None:
    """Prints a line for each part, size and builder, and the ratio of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", type=int, default=[1_000_000, 10_000_000], metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        part, builder, documents = arguments.child
        print(json.dumps(_measure(part, builder, int(documents))))
        return
    print(f"{'part':6} {'documents':>11} {'samples':>10} {'builder':14} {'CPU s':>8} {'ns/sample':>9} {'peak MB':>8}")
    for part in PARTS:
        for documents in arguments.documents:
            _compare(part, documents, arguments.repeats)


def _compare(part: str, documents: int, repeats: int) -> None:
    found: dict[str, list[dict[str, Any]]] = {builder: [] for builder in BUILDERS}
    for _ in range(repeats):
        for builder in BUILDERS:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.index_build"]
            command += ["--child", part, builder, str(documents)]
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[builder].append(json.loads(result.stdout.splitlines()[-1]))
    assert len({run["digest"] for runs in found.values() for run in runs}) == 1, f"the results of {part} differ"
    medians = {
        builder: [statistics.median(run[key] for run in runs) for key in ("seconds", "megabytes")]
        for builder, runs in found.items()
    }
    samples = found["ours"][0]["samples"]
    for builder, (seconds, megabytes) in medians.items():
        print(
            f"{part:6} {documents:11,} {samples:10,} {builder:14} {seconds:8.3f} {1e9 * seconds / samples:9.1f} "
            f"{megabytes:8,.0f}"
        )
    seconds, megabytes = (ours / theirs for ours, theirs in zip(*medians.values(), strict=True))
    print(f"{part:6} {documents:11,} {'':10} {'ours / theirs':14} {seconds:8.2f} {'':9} {megabytes:8.2f}", flush=True)


def _measure(part: str, builder: str, documents: int) -> dict[str, Any]:
    prepare = {"order": _order_builder, "blend": _blend_builder}[part]
    build = prepare(builder, documents)
    before = _resident_megabytes()
    started = time.process_time()
    samples, arrays = build()
    seconds, megabytes = time.process_time() - started, _peak_megabytes() - before
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"seconds": seconds, "megabytes": megabytes, "samples": samples, "digest": digest.hexdigest()}


def _order_builder(builder: str, documents: int) -> Callable[[], tuple[int, Sequence[Any]]]:
    sizes, random = np.empty(documents, dtype=np.int32), np.random.default_rng(SEED)
    for start in range(0, documents, 1 << 20):  # in parts, lest making them takes more memory than what is measured
        part = sizes[start : start + (1 << 20)]
        part[:] = random.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, len(part)) + 1
    tokens = int(sizes.sum(dtype=np.int64))
    samples = (tokens - 1) // SEQUENCE_LENGTH
    if builder == "ours":
        from megatron_poro.data.samples import build_order

        def ours() -> tuple[int, Sequence[Any]]:
            return samples, build_order(sizes, num_samples=samples, sequence_length=SEQUENCE_LENGTH, seed=SEED)

        return ours
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

    def theirs() -> tuple[int, Sequence[Any]]:
        random = np.random.RandomState(SEED)
        order = _build_document_index(np.arange(documents, dtype=np.int32), 1, random, False)
        boundaries = helpers.build_sample_idx(sizes, order, SEQUENCE_LENGTH, 1, tokens, True, True)
        return samples, (order, boundaries, _build_shuffle_index(samples, samples, random))

    return theirs


def _blend_builder(builder: str, documents: int) -> Callable[[], tuple[int, Sequence[Any]]]:
    from megatron_poro.data.blending import choose, normalised

    weights = normalised(WEIGHTS)
    samples = documents * MEAN_TOKENS // SEQUENCE_LENGTH
    if builder == "ours":
        return lambda: (samples, [choose(weights, samples).sources])
    from megatron.core.datasets import helpers

    def theirs() -> tuple[int, Sequence[Any]]:
        sources, places = np.zeros(samples, dtype=np.int16), np.zeros(samples, dtype=np.int64)
        helpers.build_blending_indices(sources, places, weights, len(weights), samples, False)
        return samples, [sources.astype(np.uint8)]

    return theirs


def _resident_megabytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
