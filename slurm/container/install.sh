#!/bin/bash
# Installs what pyproject.toml, which lies beside this file, asks for, into the environment of `python`. Its torch and
# what comes with it stay: they belong to the devices. If a package asks for another one, nothing is installed.
set -euo pipefail
cd "$(dirname "$0")"

if ! python -c 'import torch; raise SystemExit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13))'; then
    echo "install.sh: this environment has no PyTorch 2.13 or newer; start from an image that has." >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
python - pyproject.toml "$work" <<'END'
import sys
from importlib import metadata
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project, work = Path(sys.argv[1]), Path(sys.argv[2])
names = {distribution.metadata["Name"] for distribution in metadata.distributions()}
kept = sorted(name for name in names if name.lower().startswith(("torch", "pytorch", "triton", "numpy")))
(work / "kept").write_text("".join(f"{name}=={metadata.version(name)}\n" for name in kept))
wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
(work / "wanted").write_text("".join(f"{one}\n" for one in wanted))
END
python -m pip install --no-cache-dir --constraint "$work/kept" --requirement "$work/wanted"
python -m pip check
