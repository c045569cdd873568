"""``poro data prepare`` is killed in the middle of what it writes, again and again, and ends with the same files."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.unit.data_prep import raw_corpora

ROOT = Path(__file__).parents[2]
KILLS = 4

RUN = """
import json, os, signal, sys
from megatron_poro.cli.data import main

words, last, count = json.loads(sys.argv[1]), int(sys.argv[2]), 0

def counted(call):
    def counting(*arguments, **options):
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting

# what makes a file safe and what gives it its name: between any two of these a killed command leaves another state
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
status = main(["prepare", *words])
print("calls", count)
sys.exit(status)
"""


def prepare(raw: Path, output: Path, *, last: int) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process that is killed at its call ``last`` to the disk; 0 lets it end."""
    words = [
        "experiment=smoke_cpu",
        "model.vocab_size=384",
        f"data.folder={output / 'data'}",
        f"tokenizer.path={output / 'tokenizer'}",
        f"--recipes={ROOT / 'data_prep' / 'recipes' / 'poro_34b'}",
        f"--raw={raw}",
        "--workers=1",
    ]
    command = [sys.executable, "-c", RUN, json.dumps(words), str(last)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_random_and_given_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw_corpora.write_all(raw, documents=30)
    whole = prepare(raw, tmp_path / "whole", last=0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout.rpartition("calls ")[2])

    random_points = random.Random(20231019)
    while_the_tokenizer_is_saved = 3
    for last in (while_the_tokenizer_is_saved, *(random_points.randrange(2, calls // KILLS) for _ in range(KILLS - 1))):
        killed = prepare(raw, tmp_path / "killed", last=last)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert files(tmp_path / "killed") != files(tmp_path / "whole")
    again = prepare(raw, tmp_path / "killed", last=0)
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
