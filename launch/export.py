"""Door to ``poro export`` for a checkout. Run as ``python -m launch.export RUN --milestones``."""

import sys

from megatron_poro.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
