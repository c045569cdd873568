"""A second Python environment with another release of transformers, made once and used again."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "4.57"
"""The release line before 5, which most published code was written for."""


def interpreter(folder: Path | None = None, *, release: str = RELEASE) -> Path:
    """The interpreter of an environment with this release of transformers and the torch of this one.

    Args:
        folder: where the environment is, or is made; None takes ``work/compatibility-<release>`` in the checkout.
        release: of transformers.
    """
    folder = folder or ROOT / "work" / f"compatibility-{release}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        torch = metadata.version("torch").partition("+")[0]
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        # torch first, so that nothing else brings another build of it
        _run([str(python), "-m", "pip", "install", "--quiet", f"torch=={torch}"])
        _run([str(python), "-m", "pip", "install", "--quiet", f"transformers=={release}.*", "safetensors", "numpy"])
        ready.touch()
    return python


def _run(command: Sequence[str]) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)
