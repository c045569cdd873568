"""A hub, a run to publish on it, and commands in processes of their own, as a user starts them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.hub.server import Hub

LONGEST_SECONDS = 300

READ_BRANCHES = """
import hashlib, json, sys
import torch, transformers

repository, exports = sys.argv[1], json.loads(sys.argv[2])


def described(place, **options):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        place, dtype="auto", output_loading_info=True, **options
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
    bits = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in sorted(model.state_dict().items())
    }
    ids = tokenizer("Revontulet palavat, and so on.\\n\\treturn n").input_ids
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    return [bits, ids, config, sorted(map(str, info["missing_keys"])), tokenizer.vocab_size]


read = {}
for branch, folder in exports.items():
    there, here = described(repository, revision=branch), described(folder)
    assert there == here, (branch, there, here)
    bits = hashlib.sha256(json.dumps(there[0]).encode()).hexdigest()
    read[branch] = {"tensors": len(there[0]), "ids": len(there[1]), "bits": bits}
print(json.dumps(read))
"""
"""Loads branches and the exports that they came from with transformers, and compares every bit, token and setting."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    output: str
    complaints: str

    @property
    def sentence(self) -> str:
        """The last line that it complained with."""
        return self.complaints.strip().splitlines()[-1] if self.complaints.strip() else ""


def environment(hub: Hub, home: Path, *, token: str | None = None, xet: bool = True) -> dict[str, str]:
    """What a process needs to see to talk to the hub."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token if token is None else token,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
    }


def start(words: Sequence[str], variables: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Starts a ``poro`` command."""
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_poro.cli.main", *words],
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: "subprocess.Popen[str]") -> Outcome:
    """Waits for a command."""
    try:
        output, complaints = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, complaints = process.communicate()
        raise AssertionError(f"still running after {LONGEST_SECONDS} s:\n{output}\n{complaints}") from None
    return Outcome(process.returncode, output, complaints)


def poro(words: Sequence[str], variables: Mapping[str, str]) -> Outcome:
    """Runs a ``poro`` command to its end."""
    return outcome(start(words, variables))


def read_branches(
    hub: Hub, repository: str, exports: Mapping[str, Path], home: Path, *, python: Path = Path(sys.executable)
) -> dict[str, dict[str, int | str]]:
    """Reads branches in a fresh process with an empty cache and compares each with an export.

    Args:
        hub: where they are.
        repository: ``owner/name``.
        exports: the folder that each branch must be equal to.
        home: for the cache.
        python: an interpreter with transformers.

    Returns:
        For each branch its number of tensors, of tokens of a text, and a checksum of all bits.
    """
    folders = json.dumps({branch: str(folder) for branch, folder in exports.items()})
    process = subprocess.run(
        [str(python), "-c", READ_BRANCHES, repository, folders],
        env={key: value for key, value in environment(hub, home).items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    assert process.returncode == 0, process.stderr
    read: dict[str, dict[str, int | str]] = json.loads(process.stdout.strip().splitlines()[-1])
    return read
