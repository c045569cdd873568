"""Door to ``poro data inspect``: what is in an indexed dataset. Run as ``python -m data_prep.inspect_data --help``."""

import sys

from megatron_poro.cli.data import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
