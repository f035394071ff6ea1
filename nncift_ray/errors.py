"""Every error a user can meet, with the exit code of the command line; secrets in messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast


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


# Secrets. Recipes end in manifests, reports and metadata of jobs, so they hold none: credentials
# come from the environment. Messages of other libraries may hold some all the same (an address with
# a password, a header), so what is written to a log or an errors table goes through ``redact``.

MASK = "***"
#: A shorter value is no secret that is worth keeping, and would be found everywhere.
MIN_SECRET_CHARS = 8
_NAME = re.compile(
    r"(^|_)(secret|token|passw(or)?d|credentials?|api_?key|access_key|secret_key|private_key)(_|$)",
    re.IGNORECASE,
)
#: Variables that say where a secret lies, or how it is used.
_NO_SECRET = re.compile(r"_(file|path|dir|id|mode|url|uri|type|expiration)$", re.IGNORECASE)
_SIGNED = re.compile(
    r"([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature"
    r"|awsaccesskeyid|access_key|secret_key|sig|signature|token|password|api_?key)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_USER = re.compile(r"(://)[^/\s@'\"]+@")
_BEARER = re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


def secret_values() -> list[str]:
    """Return the values of this process's variables whose names say that they hold a secret."""
    values = {
        value
        for name, value in os.environ.items()
        if _NAME.search(name) and not _NO_SECRET.search(name) and len(value) >= MIN_SECRET_CHARS
    }
    return sorted(values, key=len, reverse=True)


def redact(text: str) -> str:
    """Mask credentials in addresses and headers, and every secret of the environment."""
    for value in secret_values():
        text = text.replace(value, MASK)
    text = _USER.sub(rf"\1{MASK}@", text)
    text = _SIGNED.sub(rf"\1{MASK}", text)
    return _BEARER.sub(rf"\1\2{MASK}", text)


def find_secret(tree: object) -> str | None:
    """Say where a tree of plain values holds a secret, and what to do; None where it holds none."""
    known = secret_values()
    for path, value in _texts(tree, ()):
        where = ".".join(path)
        if _USER.search(value) or _SIGNED.search(value):
            return (
                f"{where}: an address with credentials would be written to manifests and logs; "
                "give the plain address, and credentials by the environment"
            )
        if any(secret in value for secret in known):
            return (
                f"{where}: holds the value of a variable that is a secret by its name; a recipe is "
                "written to manifests and reports, so leave it out and let what needs it read the "
                "environment"
            )
    return None


def _texts(tree: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text of a tree, keys included, with the keys that lead to it."""
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in cast("Mapping[object, object]", tree).items():
            yield path, str(key)
            yield from _texts(value, (*path, str(key)))
    elif isinstance(tree, Sequence):
        for value in cast("Sequence[object]", tree):
            yield from _texts(value, path)
