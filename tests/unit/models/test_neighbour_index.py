from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ModelError, ShapeError
from nncift_ray.scores.exact import NO_COLUMN
from nncift_ray.scores.neighbours import (
    COLUMNS_PER_CELL,
    MOST_CELLS,
    IndexKind,
    NeighbourIndex,
    num_cells,
    sample_size,
)

COLUMNS, FEATURES, ROWS, CANDIDATES = 3000, 6, 20, 15
KINDS: tuple[IndexKind, ...] = ("flat", "ivf", "hnsw")
GRAPH_RECALL = 0.9  # a graph over 3,000 columns that holds 300 candidates


def make_features(count: int, seed: int = 0) -> np.ndarray:
    """Return clustered features: twelve centres of unequal length, noise about them."""
    rng = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(99).standard_normal((12, FEATURES))
    noise = rng.standard_normal((count, FEATURES))
    return (centres[rng.integers(12, size=count)] + noise).astype(np.float32)


def make_index(kind: IndexKind, seed: int = 0, tile: int = 700) -> NeighbourIndex:
    features = make_features(COLUMNS)
    index = NeighbourIndex.build(kind, features[:1500], COLUMNS, seed=seed)
    for start in range(0, COLUMNS, tile):
        index.add(features[start : start + tile])
    return index


def best_columns(queries: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ make_features(COLUMNS).T), axis=1)[:, :CANDIDATES]


def share_found(found: np.ndarray, wanted: np.ndarray) -> float:
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([np.isin(want, have).mean() for have, want in pairs]))


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_search_of_every_cell_finds_the_largest_inner_products(kind: IndexKind) -> None:
    index, queries = make_index(kind), make_features(ROWS, seed=1)
    found = index.search(queries, CANDIDATES, index.num_cells)
    np.testing.assert_array_equal(found, best_columns(queries))


def test_a_graph_finds_most_of_the_largest_inner_products() -> None:
    queries = make_features(ROWS, seed=1)
    found = make_index("hnsw").search(queries, CANDIDATES, 300)
    assert share_found(found, best_columns(queries)) > GRAPH_RECALL


