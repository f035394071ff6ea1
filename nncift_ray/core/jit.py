"""How the kernels of this package are compiled: on disk where a cache can be written, else anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba  # pyright: ignore[reportMissingTypeStubs]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function on its first call, keeping strict IEEE arithmetic.

    No fast-math: additions keep the order they are written in, so that the same numbers come out
    of vector bodies, scalar tails and machines with other vector widths.

    The machine code is cached beside the source or in the user's cache directory; where neither
    can be written (read-only images) it is compiled anew in every process.
    """
    njit = cast("Callable[..., Callable[[Function], Function]]", cast("Any", numba).njit)
    try:
        return njit(cache=True, error_model="numpy", nogil=True)(function)
    except RuntimeError:  # numba found no directory that it can write
        return njit(error_model="numpy", nogil=True)(function)
