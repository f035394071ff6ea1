from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork, Inputs
from nncift_ray.scores.exact import (
    RescoredTopK,
    score_block,
    top_k_rows,
)
from nncift_ray.scores.index import (
    MOST_CELLS,
    AnchorFeatures,
    ColumnIndex,
    SearchSettings,
    listing_schedule,
    num_cells,
    recall_at_k,
    tune,
)

DIM, HIDDEN, ROWS, COLUMNS, K = 12, 20, 60, 900, 10
WIDER = [SearchSettings(4, 8), SearchSettings(8, 8), SearchSettings(16, 8)]
PRODUCT_TOLERANCE = 1e-3  # of the scores' spread: float32 products of 64 features
INPUTS = Inputs(np.zeros(DIM, np.float32), np.ones(DIM, np.float32), (DIM,))
FitRows = tuple[FactoredNetwork, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def network() -> FactoredNetwork:
    rng = np.random.default_rng(5)
    shapes = ((HIDDEN, DIM), (HIDDEN,), (HIDDEN, DIM), (HIDDEN,))
    w_row, b_row, w_col, w = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return FactoredNetwork(w_row, 0.3 * b_row, w_col, w, 2.5)


@pytest.fixture(scope="module")
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    vectors = np.random.default_rng(6).standard_normal((ROWS + COLUMNS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:ROWS], vectors[ROWS:]


@pytest.fixture(scope="module")
def activations(network: FactoredNetwork, embeddings: tuple[np.ndarray, np.ndarray]) -> FitRows:
    rows, columns = embeddings
    return network, network.project_rows(rows), network.project_columns(columns)


def recall_of(products: np.ndarray, scores: np.ndarray, num_candidates: int) -> float:
    """Return the share of each row's K best among its candidates of largest product."""
    listed = np.argsort(-products, axis=1)[:, :num_candidates]
    found = np.take_along_axis(scores, listed, axis=1)
    return float((found >= -np.sort(-scores, axis=1)[:, K - 1 : K]).sum(axis=1).mean() / K)


def found_lists(score_IK: np.ndarray) -> RescoredTopK:
    pairs = np.full(len(score_IK), score_IK.shape[1])
    return RescoredTopK(np.zeros(score_IK.shape, np.int32), score_IK.astype(np.float32), pairs)


def test_anchor_products_follow_influence_up_to_a_constant_of_the_row(activations: FitRows) -> None:
    network, a, b = activations
    features = AnchorFeatures.fit(network, a, b, seed=0, num_anchors=60, num_features=60)
    products = features.queries(a) @ features.of_columns(b).T
    offset = score_block(a, b, network.w_H, network.bias) - products
    left = offset - offset.mean(axis=1, keepdims=True)
    assert left.std() < PRODUCT_TOLERANCE * products.std()


def test_anchor_features_find_nearly_all_in_few_candidates(activations: FitRows) -> None:
    network, a, b = activations
    features = AnchorFeatures.fit(network, a[30:], b, seed=0)
    products = features.queries(a) @ features.of_columns(b).T
    assert recall_of(products, score_block(a, b, network.w_H, network.bias), 4 * K) > 0.99


def test_a_pair_networks_products_list_its_best_columns_at_once(activations: FitRows) -> None:
    _, a, b = activations
    none = np.zeros(0, np.float32)
    shape = np.zeros((HIDDEN, DIM), np.float32)
    network = FactoredNetwork(shape, shape[:, 0], shape, none, 0.0, inputs=INPUTS)
    b = b * np.r_[np.ones(HIDDEN - 1), 0.1].astype(np.float32)  # own effects beside the pairs'
    features = AnchorFeatures.fit(network, a[30:], b, seed=0)
    products = features.queries(a) @ features.of_columns(b).T
    scores = score_block(a, b, network.w_H, network.bias)
    assert recall_of(products, scores, K + K // 2) > 0.98


def test_an_index_survives_as_plain_arrays(activations: FitRows) -> None:
    network, a, b = activations
    index = ColumnIndex.build(network, a, b, seed=1)
    state = index.to_state()
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32), np.dtype(np.int32)}
    again, settings = ColumnIndex.from_state(state, b), SearchSettings(3, 40)
    np.testing.assert_array_equal(again.propose(a, settings), index.propose(a, settings))


def test_the_same_seed_gives_the_same_features(activations: FitRows) -> None:
    network, a, b = activations
    one, same, other = (
        AnchorFeatures.fit(network, a, b, seed=seed, num_anchors=16) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.of_columns(b), same.of_columns(b))
    assert not np.array_equal(one.anchor_RH, other.anchor_RH)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (2, 1)])
