from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import (
    RescoredTopK,
    pack_columns,
    rescore_rows,
    score_block,
    top_k_rows,
)
from nncift_ray.scores.index import (
    AnchorGenerator,
    CandidateGenerator,
    CosineGenerator,
    CostEstimate,
    QuadraticGenerator,
    Rates,
    SearchSettings,
    estimate_cost,
    listing_schedule,
    recall_at_k,
    tune,
)
from nncift_ray.scores.neighbours import lay_out_cells, list_columns, pack_features

DIM, HIDDEN, ROWS, COLUMNS, K = 12, 20, 60, 900, 10
WIDER = [SearchSettings(4, 8), SearchSettings(8, 8), SearchSettings(16, 8)]
PRODUCT_TOLERANCE = 1e-3  # of the scores' spread: float32 products of 64 features
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
    generator = AnchorGenerator.fit(network, a, b, seed=0, num_anchors=60, num_features=60)
    products = generator.row_queries(a) @ generator.column_features(b).T
    offset = score_block(a, b, network.w_H, network.bias) - products
    left = offset - offset.mean(axis=1, keepdims=True)
    assert left.std() < PRODUCT_TOLERANCE * products.std()


def test_network_features_find_what_cosine_misses(
    activations: FitRows, embeddings: tuple[np.ndarray, np.ndarray]
) -> None:
    network, a, b = activations
    rows, columns = embeddings
    scores = score_block(a, b, network.w_H, network.bias)
    recall = {}
    for kind, inputs in (
        (AnchorGenerator, (a, b)),
        (QuadraticGenerator, (a, b)),
        (CosineGenerator, (rows, columns)),
    ):
        generator = kind.fit(network, a[30:], b, seed=0)
        products = generator.row_queries(inputs[0]) @ generator.column_features(inputs[1]).T
        recall[kind] = recall_of(products, scores, 4 * K)
    assert recall[AnchorGenerator] > 0.99
    assert recall[AnchorGenerator] > recall[QuadraticGenerator] > 2 * recall[CosineGenerator]


@pytest.mark.parametrize("kind", [AnchorGenerator, QuadraticGenerator, CosineGenerator])
def test_a_generator_survives_as_plain_arrays(kind: type, activations: FitRows) -> None:
    network, a, b = activations
    fitted: CandidateGenerator = kind.fit(network, a, b, seed=1)
    state = fitted.to_state()
    again: CandidateGenerator = kind.from_state(state)
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert again.num_features == fitted.num_features
    width = DIM if fitted.reads == "embeddings" else HIDDEN
    sample = np.random.default_rng(0).standard_normal((9, width)).astype(np.float32)
    assert fitted.column_features(sample).shape == (9, fitted.num_features)
    np.testing.assert_array_equal(again.column_features(sample), fitted.column_features(sample))
    np.testing.assert_array_equal(again.row_queries(sample), fitted.row_queries(sample))


def test_the_state_of_another_generator_is_refused(activations: FitRows) -> None:
    state = QuadraticGenerator.fit(*activations, seed=0).to_state()
    with pytest.raises(ShapeError, match="generator 'anchor' holds"):
        AnchorGenerator.from_state(state)


def test_the_same_seed_gives_the_same_features(activations: FitRows) -> None:
    network, a, b = activations
    one, same, other = (
        AnchorGenerator.fit(network, a, b, seed=seed, num_anchors=16) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.column_features(b), same.column_features(b))
    assert not np.array_equal(one.anchor_RH, other.anchor_RH)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (2, 1)])
def test_anchors_fit_on_tiny_samples(activations: FitRows, rows: int, columns: int) -> None:
    network, a, b = activations
    generator = AnchorGenerator.fit(network, a[:rows], b[:columns], seed=0)
    assert np.isfinite(generator.column_features(b)).all()
    assert np.isfinite(generator.row_queries(a)).all()


def test_columns_that_all_score_alike_have_features_of_zero(activations: FitRows) -> None:
    network, a, b = activations
    generator = AnchorGenerator.fit(network, a, np.tile(b[:1], (50, 1)), seed=0)
    np.testing.assert_array_equal(generator.column_features(b), np.zeros((COLUMNS, 1)))


