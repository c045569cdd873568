"""Door to ``poro train`` for a checkout. Run as ``python -m launch.train experiment=NAME``, also under torchrun."""

import sys

from megatron_poro.cli.train import command

if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