def test_the_first_cells_hold_most_of_the_best_columns() -> None:
    index, queries = make_index("ivf"), make_features(ROWS, seed=1)
    assert index.num_cells == COLUMNS // COLUMNS_PER_CELL
    shares = [
        share_found(index.search(queries, CANDIDATES, probes), best_columns(queries))
        for probes in (1, 4, 8)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[2]


def test_cells_and_probes_name_the_columns_that_a_search_finds() -> None:
    index, queries = make_index("ivf"), make_features(ROWS, seed=1)
    cells, probes = index.cells(), index.probe(queries, 3)
    found = index.search(queries, CANDIDATES, 3)
    assert cells.shape == (COLUMNS,)
    assert np.unique(probes[0]).size == 3
    for row, columns in enumerate(found):
        assert np.isin(cells[columns], probes[row]).all()


def test_probes_are_ordered_and_a_wider_search_begins_with_the_narrow_one() -> None:
    index, queries = make_index("ivf"), make_features(ROWS, seed=1)
    np.testing.assert_array_equal(index.probe(queries, 9)[:, :4], index.probe(queries, 4))
    assert index.probe(queries, 10_000).shape == (ROWS, index.num_cells)


def test_what_a_row_finds_in_cells_does_not_depend_on_the_other_rows() -> None:
    index, queries = make_index("ivf"), make_features(ROWS, seed=1)
    probes, found = index.probe(queries, 5), index.search(queries, CANDIDATES, 5)
    for row in range(ROWS):
        one = queries[row : row + 1]
        np.testing.assert_array_equal(index.probe(one, 5)[0], probes[row])
        np.testing.assert_array_equal(index.search(one, CANDIDATES, 5)[0], found[row])


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_knows_its_kind(kind: IndexKind) -> None:
    assert NeighbourIndex.from_bytes(make_index(kind).to_bytes()).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_one_build_gives_one_index(kind: IndexKind) -> None:
    queries = make_features(ROWS, seed=1)
    one, same = (make_index(kind).search(queries, CANDIDATES, 4) for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_the_seed_and_not_the_tiles_decide_the_cells() -> None:
    index = make_index("ivf")
    np.testing.assert_array_equal(make_index("ivf", tile=COLUMNS).cells(), index.cells())
    assert not np.array_equal(make_index("ivf", seed=1).cells(), index.cells())


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_survives_as_bytes(kind: IndexKind) -> None:
    index, queries = make_index(kind), make_features(ROWS, seed=1)
    again = NeighbourIndex.from_bytes(index.to_bytes())
    assert again.num_columns == COLUMNS
    np.testing.assert_array_equal(again.cells(), index.cells())
    np.testing.assert_array_equal(again.probe(queries, 3), index.probe(queries, 3))
    np.testing.assert_array_equal(again.search(queries, 5, 4), index.search(queries, 5, 4))


def test_only_cells_can_be_searched_by_cell() -> None:
    index, queries = make_index("ivf"), make_features(ROWS, seed=1)
    found = index.search_cells(queries, index.probe(queries, 4), CANDIDATES)
    np.testing.assert_array_equal(found, index.search(queries, CANDIDATES, 4))
    with pytest.raises(ModelError, match="kind 'flat' has no cells"):
        make_index("flat").search_cells(queries, np.zeros((ROWS, 1), np.int32), 5)


def test_columns_added_after_a_search_are_found() -> None:
    features = make_features(COLUMNS)
    index = NeighbourIndex.build("ivf", features[:1500], COLUMNS, seed=0)
    index.add(features[: COLUMNS // 2])
    queries = make_features(ROWS, seed=1)
    assert index.search(queries, 5, index.num_cells).max() < COLUMNS // 2
    index.add(features[COLUMNS // 2 :])
    found = index.search(queries, CANDIDATES, index.num_cells)
    np.testing.assert_array_equal(found, best_columns(queries))


def test_bytes_that_are_no_index_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be read, build it anew"):
        NeighbourIndex.from_bytes(np.frombuffer(b"not an index at all", np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_candidates_are_no_column(kind: IndexKind) -> None:
    features = make_features(3)
    index = NeighbourIndex.build(kind, features, 3, seed=0)
    assert (index.search(features, 4) == NO_COLUMN).all()
    index.add(features)
    found = index.search(features, 5, 4)
    assert found.shape == (3, 5)
    assert (np.sort(found[:, :3], axis=1) == [0, 1, 2]).all()
    assert (found[:, 3:] == NO_COLUMN).all()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_columns_are_found_all_the_same(kind: IndexKind) -> None:
    features = np.ones((200, FEATURES), np.float32)
    index = NeighbourIndex.build(kind, features, len(features), seed=0)
    index.add(features)
    found = index.search(features[:2], 7, index.num_cells)
    assert all(len(set(columns)) == 7 and min(columns) >= 0 for columns in found)


def test_what_is_not_finite_is_named() -> None:
    index, features = make_index("ivf"), make_features(5)
    features[3, 1] = np.inf
    with pytest.raises(ValueError, match="features of column 3 are not finite"):
        index.add(features)
    with pytest.raises(ValueError, match="features of row 3 are not finite"):
        index.probe(features, 1)


def test_features_of_another_length_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"features are \(4, 7\), expected \[N, 6\]"):
        make_index("flat").add(np.zeros((4, FEATURES + 1), np.float32))


def test_the_number_of_cells_grows_as_the_root_within_bounds() -> None:
    assert num_cells(0) == num_cells(100) == 1
    assert num_cells(1_000_000) == 4000
    assert num_cells(10**10) == MOST_CELLS
    assert sample_size(1_000_000) == 256_000
    assert sample_size(500) == 3 * 64
