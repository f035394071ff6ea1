from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.network.fidelity import PairFeatures, additive_ridge, cosines, row_column_means

EXACT = 1e-8


def make_features(num_rows: int, num_columns: int, dim: int, seed: int = 0) -> PairFeatures:
    rng = np.random.default_rng(seed)
    rows, columns = (axis.ravel() for axis in np.indices((num_rows, num_columns)))
    return PairFeatures(
        rng.standard_normal((num_rows, dim)), rows, rng.standard_normal((num_columns, dim)), columns
    )


def plain_ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
    """Ridge on the rows of x as they stand, penalty in units of the mean variance."""
    mean, centred = x.mean(axis=0), x - x.mean(axis=0)
    gram = centred.T @ centred
    gram += penalty * np.trace(gram) / len(gram) * np.eye(len(gram))
    return y.mean() + (asked - mean) @ np.linalg.solve(gram, centred.T @ (y - y.mean()))


def test_row_and_column_means_of_a_whole_block_are_the_textbooks() -> None:
    labels, rows, columns = np.array([1.0, 2.0, 3.0, 6.0]), [0, 0, 1, 1], [0, 1, 0, 1]
    found = row_column_means(
        np.append(labels, np.zeros(4)),
        np.array([*rows, 0, 9, 0, 9]),
        np.array([*columns, 1, 1, 9, 9]),
        np.arange(8) < 4,
    )
    # An unseen row or column counts as the average; of two unseen ones a constant is left.
    assert found[4:].tolist() == pytest.approx([1.5 + 4.0 - 3.0, 4.0, 1.5, 3.0])


def test_row_and_column_effects_of_an_incomplete_block_are_least_squares() -> None:
    """The difference of means would give the easy row's helper the row's own credit."""
    rng = np.random.default_rng(0)
    rows, columns = (axis.ravel() for axis in np.indices((8, 6)))
    labels = rng.standard_normal(8)[rows] * 5 + rng.standard_normal(6)[columns]
    fitted = rng.random(48) < 0.6
    found = row_column_means(labels, rows, columns, fitted)
    assert found == pytest.approx(labels, abs=EXACT)


@pytest.mark.parametrize("dim", [3, 40])  # fewer and more than examples: primal and dual
def test_ridge_is_that_on_features_side_by_side(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make_features(9, 7, dim)
    labels = np.random.default_rng(1).standard_normal(63)
    fitted = np.random.default_rng(2).random(63) < 0.7
    # Where the dual has fewer coordinates the penalty's unit is the mean over those.
    penalty = 0.1 * (2 * dim) / (2 * dim if dim < 7 else 9 + 7)
    monkeypatch.setattr("nncift_ray.network.fidelity.PENALTIES", (0.1,))
    x = np.concatenate([features.helped_ED[features.helped_pos],
                        features.helper_ED[features.helper_pos]], axis=1)  # fmt: skip
    expected = plain_ridge(x[fitted], labels[fitted], x, penalty)
    assert additive_ridge(labels, features, fitted, 0) == pytest.approx(expected, abs=EXACT)


def test_ridge_finds_additive_labels_of_unseen_examples() -> None:
    features = make_features(30, 20, 4)
    row = features.helped_ED @ [1.0, -2, 0, 3]
    labels = row[features.helped_pos] + features.helper_ED[features.helper_pos] @ [0, 1.0, 1, 0]
    fitted = (features.helped_pos < 20) & (features.helper_pos < 12)
    found = additive_ridge(labels, features, fitted, 0)
    assert np.corrcoef(found[~fitted], labels[~fitted])[0, 1] > 0.999


def test_ridge_takes_a_strong_penalty_where_features_say_nothing() -> None:
    features = make_features(30, 20, 25)
    labels = np.random.default_rng(1).standard_normal(600)
    fitted = (features.helped_pos < 20) & (features.helper_pos < 12)
    found = additive_ridge(labels, features, fitted, 0)
    assert found.std() < 0.1 * labels.std()


def test_ridge_sees_training_labels_only_and_ranks_helpers_alike_for_every_row() -> None:
    features = make_features(9, 7, 3)
    labels = np.random.default_rng(1).standard_normal(63)
    fitted = features.helped_pos < 6
    found = additive_ridge(labels, features, fitted, 0)
    changed = np.where(fitted, labels, 99.0)
    assert additive_ridge(changed, features, fitted, 0).tolist() == found.tolist()
    table = found.reshape(9, 7)
    assert table - table[:1] == pytest.approx(np.repeat(table[:, :1] - table[0, 0], 7, axis=1))


def test_ridge_of_equal_features_and_of_few_examples_is_defined() -> None:
    same = PairFeatures(np.ones((2, 3)), np.array([0, 1]), np.ones((1, 3)), np.array([0, 0]))
    found = additive_ridge(np.array([1.0, 3.0]), same, np.array([True, True]), 0)
    assert found.tolist() == [2.0, 2.0]


def test_ridge_of_single_examples_reads_one_side() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 3))
    labels = vectors @ [1.0, 2, 3] + 5
    alone = PairFeatures(vectors, np.arange(40))
    found = additive_ridge(labels, alone, np.arange(40) < 30, 0)
    assert found == pytest.approx(labels, abs=0.01)


def test_cosine_of_a_worked_example() -> None:
    features = PairFeatures(
        np.array([[3.0, 0], [0, 0]]), np.array([0, 0, 1]),
        np.array([[5.0, 0], [1, 1]]), np.array([0, 1, 1]),
    )  # fmt: skip
    assert cosines(features).tolist() == pytest.approx([1, np.sqrt(0.5), 0])


def test_cosine_is_of_embeddings_and_of_no_feature_behind_them() -> None:
    features = PairFeatures(
        np.array([[3.0, 0, 9]]), np.zeros(1, int), np.array([[1.0, 1, -9]]), np.zeros(1, int), 2
    )
    assert cosines(features).tolist() == pytest.approx([np.sqrt(0.5)])


def test_features_without_their_examples_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected a row for each"):
        PairFeatures(np.ones((2, 3)), np.array([0, 2]))
    with pytest.raises(ShapeError, match="both or neither"):
        PairFeatures(np.ones((2, 3)), np.array([0, 1]), np.ones((2, 3)))
