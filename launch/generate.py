"""Door to ``poro generate`` for a checkout. Run as ``python -m launch.generate RUN_OR_CHECKPOINT "a prompt"``."""

import sys

from megatron_poro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
