"""Synthetic influence: lists of K distinct helpers a row, and matrices."""

from __future__ import annotations

import numpy as np

from nncift_ray.selection.problem import SparseScores

KINDS = ("uniform", "hub")
HUB_POWER = 3  # of ten columns the most wanted is then in 46 % of all list places


def draw_lists(kind: str, num_rows: int, per_row: int, seed: int = 0) -> SparseScores:
    """Draw lists over as many columns as rows.

    `uniform`: every column is as likely, values from 0 to 1: no structure at all, so gains are
    close together and a lazy search has to look at many columns. `hub`: few columns are in very
    many lists and values lie near 1, as in lists of a trained network.
    """
    rng = np.random.default_rng(seed)
    share = rng.random((num_rows, per_row), np.float32)
    if kind == "hub":
        share **= HUB_POWER
    index = ((num_rows - per_row) * share).astype(np.int32)
    del share
    # Distinct within a row: each is moved up past the one before it.
    index.sort(axis=1)
    places = np.arange(per_row, dtype=np.int32)
    index -= places
    np.maximum.accumulate(index, axis=1, out=index)
    index += places
    value = rng.random((num_rows, per_row), np.float32)
    if kind == "hub":
        value *= np.float32(0.3)
        value += np.float32(0.7)
    indptr = np.arange(num_rows + 1, dtype=np.int64) * per_row
    return SparseScores(indptr, index.reshape(-1), value.reshape(-1), num_rows)


def draw_matrix(kind: str, num_rows: int, seed: int = 0) -> np.ndarray:
    """Draw a matrix [N, N] float32 in [0, 1]: `uniform` numbers, or cosines (`hub`) of clusters."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        return rng.random((num_rows, num_rows), np.float32)
    place_ND = rng.standard_normal((20, 16))[rng.integers(0, 20, num_rows)]
    place_ND = place_ND + 0.7 * rng.standard_normal(place_ND.shape)
    place_ND /= np.linalg.norm(place_ND, axis=1, keepdims=True)
    return np.clip((place_ND @ place_ND.T + 1) / 2, 0, 1).astype(np.float32)
