"""Door to ``poro data tokenize``: files -> indexed dataset. Run as ``python -m data_prep.tokenize_corpus --help``."""

import sys

from megatron_poro.cli.data import main

if __name__ == "__main__":
    sys.exit(main(["tokenize", *sys.argv[1:]]))