def test_anchors_fit_on_tiny_samples(activations: FitRows, rows: int, columns: int) -> None:
    network, a, b = activations
    features = AnchorFeatures.fit(network, a[:rows], b[:columns], seed=0)
    assert np.isfinite(features.of_columns(b)).all()
    assert np.isfinite(features.queries(a)).all()


def test_columns_that_all_score_alike_have_features_of_zero(activations: FitRows) -> None:
    network, a, b = activations
    features = AnchorFeatures.fit(network, a, np.tile(b[:1], (50, 1)), seed=0)
    np.testing.assert_array_equal(features.of_columns(b), np.zeros((COLUMNS, 1)))


def test_fitting_on_nothing_is_refused(activations: FitRows) -> None:
    network, a, b = activations
    with pytest.raises(ShapeError, match="cannot fit on 0 rows and 900 columns"):
        AnchorFeatures.fit(network, a[:0], b, seed=0)


def test_recall_counts_the_true_best_that_were_found() -> None:
    exact = np.array([[9, 8, 7], [9, 8, 7]], np.float32)
    found = np.array([[9, 7, 5], [6, 5, 4]], np.float32)
    np.testing.assert_allclose(recall_at_k(found, exact), [2 / 3, 0])


def test_recall_takes_a_tie_with_the_last_for_as_good() -> None:
    exact, found = np.array([[9, 7, 7]], np.float32), np.array([[7, 7, 7]], np.float32)
    np.testing.assert_allclose(recall_at_k(found, exact), [1.0])


def test_recall_of_short_lists_is_of_what_there_is() -> None:
    exact = np.array([[5, 4, -np.inf], [-np.inf] * 3], np.float32)
    found = np.array([[5, -np.inf, -np.inf], [-np.inf] * 3], np.float32)
    np.testing.assert_allclose(recall_at_k(found, exact), [0.5, 1.0])


def test_tuning_takes_the_first_setting_that_finds_enough() -> None:
    exact = np.tile(np.arange(4, 0, -1, np.float32), (5, 1))
    found = {4: [4, 0, 0, 0], 8: [4, 3, 2, 0], 16: [4, 3, 2, 1]}

    def search(settings: SearchSettings) -> RescoredTopK:
        return found_lists(np.tile(found[settings.num_probes], (5, 1)))

    tuning = tune(search, exact, 8, WIDER, wanted_recall=0.7)
    assert tuning.chosen is tuning.best
    assert [point.recall for point in tuning.points] == [0.25, 0.75]
    assert (tuning.best.num_probes, tuning.best.num_candidates) == (8, 8)
    assert tuning.best.scored_fraction == 0.5


def test_tuning_says_when_no_setting_finds_enough() -> None:
    exact = np.ones((3, 2), np.float32)
    tuning = tune(lambda _: found_lists(np.tile([1.0, 0.0], (3, 1))), exact, 9, WIDER[:2], 0.9)
    assert tuning.chosen is None
    assert tuning.best.recall == 0.5
    assert [point.num_probes for point in tuning.points] == [4, 8]


def test_schedules_end_with_everything_and_never_ask_for_more() -> None:
    assert {s.num_probes for s in listing_schedule(1, 50, 1)} == {1}
    assert {s.num_probes for s in listing_schedule(1, 50, 20)} == {4, 8, 16, 20}
    listing = listing_schedule(k=10, num_columns=50, num_cells=5)
    assert {s.num_candidates for s in listing} == {20, 30, 40, 50}
    assert listing[-1] == SearchSettings(5, 50)


