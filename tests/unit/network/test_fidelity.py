from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import spearmanr

from nncift_ray.errors import ShapeError
from nncift_ray.network.fidelity import (
    FidelityRow,
    PairFeatures,
    PairMeasures,
    fidelity_table,
    mse,
    r2,
    scaled_mse,
    spearman,
)
from nncift_ray.runtime import schemas

EXACT = 1e-12  # float64 arithmetic on numbers of size 1


def make_block(
    noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make 8 x 6 additive labels: a 6 x 4 block to learn from, the rest in the quadrants."""
    rng = np.random.default_rng(seed)
    rows, columns = (grid.ravel() for grid in np.meshgrid(range(8), range(6), indexing="ij"))
    row_effect, column_effect = rng.standard_normal(8), rng.standard_normal(6)
    labels = row_effect[rows] + column_effect[columns] + noise * rng.standard_normal(48)
    names = np.array([["train", "Q3"], ["Q2", "Q4"]])
    splits = names[(rows >= 6).astype(int), (columns >= 4).astype(int)]
    return labels, splits, rows, columns


_DRAWN = np.random.default_rng(7)
FEATURES = PairFeatures(
    _DRAWN.standard_normal((8, 3)),
    np.repeat(np.arange(8), 6),
    _DRAWN.standard_normal((6, 3)),
    np.tile(np.arange(6), 8),
)


def table_of(
    labels: np.ndarray,
    predictions: np.ndarray,
    splits: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    seed: int = 0,
) -> dict[tuple[str, str], FidelityRow]:
    table = fidelity_table(labels, predictions, splits, rows, columns, FEATURES, seed)
    return {(row.split, row.model): row for row in table}


def test_metrics_of_a_worked_example() -> None:
    labels, predictions = np.array([0.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0])
    assert mse(labels, predictions) == pytest.approx(5 / 3)
    assert scaled_mse(labels, predictions, -1.0, 3.0) == pytest.approx(5 / 3 / 16)
    assert r2(labels, predictions) == pytest.approx(1 - 5 / (14 / 3))
    assert r2(labels, labels) == 1.0


def test_spearman_matches_scipy_with_ties() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 50).astype(float), rng.integers(0, 5, 50).astype(float)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=EXACT)
    assert spearman(one, np.exp(one)) == pytest.approx(1.0)


def test_what_does_not_vary_has_no_correlation() -> None:
    constant, varied = np.ones(4), np.arange(4.0)
    assert r2(constant, varied) is None
    assert spearman(constant, varied) is None
    assert spearman(varied, constant) is None
    assert r2(varied, constant) is not None


def test_row_column_means_explain_additive_labels_of_seen_pairs() -> None:
    labels, splits, rows, columns = make_block()
    table = table_of(labels, np.zeros(48), splits, rows, columns)
    assert table["train", "row_column_mean"].mse == pytest.approx(0, abs=EXACT)
    assert table["train", "row_column_mean"].r2 == pytest.approx(1)
    assert table["train", "mean"].r2 == pytest.approx(0, abs=EXACT)


def test_baselines_know_the_training_labels_and_no_others() -> None:
    """Published error 9: baselines that never see the labels, or see too many."""
    labels, splits, rows, columns = make_block(noise=0.3)
    table = table_of(labels, labels, splits, rows, columns)
    changed = np.where(splits == "train", labels, labels * 0.5)
    other = table_of(changed, changed, splits, rows, columns)
    train_mean = labels[splits == "train"].mean()
    held_out = labels[splits == "Q4"]
    assert table["Q4", "mean"].mse == pytest.approx(np.mean((held_out - train_mean) ** 2))
    assert table["Q4", "zero"].mse == pytest.approx(np.mean(held_out**2))
    for model in ("zero", "random", "mean", "row_column_mean", "additive_ridge"):
        assert table["train", model].mse == other["train", model].mse


def test_network_rows_are_the_predictions_and_nothing_else() -> None:
    """Published error 9: "teacher" rows that are really network rows."""
    labels, splits, rows, columns = make_block(noise=0.3)
    table = table_of(labels, labels + 0.5, splits, rows, columns)
    assert table["Q2", "network"].mse == pytest.approx(0.25)
    assert table["Q2", "network"].spearman == pytest.approx(1.0)


def test_all_splits_are_scaled_by_the_range_of_the_whole_block() -> None:
    """Published error 4: a scale of its own for every part."""
    labels, splits, rows, columns = make_block(noise=0.3)
    table = table_of(labels, np.zeros(48), splits, rows, columns)
    for row in table.values():
        if row.mse is not None:
            assert row.scaled_mse == pytest.approx(row.mse / np.ptp(labels) ** 2)


def test_random_baseline_follows_the_seed() -> None:
    labels, splits, rows, columns = make_block()
    one, same, other = (
        table_of(labels, labels, splits, rows, columns, seed)["Q4", "random"].mse
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_splits_without_pairs_are_left_out() -> None:
    labels, splits, rows, columns = make_block()
    table = fidelity_table(labels, labels, splits, rows, columns, FEATURES, 0)
    assert [row.split for row in table][::7] == ["train", "Q2", "Q3", "Q4"]
    assert sum(row.num_pairs for row in table) == 7 * 48


def test_labels_that_are_all_equal_have_no_scaled_error() -> None:
    _, splits, rows, columns = make_block()
    row = table_of(np.ones(48), np.zeros(48), splits, rows, columns)["Q2", "network"]
    assert row.mse == 1.0
    assert math.isnan(row.scaled_mse)
    assert row.r2 is None


def test_rows_are_those_of_the_table() -> None:
    labels, splits, rows, columns = make_block(noise=0.3)
    flat = asdict(table_of(labels, labels, splits, rows, columns)["train", "network"])
    assert (flat["split"], flat["r2"], flat["capture"], flat["num_rows"]) == ("train", 1, 1, 6)
    assert {"block", *flat} == set(schemas.FIDELITY.names)


def test_bad_tables_are_refused() -> None:
    labels, splits, rows, columns = make_block()
    with pytest.raises(ShapeError, match="differ in length"):
        fidelity_table(labels[:5], labels, splits, rows, columns, FEATURES, 0)
    with pytest.raises(ValueError, match="no training pair"):
        fidelity_table(labels, labels, np.full(48, "Q1"), rows, columns, FEATURES, 0)
    with pytest.raises(ValueError, match="unknown splits"):
        fidelity_table(labels, labels, np.full(48, "test"), rows, columns, FEATURES, 0)
    with pytest.raises(ValueError, match="prediction of pair 3 is not finite"):
        table_of(labels, np.where(np.arange(48) == 3, np.nan, 0), splits, rows, columns)
    with pytest.raises(ValueError, match=r"pair \(0, 0\) is named twice"):
        table_of(labels, labels, splits, rows, np.zeros(48, int))


def test_examples_on_their_own_have_no_pairs_to_measure() -> None:
    labels, splits, rows, _ = make_block(noise=0.3)
    alone = PairFeatures(FEATURES.helped_ED, FEATURES.helped_pos)
    table = fidelity_table(labels, labels, splits, rows, None, alone, 0)
    assert {row.model for row in table} == {"network", "zero", "random", "mean", "additive_ridge"}
    of_pairs = [asdict(row)[name] for row in table for name in PairMeasures.__dataclass_fields__]
    assert set(of_pairs) == {0, None}
    held_out = next(row for row in table if (row.split, row.model) == ("Q4", "mean"))
    expected = np.mean((labels[splits == "Q4"] - labels[splits == "train"].mean()) ** 2)
    assert held_out.mse == pytest.approx(expected)


def test_a_cosine_is_in_no_labels_unit_and_has_an_order_alone() -> None:
    labels, splits, rows, columns = make_block(noise=0.3)
    row = table_of(labels, labels, splits, rows, columns)["train", "cosine"]
    assert (row.mse, row.scaled_mse, row.r2) == (None, None, None)
    assert row.spearman is not None
    assert row.interaction_correlation is not None


def test_only_held_out_pairs_have_intervals() -> None:
    rows, columns = np.repeat(np.arange(16), 12), np.tile(np.arange(12), 16)
    labels = np.random.default_rng(0).standard_normal(192)
    splits = np.where(rows < 8, "train", "Q2")
    features = PairFeatures(np.eye(16), rows, np.eye(12, 16), columns)
    table = fidelity_table(labels, labels + 0.5, splits, rows, columns, features, 0)
    found = {row.split: row for row in table if row.model == "network"}
    assert found["train"].capture_low is None
    assert found["Q2"].capture_low == pytest.approx(1)
