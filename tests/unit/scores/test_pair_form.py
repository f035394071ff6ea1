"""The pair network's form of the kernels: the squared positive part of an inner product."""

from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.scores.exact import (
    pack_columns,
    rescore_rows,
    score_block,
    score_matrix,
    sum_columns,
    top_k_rows,
)
from nncift_ray.scores.gpu import fold_in_torch, top_k_rows_on

NO_WEIGHTS = np.zeros(0, np.float32)
BIAS = 0.25
ROUNDING = 1e-5


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Rows [37, 20] and columns [150, 20]: 19 features and the example's own effect."""
    random = np.random.default_rng(0)
    return (
        random.normal(size=(37, 20)).astype(np.float32) / 3,
        random.normal(size=(150, 20)).astype(np.float32) / 3,
    )


def test_the_plain_score_is_what_the_formula_says() -> None:
    a_IH = np.array([[2.0, 1.0, 10.0]], np.float32)
    b_JH = np.array([[1.0, 1.0, 0.5], [-1.0, -1.0, 0.5]], np.float32)
    expected = [[9.0 + 10.5 + BIAS, 0.0 + 10.5 + BIAS]]  # (2 + 1)^2, and nothing below 0
    np.testing.assert_allclose(score_block(a_IH, b_JH, NO_WEIGHTS, BIAS), expected)


def test_the_kernel_scores_as_the_plain_way(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    found = score_matrix(*pairs, NO_WEIGHTS, BIAS)
    np.testing.assert_allclose(found, score_block(*pairs, NO_WEIGHTS, BIAS), atol=ROUNDING)


@pytest.mark.parametrize("tile_columns", [1, 64, 100, 1024])
def test_lists_have_the_bits_of_the_matrix_in_any_tile(
    pairs: tuple[np.ndarray, np.ndarray], tile_columns: int
) -> None:
    top = top_k_rows(*pairs, NO_WEIGHTS, BIAS, 5, tile_columns=tile_columns, num_threads=2)
    best = -np.sort(-score_matrix(*pairs, NO_WEIGHTS, BIAS), axis=1)[:, :5]
    np.testing.assert_array_equal(top.score_IK, best)


def test_rescoring_every_column_gives_the_exact_lists(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    rows, columns = pairs
    every = np.tile(np.arange(len(columns)), (len(rows), 1))
    found = rescore_rows(rows, pack_columns(columns, NO_WEIGHTS, BIAS), every, 7)
    exact = top_k_rows(rows, columns, NO_WEIGHTS, BIAS, 7)
    np.testing.assert_array_equal(found.score_IK, exact.score_IK)
    np.testing.assert_array_equal(found.index_IK, exact.index_IK)


def test_sums_of_columns_are_those_of_the_matrix(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    group_I = np.zeros(len(pairs[0]), np.int64)
    found = sum_columns(*pairs, NO_WEIGHTS, BIAS, group_I, 1).sum_GJ[0] / 2**32
    expected = score_matrix(*pairs, NO_WEIGHTS, BIAS).astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_sides_can_be_exchanged(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    forth = score_matrix(*pairs, NO_WEIGHTS, BIAS)
    back = score_matrix(*pairs[::-1], NO_WEIGHTS, BIAS)
    np.testing.assert_allclose(forth, back.T, atol=ROUNDING)


def test_torch_finds_the_lists_of_the_cpu(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    found = top_k_rows_on(*pairs, NO_WEIGHTS, BIAS, 6, device="cpu", fold=fold_in_torch)
    exact = top_k_rows(*pairs, NO_WEIGHTS, BIAS, 6)
    np.testing.assert_array_equal(found.index_IK, exact.index_IK)
    np.testing.assert_allclose(found.score_IK, exact.score_IK, atol=ROUNDING)
