"""A training process whose rank 1 fails in its third step; started by torchrun in ``test_torchrun.py``."""

import sys

from megatron_poro.cli.train import main
from megatron_poro.train import loop
from megatron_poro.train.run import Run

_train_step = loop.train_step


def _crash(run: Run) -> None:
    if run.processes.launch.rank == 1 and run.progress.step == 2:
        raise RuntimeError("a cable was pulled")
    _train_step(run)


if __name__ == "__main__":
    loop.train_step = _crash
    sys.exit(main(sys.argv[1:]))
