"""The pair network: what it can learn, what it falls back to, and that it is one inner product."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork, Inputs
from nncift_ray.network.fidelity import interaction_correlation
from nncift_ray.network.pair import centre_pairs, decompose, fit_pair, ridge_leaving_one_out
from nncift_ray.profiles.blocks import SCALARS as SCALAR_NAMES
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.runtime.output import vectors_to_arrow

NUM_EXAMPLES, DIM, BLOCK, SCALARS = 160, 24, 16, 2
ROUNDING = 1e-4


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def examples(seed: int) -> np.ndarray:
    """Return raw inputs: an embedding, one block with a large common part, two scalars."""
    random = np.random.default_rng(seed)
    embedding = unit(random.normal(size=(NUM_EXAMPLES, DIM)))
    block = unit(random.normal(size=(NUM_EXAMPLES, BLOCK))) + 3.0
    return np.concatenate(
        [embedding, block, random.normal(size=(NUM_EXAMPLES, SCALARS)) * 5], axis=1
    ).astype(np.float32)


def fit(
    raw: np.ndarray, utility_IJ: np.ndarray, num_rows: int, num_columns: int, rank: int = 48
) -> tuple[FactoredNetwork, np.ndarray]:
    """Fit to the first rows x columns of a matrix and return the scores of all pairs."""
    inputs = Inputs.fit(raw, (DIM, BLOCK))
    x = inputs.prepare(raw)
    row_P, column_P = np.divmod(np.arange(num_rows * num_columns), num_columns)
    row_P, column_P = row_P[row_P != column_P], column_P[row_P != column_P]
    network, _ = fit_pair(inputs, x, x, row_P, column_P, utility_IJ[row_P, column_P], x, rank)
    a, b = network.project_rows(raw), network.project_columns(raw)
    rows, columns = np.divmod(np.arange(len(a) * len(b)), len(b))
    return network, network.score_pairs(a[rows], b[columns]).reshape(len(a), len(b))


def test_a_cosine_of_the_block_is_learnt_beyond_its_rows_and_columns() -> None:
    raw = examples(0)
    block = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)[:, DIM : DIM + BLOCK]
    utility = block @ block.T + np.arange(NUM_EXAMPLES)[:, None] / 50
    _, score = fit(raw, utility, 40, 40)
    assert interaction_correlation(utility[80:, 40:80], score[80:, 40:80]) > 0.95


def test_help_that_only_near_examples_give_is_learnt() -> None:
    raw = examples(1)
    near = np.maximum(raw[:, :DIM] @ raw[:, :DIM].T - 0.2, 0) ** 2
    _, score = fit(raw, near, 60, 60)
    assert interaction_correlation(near[80:, 60:80], score[80:, 60:80]) > 0.9


def test_effects_of_rows_and_columns_are_learnt_from_scalars() -> None:
    raw = examples(2)
    scalar = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)[:, -SCALARS:]
    utility = scalar[:, :1] - 2 * scalar[:, 1]
    _, score = fit(raw, utility, 50, 50)
    assert np.corrcoef(utility[80:, 50:80].ravel(), score[80:, 50:80].ravel())[0, 1] > 0.99


def test_a_handful_of_labels_leaves_the_untrained_cosine() -> None:
    raw = examples(3)
    x = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)
    cosine = x[:, :DIM] @ x[:, :DIM].T + x[:, DIM : DIM + BLOCK] @ x[:, DIM : DIM + BLOCK].T
    noise = np.random.default_rng(3).normal(size=cosine.shape)
    network, _ = fit(raw, cosine + 0.5 * noise, 6, 6)
    a, b = network.project_rows(raw), network.project_columns(raw)
    score = np.maximum(a[:, :-1] @ b[:, :-1].T, 0) ** 2
    assert interaction_correlation(cosine[40:], score[40:]) > 0.9


def test_a_handful_of_labels_without_noise_is_followed() -> None:
    raw = examples(3)
    block = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)[:, DIM : DIM + BLOCK]
    _, score = fit(raw, block @ block.T, 10, 10)
    cosine = block @ block.T
    assert interaction_correlation(cosine[40:80, 80:], score[40:80, 80:]) > 0.97


def test_help_that_falls_with_likeness_leaves_no_pair_part() -> None:
    raw = examples(11)
    x = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)
    network, _ = fit(raw, -x[:, : DIM + BLOCK] @ x[:, : DIM + BLOCK].T, 40, 40)
    a, b = network.project_rows(raw), network.project_columns(raw)
    assert not np.maximum(a[:, :-1] @ b[:, :-1].T, 0).any()


@pytest.mark.parametrize("used", [0, 1])
def test_a_block_that_says_nothing_loses_its_weight(used: int) -> None:
    raw = examples(12)
    x = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)
    block = [x[:, :DIM], x[:, DIM : DIM + BLOCK]][used]
    row_P, column_P = np.divmod(np.arange(2500), 50)
    labels = np.maximum(block @ block.T - 0.1, 0) ** 2
    inputs = Inputs.fit(raw, (DIM, BLOCK))
    _, weights = fit_pair(inputs, x, x, row_P, column_P, labels[row_P, column_P], x, 48)
    assert weights[1 - used] < 0.1 * weights[used]


def test_labels_that_contradict_every_cosine_leave_no_pair_part_below_zero_knowledge() -> None:
    raw = examples(4)
    noise = np.random.default_rng(4).normal(size=(NUM_EXAMPLES, NUM_EXAMPLES))
    _, score = fit(raw, noise, 40, 40)
    assert np.isfinite(score).all()
    assert abs(interaction_correlation(noise[80:, 40:80], score[80:, 40:80])) < 0.1


def test_an_example_without_a_profile_resembles_nothing_by_it() -> None:
    raw = examples(5)
    raw[7, DIM:] = np.nan
    x = Inputs.fit(raw, (DIM, BLOCK)).prepare(raw)
    assert np.isfinite(x).all()
    assert not x[7, DIM:].any()
    np.testing.assert_array_equal(x[7, :DIM], raw[7, :DIM])


def test_the_inputs_of_a_row_do_not_depend_on_the_others_in_the_call() -> None:
    raw = examples(6)
    inputs = Inputs.fit(raw, (DIM, BLOCK))
    np.testing.assert_array_equal(inputs.prepare(raw)[5:9], inputs.prepare(raw[5:9]))


def test_a_checkpoint_brings_the_network_back_to_the_bit() -> None:
    raw = examples(7)
    network, _ = fit(raw, raw[:, :DIM] @ raw[:, :DIM].T, 40, 40)
    back = FactoredNetwork.from_state(network.to_state())
    np.testing.assert_array_equal(back.project_columns(raw), network.project_columns(raw))
    assert back.num_hidden == 49  # numbers of the inner product, and the example's own effect


def test_inputs_of_another_width_are_refused() -> None:
    raw = examples(8)
    network, _ = fit(raw, raw[:, :DIM] @ raw[:, :DIM].T, 30, 30)
    with pytest.raises(ShapeError, match=r"the network reads \[N, 42\]"):
        network.project_rows(raw[:, :-1])


def test_centring_takes_rows_and_columns_out_of_an_incomplete_block() -> None:
    random = np.random.default_rng(9)
    row_P, column_P = random.integers(0, 12, 90), random.integers(0, 9, 90)
    effects_P = random.normal(size=12)[row_P] + random.normal(size=9)[column_P]
    assert np.abs(centre_pairs(effects_P[:, None], row_P, column_P)).max() < ROUNDING


def test_a_ridge_of_noise_is_the_mean() -> None:
    random = np.random.default_rng(10)
    weights, constant = ridge_leaving_one_out(
        random.normal(size=(30, 50)).astype(np.float32), random.normal(size=30) + 4.0
    )
    assert abs(constant - 4.0) < 0.6
    assert np.abs(weights).max() < 0.2


def test_a_ridge_reads_only_the_inputs_that_tell_unseen_examples() -> None:
    random = np.random.default_rng(13)
    x = random.normal(size=(24, 60)).astype(np.float32)
    told = x[:, :3].sum(axis=1).astype(np.float64)
    first, _ = ridge_leaving_one_out(x, told, [3, 60])
    assert not first[3:].any()
    np.testing.assert_allclose(first[:3], 1, atol=0.1)
    whole, _ = ridge_leaving_one_out(x, x[:, 3:] @ np.ones(57), [3, 60])
    assert whole[3:].any()


class Step:
    """A finished step of two tables."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def take_rows(self, name: str, rows: np.ndarray, columns: list[str]) -> pa.Table:
        return self.table.select(columns).take(pa.array(rows))


