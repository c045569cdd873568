"""The exit codes of a training command: what a job script may conclude from them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a training command ends. torchrun itself ends with 1 whenever a process of its did not end with 0."""

    FINISHED = 0
    """The run reached its last step, or ``run.stop_after_steps``."""

    BUG = 1
    """An error that is the program's, with its traceback."""

    BAD_INPUT = 2
    """An error that is the input's (configuration, data, checkpoint, a loss that is not finite), in one sentence."""

    STOPPED = 75
    """A signal asked the run to stop; it has saved and goes on when started again (``EX_TEMPFAIL`` of sysexits.h)."""

    INTERRUPTED = 130
    """Ctrl-C; nothing was saved."""