def test_listing_widens_whichever_way_is_cheaper_first() -> None:
    listing = listing_schedule(k=10, num_columns=8000, num_cells=80)
    # 400 columns of four cells more cost as much as listing twenty-five more.
    assert listing[:3] == [SearchSettings(4, 20), SearchSettings(4, 30), SearchSettings(4, 40)]
    assert listing.index(SearchSettings(8, 20)) < listing.index(SearchSettings(4, 60))
    assert len(set(listing)) == 6 * 6


def test_a_row_and_a_column_have_the_same_bits_in_any_call(activations: FitRows) -> None:
    network, a, b = activations
    fitted = AnchorFeatures.fit(network, a, b, seed=1)
    sample = np.random.default_rng(0).standard_normal((77, HIDDEN)).astype(np.float32)
    queries, features = fitted.queries(sample), fitted.of_columns(sample)
    for n in (0, 40, 76):
        one = sample[n : n + 1]
        np.testing.assert_array_equal(fitted.queries(one)[0], queries[n])
        np.testing.assert_array_equal(fitted.of_columns(one)[0], features[n])


@pytest.mark.parametrize("columns", [1, 7, COLUMNS])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_listing_every_column_of_an_index_is_exact(
    rows: int, columns: int, activations: FitRows
) -> None:
    network, a, b = activations
    a, b = a[:rows], b[:columns]
    index = ColumnIndex.build(network, a, b, seed=0)
    found = index.search(a, SearchSettings(index.num_cells, columns), K)
    exact = top_k_rows(a, b, network.w_H, network.bias, K)
    np.testing.assert_array_equal(found.index_IK, exact.index_IK)
    np.testing.assert_array_equal(found.score_IK, exact.score_IK)


def test_neither_other_rows_nor_threads_change_what_is_proposed(activations: FitRows) -> None:
    network, a, b = activations
    one = ColumnIndex.build(network, a, b, seed=0)
    other = ColumnIndex.from_state(one.to_state(), b, num_threads=3)
    settings = SearchSettings(2, 15)
    whole = one.propose(a, settings)
    np.testing.assert_array_equal(other.propose(a, settings), whole)
    np.testing.assert_array_equal(one.propose(a[7:8], settings)[0], whole[7])


def test_wide_cells_are_probed_before_narrow_ones_of_a_nearer_centre(activations: FitRows) -> None:
    network, a, b = activations
    index = ColumnIndex.build(network, a, b, seed=0)
    query = index.features.queries(a)
    length = np.linalg.norm(query, axis=1, keepdims=True)
    promised = np.concatenate([query, length], axis=1) @ index.widened_LX.T
    order = np.argsort(-promised, axis=1, kind="stable")
    np.testing.assert_array_equal(index.probe(query, index.num_cells), order)


def test_a_few_cells_hold_most_of_the_best_columns() -> None:
    rng = np.random.default_rng(0)
    shapes = ((HIDDEN, DIM), (HIDDEN,), (HIDDEN, DIM), (HIDDEN,))
    network = FactoredNetwork(*(rng.standard_normal(s).astype(np.float32) for s in shapes), 0.5)
    vectors = rng.standard_normal((20_000, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b = network.project_rows(vectors[:300]), network.project_columns(vectors)
    index = ColumnIndex.build(network, a, b, seed=0)
    exact = top_k_rows(a[:100], b, network.w_H, network.bias, K)
    found = index.search(a[:100], SearchSettings(index.num_cells // 4, 20 * K), K)
    assert recall_at_k(found.score_IK, exact.score_IK).mean() >= 0.99
    assert found.num_pairs_I.mean() <= 0.02 * len(b)


def test_the_number_of_cells_grows_as_the_root_within_bounds() -> None:
    assert num_cells(0) == num_cells(100) == 1
    assert num_cells(1_000_000) == 4000
    assert num_cells(10**10) == MOST_CELLS


def test_anchors_refuse_what_is_not_finite(activations: FitRows) -> None:
    network, a, b = activations
    spoilt = b.copy()
    spoilt[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        AnchorFeatures.fit(network, a, spoilt, seed=0)
    with pytest.raises(ValueError, match="row 3 is not finite"):
        AnchorFeatures.fit(network, a, b, seed=0).queries(spoilt)
