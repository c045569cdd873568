"""What a process does with memory that it frees."""

import ctypes
import os
import subprocess
import sys

import pytest

from megatron_poro.cli.host_memory import keep_freed_memory

BLOCK_BYTES = 64 << 20

FREE_A_BLOCK = f"""
from pathlib import Path
import sys
from megatron_poro.cli.host_memory import keep_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

if sys.argv[1] == "keeps":
    assert keep_freed_memory()
before = resident()
block = b"x" * {BLOCK_BYTES}
assert resident() - before > 0.9 * {BLOCK_BYTES}
del block
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("word", ["keeps", "gives back"])
def test_freed_memory_is_kept_only_where_that_was_asked_for(word: str) -> None:
    """In a process of its own: what this one has freed before would be taken first."""
    done = subprocess.run([sys.executable, "-c", FREE_A_BLOCK, word], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 0.9 * BLOCK_BYTES) == (word == "keeps")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    before = dict(os.environ)
    assert not keep_freed_memory()
    assert dict(os.environ) == before
