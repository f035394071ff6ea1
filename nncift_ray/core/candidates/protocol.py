"""What a candidate generator is: two maps into one space where inner products order the columns.

Suffixes: I rows (helped), J columns (helpers), T columns of a tile, F features, X activations [H]
or embeddings [D], whichever the generator reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.errors import ShapeError

F32 = NDArray[np.float32]
State = Mapping[str, NDArray[np.float32]]


class CandidateGenerator(Protocol):
    """A fitted generator: row query . column features = influence, nearly, up to a row's constant.

    Fitted once on a sample of rows and columns; from then on it knows arrays only, so that it can
    be stored and read by every worker. The features of a column and the query of a row have the
    same bits whatever else is in the call, so that candidates are the same on any cluster.
    """

    reads: ClassVar[Literal["activations", "embeddings"]]

    @classmethod
    def fit(
        cls, network: FactoredNetwork, row_sample_IX: F32, column_sample_JX: F32, /, *, seed: int
    ) -> Self:
        """Fit on random samples of the rows and columns that will be scored."""
        ...

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        ...

    def column_features(self, column_TX: F32) -> F32:
        """Return the features [T, F] of a tile of columns."""
        ...

    def row_queries(self, row_IX: F32) -> F32:
        """Return the query vectors [I, F] of rows."""
        ...

    def to_state(self) -> dict[str, F32]:
        """Return the fitted arrays by name."""
        ...

    @classmethod
    def from_state(cls, state: State) -> Self:
        """Rebuild a generator from what `to_state` returned.

        Raises:
            ShapeError: If an array is missing or unknown.
        """
        ...


def check_names(state: State, names: set[str], generator: str) -> None:
    """Check that a state holds the arrays of a generator and no others.

    Raises:
        ShapeError: If it does not.
    """
    if set(state) != names:
        msg = f"state of a generator {generator!r} holds {sorted(state)}, expected {sorted(names)}"
        raise ShapeError(msg)
