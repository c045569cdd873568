"""``python slow_steps.py -m MODULE ...``: like ``python -m MODULE ...``, with steps that last as long as the test says.

A toy step takes milliseconds, and a scheduler does nothing within one. PORO_TEST_STEP_SECONDS says how long.
"""

import os
import runpy
import sys
import time
from typing import Any


def slow_down(seconds: float) -> None:
    """Lets each step of the loop wait a moment first."""
    from megatron_poro.train import loop

    train_step = loop.train_step

    def slow_step(*arguments: Any) -> Any:
        time.sleep(seconds)
        return train_step(*arguments)

    loop.train_step = slow_step


if __name__ == "__main__":
    module = sys.argv[2]
    sys.argv = sys.argv[2:]
    if sys.argv[1:2] == ["train"]:
        slow_down(float(os.environ.get("PORO_TEST_STEP_SECONDS", "0")))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
