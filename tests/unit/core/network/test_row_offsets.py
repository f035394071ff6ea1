from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.network.training import fit_row_offsets


def draw(num_rows: int, dim: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((num_rows, dim)).astype(np.float32)
    return e / np.linalg.norm(e, axis=1, keepdims=True), np.repeat(np.arange(num_rows // 2), 6)


def test_means_are_those_of_rows_with_labels_and_the_grand_mean_elsewhere() -> None:
    e, rows = draw(8)
    utility = rows + np.tile([-1.0, 1, -1, 1, 0, 0], 4)
    offsets = fit_row_offsets(e, rows, utility)
    assert offsets.mean_E.tolist() == pytest.approx([0, 1, 2, 3, 1.5, 1.5, 1.5, 1.5])


def test_offsets_that_embeddings_tell_are_predicted_for_unseen_rows() -> None:
    e, rows = draw(400)
    truth = e @ np.arange(20) + 3
    offsets = fit_row_offsets(e, rows, truth[rows])
    error = offsets.predict(e[200:]) - truth[200:]
    assert np.std(error) < 0.02 * np.std(truth)


def test_offsets_that_embeddings_do_not_tell_become_the_mean() -> None:
    e, rows = draw(120)
    noise = 3 + np.random.default_rng(1).standard_normal(120)
    predicted = fit_row_offsets(e, rows, noise[rows]).predict(e[60:])
    assert np.std(predicted) < 0.5
    assert predicted.mean() == pytest.approx(noise[:60].mean(), abs=0.1)


@pytest.mark.parametrize("num_rows", [2, 4])
def test_one_row_or_equal_rows_predict_their_mean(num_rows: int) -> None:
    e, rows = draw(num_rows)
    offsets = fit_row_offsets(np.ones_like(e), rows, np.full(len(rows), 0.3))
    assert offsets.predict(e).tolist() == pytest.approx([0.3] * num_rows)