@pytest.mark.parametrize("kind", [AnchorGenerator, QuadraticGenerator])
def test_fitting_on_nothing_is_refused(kind: type, activations: FitRows) -> None:
    network, a, b = activations
    with pytest.raises(ShapeError, match="cannot fit on 0 rows and 900 columns"):
        kind.fit(network, a[:0], b, seed=0)


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
    assert tuning.best.settings == WIDER[1]
    assert tuning.best.scored_fraction == 0.5


def test_tuning_says_when_no_setting_finds_enough() -> None:
    exact = np.ones((3, 2), np.float32)
    tuning = tune(lambda _: found_lists(np.tile([1.0, 0.0], (3, 1))), exact, 9, WIDER[:2], 0.9)
    assert tuning.chosen is None
    assert tuning.best.recall == 0.5
    assert [point.settings.num_probes for point in tuning.points] == [4, 8]


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


def test_estimate_adds_up_what_each_step_costs() -> None:
    rates = Rates(
        exact_pairs=1e6,
        featured_columns=100,
        queried_rows=50,
        comparisons=1e3,
        probed_pairs=1e5,
        products=np.inf,
    )
    cost = estimate_cost(
        rates,
        num_rows=200,
        num_columns=1000,
        num_cells=10,
        scored_fraction=0.1,
        build_comparisons=5000,
        num_workers=2,
        probed_fraction=0.2,
    )
    # A row: 1/50 to query, 10/1e3 to compare cells, 100/1e5 to score.
    expected = CostEstimate(exact_seconds=0.1, build_seconds=15.0, search_seconds=100 * 0.031)
    assert cost.exact_seconds == pytest.approx(expected.exact_seconds)
    assert cost.build_seconds == pytest.approx(expected.build_seconds)
    assert cost.search_seconds == pytest.approx(expected.search_seconds)
    assert not cost.pruning_pays


def test_estimate_counts_products_with_the_columns_of_probed_cells() -> None:
    rates = Rates(1e6, np.inf, np.inf, np.inf, 1e4, products=1e5)
    cost = estimate_cost(
        rates,
        num_rows=100,
        num_columns=1000,
        num_cells=10,
        scored_fraction=0.01,
        build_comparisons=0,
        probed_fraction=0.2,
    )
    # A row: 200 products at 1e5, 10 scores at 1e4.
    assert cost.search_seconds == pytest.approx(100 * (0.002 + 0.001))


@pytest.mark.parametrize("kind", [AnchorGenerator, QuadraticGenerator, CosineGenerator])
def test_a_row_and_a_column_have_the_same_bits_in_any_call(
    kind: type, activations: FitRows
) -> None:
    network, a, b = activations
    fitted: CandidateGenerator = kind.fit(network, a, b, seed=1)
    width = DIM if fitted.reads == "embeddings" else HIDDEN
    sample = np.random.default_rng(0).standard_normal((77, width)).astype(np.float32)
    queries, features = fitted.row_queries(sample), fitted.column_features(sample)
    for n in (0, 40, 76):
        one = sample[n : n + 1]
        np.testing.assert_array_equal(fitted.row_queries(one)[0], queries[n])
        np.testing.assert_array_equal(fitted.column_features(one)[0], features[n])


@pytest.mark.parametrize("kind", [AnchorGenerator, QuadraticGenerator])
@pytest.mark.parametrize("columns", [1, 7, COLUMNS])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_listing_every_column_of_an_index_is_exact(
    kind: type, rows: int, columns: int, activations: FitRows
) -> None:
    network, a, b = activations
    a, b = a[:rows], b[:columns]
    generator: CandidateGenerator = kind.fit(network, a, b, seed=0)
    cells = pack_features(generator.column_features(b), lay_out_cells(np.arange(columns) % 3, 3))
    probes = np.tile(np.arange(3), (rows, 1))
    listed = list_columns(generator.row_queries(a), cells, probes, columns)
    found = rescore_rows(a, pack_columns(b, network.w_H, network.bias), listed, K)
    exact = top_k_rows(a, b, network.w_H, network.bias, K)
    np.testing.assert_array_equal(found.index_IK, exact.index_IK)
    np.testing.assert_array_equal(found.score_IK, exact.score_IK)


def test_anchors_refuse_what_is_not_finite(activations: FitRows) -> None:
    network, a, b = activations
    spoilt = b.copy()
    spoilt[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        AnchorGenerator.fit(network, a, spoilt, seed=0)
    with pytest.raises(ValueError, match="row 3 is not finite"):
        AnchorGenerator.fit(network, a, b, seed=0).row_queries(spoilt)
