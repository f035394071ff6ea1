"""How the kernels of this package are compiled: on disk where a cache can be written, else anew."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numba  # pyright: ignore[reportMissingTypeStubs]

SOURCES = Path(__file__).parent
DIGEST_HEX_LENGTH = 12

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function on its first call, keeping strict IEEE arithmetic.

    No fast-math: additions keep the order they are written in, so that the same numbers come out
    of vector bodies, scalar tails and machines with other vector widths.

    The machine code is cached beside the source or in the user's cache directory; where neither
    can be written (read-only images) it is compiled anew in every process.
    """
    njit = cast("Callable[..., Callable[[Function], Function]]", cast("Any", numba).njit)
    with _cache_of_these_sources():
        try:
            return njit(cache=True, error_model="numpy", nogil=True)(function)
        except RuntimeError:  # numba found no directory that it can write
            return njit(error_model="numpy", nogil=True)(function)


def sources_digest(folder: Path = SOURCES) -> str:
    """Name the state of all sources that a kernel may be compiled from."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:DIGEST_HEX_LENGTH]


@functools.cache
def _cache_folder(root: str) -> str:
    parent = Path(root) if root else SOURCES / "__pycache__"
    return str(parent / f"kernels-{sources_digest()}")


@contextmanager
def _cache_of_these_sources() -> Generator[None]:
    """Give every state of the sources a cache of its own.

    numba looks at the time of a function's own file only: after an upgrade it would run machine
    code into which an older version of an imported kernel was inlined.
    """
    config = cast("Any", numba).config
    given = str(config.CACHE_DIR or "")
    config.CACHE_DIR = _cache_folder(given)
    try:
        yield
    finally:
        config.CACHE_DIR = given
