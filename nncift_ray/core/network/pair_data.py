"""Labelled pairs as training reads them: ids into embeddings, never a row of inputs a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.network.influence_network import InfluenceNetwork
from nncift_ray.errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class PairData:
    """Labelled pairs: positions in the embeddings, and the teacher's utility (raw and signed)."""

    helped_pos: NDArray[np.integer]
    helper_pos: NDArray[np.integer] | None  # None in pointwise data
    utility: NDArray[np.floating]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.utility)


def check_pairs(
    name: str,
    network: InfluenceNetwork,
    helped_ED: NDArray[np.floating],
    helper_ED: NDArray[np.floating] | None,
    pairs: PairData,
) -> None:
    """Raise ShapeError or ValueError, saying which ``name``d pairs do not fit the network."""
    if (helper_ED is None) != network.pointwise or (pairs.helper_pos is None) != network.pointwise:
        msg = f"{name}: helpers are needed by a pairwise network and by no other"
        raise ShapeError(msg)
    bad = np.flatnonzero(~np.isfinite(pairs.utility))
    if len(bad):
        msg = f"{name}: utility of pair {bad[0]} is not finite ({len(bad)} such pairs)"
        raise ValueError(msg)
    for role, positions, embeddings in (
        ("helped", pairs.helped_pos, helped_ED),
        ("helper", pairs.helper_pos, helper_ED),
    ):
        if positions is None or embeddings is None:
            continue
        if embeddings.ndim != 2 or embeddings.shape[1] != network.embedding_dim:
            msg = f"{role} embeddings {embeddings.shape}, the network reads {network.embedding_dim}"
            raise ShapeError(msg)
        if len(positions) != len(pairs):
            msg = f"{name}: {len(positions)} {role} positions for {len(pairs)} utilities"
            raise ShapeError(msg)
        outside = np.flatnonzero((positions < 0) | (positions >= len(embeddings)))
        if len(outside):
            msg = (
                f"{name}: pair {outside[0]} names {role} {positions[outside[0]]},"
                f" there are {len(embeddings)}"
            )
            raise ValueError(msg)
