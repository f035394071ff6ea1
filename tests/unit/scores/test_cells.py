from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import NO_COLUMN
from nncift_ray.scores.index import NO_CELL, FeatureCells, list_columns
from nncift_ray.scores.kernel import multiply_rows
from tests.unit.scores.test_pair_scores import assert_same_bits

ROWS, COLUMNS, FEATURES, NUM_CELLS, EMPTY_CELL = 21, 1500, 13, 9, 4
SUM_TOLERANCE = 1e-5  # float32 sums of 13 products of size 1


def draw(count: int, seed: int, features: int = FEATURES) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def draw_cells(columns: int = COLUMNS) -> np.ndarray:
    """Return cells of unequal size, one of them empty and one of several panels."""
    share = np.array([30, 1, 2, 3, 0, 1, 1, 1, 1]) / 40
    return np.random.default_rng(3).choice(NUM_CELLS, size=columns, p=share)


def pack(features: np.ndarray, cells: np.ndarray) -> FeatureCells:
    return FeatureCells.pack(features, cells, NUM_CELLS)


def every_cell(rows: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(4)
    return np.stack([rng.permutation(NUM_CELLS) for _ in range(rows)])


def best_columns(
    queries: np.ndarray, features: np.ndarray, reached_IJ: np.ndarray, count: int
) -> np.ndarray:
    """Return the oracle: all products, the best by (product, smaller column), -1 where none."""
    product_IJ = np.where(reached_IJ, multiply_rows(queries, features.T), -np.inf)
    order = np.argsort(-product_IJ, axis=1, kind="stable")[:, :count]
    none = ~np.isfinite(np.take_along_axis(product_IJ, order, axis=1))
    order[none] = NO_COLUMN
    padding = np.full((len(queries), count - order.shape[1]), NO_COLUMN)
    return np.concatenate([order, padding], axis=1)


@pytest.mark.parametrize("num_listed", [1, 7, 400, COLUMNS, COLUMNS + 90])
@pytest.mark.parametrize("rows", [1, 8, ROWS])
def test_all_cells_list_the_largest_products(num_listed: int, rows: int) -> None:
    queries, features = draw(rows, 1), draw(COLUMNS, 2)
    found = list_columns(queries, pack(features, draw_cells()), every_cell(rows), num_listed)
    reached = np.ones((rows, COLUMNS), bool)
    np.testing.assert_array_equal(found, best_columns(queries, features, reached, num_listed))


def test_a_row_lists_columns_of_its_own_cells_only() -> None:
    queries, features, cells = draw(ROWS, 1), draw(COLUMNS, 2), draw_cells()
    probes = every_cell()[:, :3]
    probes[5] = NO_CELL
    probes[6, 0] = NO_CELL
    reached = (cells == probes[:, :, None]).any(axis=1)
    found = list_columns(queries, pack(features, cells), probes, 200)
    np.testing.assert_array_equal(found, best_columns(queries, features, reached, 200))


def test_equal_products_are_listed_by_smaller_column() -> None:
    features = np.tile(draw(1, 2), (COLUMNS, 1))
    features[1::2] *= -1
    features[0::2, 0] = features[0, 0]
    queries = np.zeros((2, FEATURES), np.float32)
    queries[1] = features[0]
    found = list_columns(queries, pack(features, draw_cells()), every_cell(2), 50)
    np.testing.assert_array_equal(found, [range(50), range(0, 100, 2)])


def test_neither_other_rows_nor_the_order_of_probes_change_a_list() -> None:
    queries, cells = draw(ROWS, 1), pack(draw(COLUMNS, 2), draw_cells())
    probes = every_cell()[:, :5]
    whole = list_columns(queries, cells, probes, 20)
    for i in range(ROWS):
        alone = list_columns(queries[i : i + 1], cells, probes[i : i + 1, ::-1], 20)
        np.testing.assert_array_equal(alone[0], whole[i])


def test_no_row_and_no_probe_list_nothing() -> None:
    cells = pack(draw(COLUMNS, 2), draw_cells())
    assert list_columns(draw(0, 1), cells, np.zeros((0, 2), int), 5).shape == (0, 5)
    assert (list_columns(draw(3, 1), cells, np.zeros((3, 0), int), 5) == NO_COLUMN).all()


@pytest.mark.parametrize("features", [1, 12, 65])
def test_one_column_is_listed_whatever_the_number_of_features(features: int) -> None:
    cells = FeatureCells.pack(draw(1, 2, features), np.zeros(1, int), 1)
    found = list_columns(draw(2, 1, features), cells, np.zeros((2, 1), int), 2)
    np.testing.assert_array_equal(found, [[0, NO_COLUMN]] * 2)


def test_what_does_not_belong_together_is_refused() -> None:
    cells = pack(draw(COLUMNS, 2), draw_cells())
    with pytest.raises(ShapeError, match=r"queries are \(2, 14\), features have 13 numbers"):
        list_columns(draw(2, 1, 14), cells, np.zeros((2, 1), int), 5)
    with pytest.raises(ShapeError, match="2 rows, but probes of"):
        list_columns(draw(2, 1), cells, np.zeros((3, 1), int), 5)
    with pytest.raises(ValueError, match=r"a row probes cells 9\.\.9, there are 9"):
        list_columns(draw(2, 1), cells, np.full((2, 1), NUM_CELLS), 5)
    with pytest.raises(ValueError, match="num_listed must be at least 1, got 0"):
        list_columns(draw(2, 1), cells, np.zeros((2, 1), int), 0)
    with pytest.raises(ShapeError, match=r"features are \(7, 13\), cells of columns \(1500,\)"):
        pack(draw(7, 1), draw_cells())


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (9, 64), (20, 130)])
def test_products_of_rows_are_those_of_float64(rows: int, columns: int) -> None:
    x, matrix = draw(rows, 1), draw(columns, 2).T
    exact = x.astype(np.float64) @ matrix.astype(np.float64)
    np.testing.assert_allclose(multiply_rows(x, matrix), exact, rtol=0, atol=SUM_TOLERANCE)


def test_a_row_has_the_same_product_in_any_call() -> None:
    x, matrix = draw(30, 1), draw(70, 2).T
    whole = multiply_rows(x, matrix)
    assert_same_bits(multiply_rows(x[11:12], matrix)[0], whole[11])
    assert multiply_rows(x[:0], matrix).shape == (0, 70)


def test_a_product_of_other_lengths_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 13\) cannot be multiplied by \(12, 4\)"):
        multiply_rows(draw(2, 1), draw(12, 1, 4))
