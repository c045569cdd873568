"""The errors a user can cause. Each message names the key or file, shows both values, says what to do.

The command line prints such an error as one sentence and exits with the status that the error carries; anything else
is a bug and shows its traceback.
"""

from typing import ClassVar


class PoroError(Exception):
    """Root of all errors that are the input's fault, not the code's."""

    exit_status: ClassVar[int] = 2
    """What a command that ends with it returns."""


class ConfigError(PoroError):
    """A config value is unknown, mistyped, or contradicts another."""


class TopologyError(PoroError):
    """The process grid does not fit the model, the batch or the number of processes."""


class DataError(PoroError):
    """A corpus, an indexed dataset, or a tokenizer is missing, damaged, or does not fit the model."""


class CheckpointError(PoroError):
    """A checkpoint cannot be written, is not valid, or does not belong to this run."""


class UnsavableError(CheckpointError):
    """A run can be saved neither now nor later: its values are not finite, or another job has taken it over."""


class EngineError(PoroError):
    """A training step went wrong: a non-finite loss or gradient, a failed gradient truth check, a wrong library."""


class DivergedError(PoroError):
    """Steps could not be taken again and again, and going back did not help: a person must decide."""

    exit_status = 78


class ReplicaError(PoroError):
    """Processes that must hold the same values do not: a machine computes wrongly, or the code does."""

    exit_status = 79


class RunInUseError(PoroError):
    """Another job writes to the run: the same command succeeds when that one has ended."""

    exit_status = 80


class HubError(PoroError):
    """A repository on the Hub refuses us, or holds what is not this run's."""


class HubUnavailableError(HubError):
    """The Hub or the way to it failed for now: the same command succeeds later."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h