def test_inputs_join_embedding_profile_and_the_logarithm_of_counts() -> None:
    embeddings = Step(
        pa.table({"embedding": vectors_to_arrow(np.eye(3, 2, dtype="f4"), "float32")})
    )
    features = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    scalars = {name: pa.array([1.0, None, 3.0], pa.float32()) for name in SCALAR_NAMES}
    inputs = ExampleInputs(embeddings, Step(pa.table({"feature": features, **scalars})))  # type: ignore[arg-type]
    found = inputs.take("candidates", np.array([2, 1]))
    counts = [n for n, name in enumerate(SCALAR_NAMES) if name.startswith("num_")]
    expected = np.full(len(SCALAR_NAMES), 3.0)
    expected[counts] = np.log1p(3.0)
    np.testing.assert_allclose(found[0], [0, 0, 3, 4, *expected], rtol=1e-6)
    assert np.isnan(found[1, 2:]).all()
    assert not np.isnan(found[1, :2]).any()


def test_a_matrix_on_which_the_usual_svd_fails_is_decomposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: np.ndarray, **options: bool) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    matrix_XX = np.random.default_rng(0).standard_normal((6, 6))
    expected = np.linalg.svd(matrix_XX)[1]
    monkeypatch.setattr(np.linalg, "svd", fail)
    left_XX, size_X, right_XX = decompose(matrix_XX)
    np.testing.assert_allclose(size_X, expected)
    np.testing.assert_allclose(left_XX * size_X @ right_XX, matrix_XX, atol=1e-12)
