"""Where the columns of a search in parts come from, and how its parts are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.selection.problem import Problem

I64 = NDArray[np.int64]
#: `run(function, tasks)` calls the function on each task and returns the results in order.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class ColumnSource(Protocol):
    """Where a part's columns come from; a `Problem` is one."""

    @property
    def num_columns(self) -> int:
        """Number of columns J of the whole ground set."""
        ...

    def restricted(self, columns_S: I64) -> Problem:
        """Return the problem of some columns, in the order given, over all rows."""
        ...
