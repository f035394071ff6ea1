"""Every error a user can meet, with the exit code the command line returns for it."""

from __future__ import annotations


class NnciftError(Exception):
    """Base of all errors that are the user's to mend; the message says what, where and how."""

    exit_code = 1


class ConfigError(NnciftError):
    """A recipe key is unknown, has the wrong type or contradicts another key."""

    exit_code = 2


class DataError(NnciftError):
    """An input file is missing, unreadable or holds no usable example."""

    exit_code = 3


class ModelError(NnciftError):
    """A model cannot be found or loaded, or does not fit its use."""

    exit_code = 4


class EngineDiedError(ModelError):
    """The process behind a language model is gone; a new one may be made."""


class StageError(NnciftError):
    """A stage could not finish: failed shards, too many failed rows, a missing input."""

    exit_code = 5


class ShapeError(NnciftError, ValueError):
    """Arrays whose shapes must agree do not."""


class StorageError(NnciftError):
    """A run directory or a part of it cannot be read or written, or is not what was recorded."""

    exit_code = 6


class JobError(NnciftError):
    """A Ray job server cannot be reached or refuses, or a job cannot be sent as it is."""

    exit_code = 7


class StopRequested(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), and did so with all finished shards kept."""
