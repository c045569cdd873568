"""The exit codes of a training command: what a job script may conclude from them."""

from enum import IntEnum

from megatron_poro.errors import DivergedError, ReplicaError, RunInUseError


class ExitCode(IntEnum):
    """How a training command ends. torchrun itself ends with 1 whenever a process of its did not end with 0."""

    FINISHED = 0
    """The run reached its last step or ``run.stop_after_steps``, or saved because of the control file ``stop``."""

    BUG = 1
    """An error that is the program's, with its traceback."""

    BAD_INPUT = 2
    """An error that is the input's (configuration, data, checkpoint, a loss that is not finite), in one sentence."""

    STOPPED = 75
    """A signal asked the run to stop; it has saved and goes on when started again (``EX_TEMPFAIL`` of sysexits.h)."""

    HUNG = 76
    """A process stopped getting on; the stacks of all are in the run's folder, and the odd one was named. Start again,
    without its machine."""

    LOST_PEER = 77
    """Another process of the run ended before its time; what it printed last says why. Start again."""

    DIVERGED = DivergedError.exit_status
    """Steps were passed over again and again, also after going back to earlier checkpoints. A person must decide."""

    REPLICAS_DIFFER = ReplicaError.exit_status
    """Values that processes must hold alike are not alike; nothing was saved after that was found. Start again without
    the machine that was named; its memory or its arithmetic is at fault."""

    IN_USE = RunInUseError.exit_status
    """Another job writes to the run, or has taken it over from this one; this one wrote nothing after that. Start again
    when the other one has ended."""

    INTERRUPTED = 130
    """Ctrl-C; nothing was saved."""
