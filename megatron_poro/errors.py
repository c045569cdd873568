"""The errors a user can cause. Each message names the key or file, shows both values, says what to do.

The command line prints such an error as one sentence and exits with status 2; anything else is a bug and shows
its traceback.
"""


class PoroError(Exception):
    """Root of all errors that are the input's fault, not the code's."""


class ConfigError(PoroError):
    """A config value is unknown, mistyped, or contradicts another."""


class TopologyError(PoroError):
    """The process grid does not fit the model, the batch or the number of processes."""


class DataError(PoroError):
    """A corpus, an indexed dataset, or a tokenizer is missing, damaged, or does not fit the model."""


class CheckpointError(PoroError):
    """A checkpoint cannot be written, is not valid, or does not belong to this run."""


class EngineError(PoroError):
    """A training step went wrong: a non-finite loss or gradient, a failed gradient truth check, a wrong library."""
