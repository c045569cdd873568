"""How fast a checkpoint becomes a Hugging Face model, and in how much memory, beside a plain write of the same bytes.

Run from the checkout: ``python -m benchmarks.exporting``. It makes a checkpoint of a BLOOM of about a billion
parameters (random masters, and moments: 12 bytes a parameter), then writes in turn, each in a process of its own: the
same number of bytes as the export has, front to back with one ``fsync`` at the end, and the export. The files of the
checkpoint are put out of the page cache before each, so that it is read from the disk. Medians over the rounds.

"export" is all that ``poro export --no-parity`` does: the files with the masters, twice the bytes of the export, are
compared with the manifest, the masters are read and rounded, and the export is hashed, written and made durable.
"its writing part" is the same without the comparison with the manifest, which takes as long as hashing takes on the
cores there are. ``--parity`` adds one run with the proof, which is fp32 arithmetic more than reading.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from megatron_poro.checkpoint.fragment import ChunkedTensor, Piece, tensor_key
from megatron_poro.checkpoint.hf_export import export_checkpoint
from megatron_poro.checkpoint.parity import prove_parity
from megatron_poro.checkpoint.reading import CheckpointReader
from megatron_poro.checkpoint.saving import write_checkpoint
from megatron_poro.checkpoint.state import RunState
from megatron_poro.checkpoint.store import CheckpointStore
from megatron_poro.config.fields import plain
from megatron_poro.config.model import BloomConfig
from megatron_poro.engine.engine import FragmentKind
from megatron_poro.models.bloom_names import bloom_tensors
from megatron_poro.models.count import count_parameters
from megatron_poro.parallel.agreement import World
from megatron_poro.parallel.topology import Topology
from megatron_poro.tokenizer.bytes import byte_tokenizer
from megatron_poro.units import format_bytes

PLAIN = "plain write"
BLOCK_BYTES = 8 << 20
SEED = 7
STEP = 1


def main() -> None:
    """Prints seconds, GB/s and peak memory of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the one of temporary files)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="made here if it is not there, and kept")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=128_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="leave the checkpoint in the page cache")
    parser.add_argument("--parity", action="store_true", help="one more export, with the proof")
    arguments = parser.parse_args()
    model = BloomConfig(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden_size,
        num_heads=arguments.hidden_size // 128,
        vocab_size=arguments.vocab_size,
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = CheckpointStore(arguments.checkpoint or Path(folder) / "checkpoints")
        checkpoint = store.path(STEP)
        if not checkpoint.exists():
            _make_checkpoint(store, model)
        model = CheckpointReader(checkpoint).model
        print(f"{count_parameters(model):,} parameters, checkpoint {format_bytes(_size(checkpoint))}", flush=True)
        _compare(checkpoint, Path(folder) / "out", rounds=arguments.rounds, warm=arguments.warm)
        if arguments.parity:
            seconds, peak = _measured(partial(_export, checkpoint, Path(folder) / "out", proven=True))
            print(f"export with its proof: {seconds:.1f} s, peak {format_bytes(peak)}")


def _compare(checkpoint: Path, output: Path, *, rounds: int, warm: bool) -> None:
    _export(checkpoint, output)  # once, to know how much there is to write
    written = _size(output)
    works = {
        PLAIN: partial(_write, output, written),
        "export": partial(_export, checkpoint, output),
        "its writing part": partial(_export, checkpoint, output, verify=False),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            _remove(output)
            os.sync()
            if not warm:
                _forget(checkpoint)
            found[name].append(_measured(work))
    _remove(output)
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in found.items()}
    for name, runs in found.items():
        each = ", ".join(f"{seconds:.2f}" for seconds, _ in runs)
        print(
            f"{name:16} {format_bytes(written)} in {medians[name]:6.2f} s ({each}) = "
            f"{written / medians[name] / 1e9:.2f} GB/s, {medians[PLAIN] / medians[name]:.2f} of a plain write; peak "
            f"memory {format_bytes(max(peak for _, peak in runs))} above an idle process",
            flush=True,
        )


def _measured(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds and bytes of memory of some work, in a process of its own that has its imports behind it."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(work, theirs))
    process.start()
    theirs.close()
    result: tuple[float, int] = ours.recv()
    process.join()
    return result


def _run(work: Callable[[], None], answer: Any) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    before = _peak()
    started = time.perf_counter()
    work()
    answer.send((time.perf_counter() - started, _peak() - before))


def _peak() -> int:
    """Largest resident memory of this process; getrusage would also count what its parent had when it was made."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _export(checkpoint: Path, output: Path, *, proven: bool = False, verify: bool = True) -> None:
    export_checkpoint(checkpoint, output, prove=prove_parity if proven else None, verify=verify)


def _write(path: Path, size: int) -> None:
    block = memoryview(os.urandom(BLOCK_BYTES))
    with path.open("wb", buffering=0) as file:
        for begin in range(0, size, BLOCK_BYTES):
            file.write(block[: min(BLOCK_BYTES, size - begin)])
        os.fsync(file.fileno())


def _make_checkpoint(store: CheckpointStore, model: BloomConfig) -> None:
    """A checkpoint as one process leaves it: all chunks in one file."""
    generator = torch.Generator().manual_seed(SEED)
    values: dict[str, ChunkedTensor] = {}
    for name in bloom_tensors(model):
        origin = (0,) * len(name.shape)
        for kind in FragmentKind:
            make = partial(torch.randn, name.shape, generator=generator)
            if kind is not FragmentKind.MASTER:
                make = partial(torch.ones, name.shape)
            values[tensor_key(kind, name.canonical)] = ChunkedTensor(name.shape, [Piece(origin, name.shape, make)])
    tokenizer = byte_tokenizer()
    settings = {"model": plain(model), "engine": {"precision": "bf16"}}
    state = RunState(
        step=STEP,
        consumed_samples=STEP,
        consumed_tokens=STEP,
        optimizer_step=STEP,
        config=OmegaConf.to_yaml(OmegaConf.create(settings)),
        identity={},
        topology=Topology(),
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    write_checkpoint(store, values, state, world=World(), tokenizer=tokenizer)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _forget(folder: Path) -> None:
    """Puts the files out of the page cache; they are on the disk already."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _remove(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
