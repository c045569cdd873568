"""Door to ``poro data merge``: several indexed datasets -> one. Run as ``python -m data_prep.merge_shards --help``."""

import sys

from megatron_poro.cli.data import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
