"""Door to ``poro train`` for a checkout. Run as ``python -m launch.train experiment=NAME``, also under torchrun."""

import sys

from megatron_poro.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
