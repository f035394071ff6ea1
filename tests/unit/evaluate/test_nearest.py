from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift_ray.evaluation.ask import DIGITS, find_nearest


def _unit(vector_JD: np.ndarray) -> np.ndarray:
    return (vector_JD / np.linalg.norm(vector_JD, axis=1, keepdims=True)).astype(np.float32)


def nearest(
    vector_JD: np.ndarray, names: list[str], query_ID: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    rank_J = np.argsort(np.argsort(np.array(names)))
    return find_nearest(query_ID, vector_JD.astype(np.float64), rank_J, wanted)


def _sorted_all(vector_JD: np.ndarray, names: list[str], query_D: np.ndarray) -> list[int]:
    """Sort all vectors the plain way."""
    cosine_J = np.round(vector_JD.astype(np.float64) @ query_D.astype(np.float64), DIGITS)
    return sorted(range(len(names)), key=lambda j: (-cosine_J[j], names[j]))


def test_nearest_come_first() -> None:
    vectors = _unit(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    found = nearest(vectors, ["a", "b", "c"], _unit(np.array([[2.0, 1.0]])), 2)
    assert found[0].tolist() == [[2, 0]]
    # (2, 1) . (1, 1) / sqrt(10) and (2, 1) . (1, 0) / sqrt(5).
    np.testing.assert_allclose(found[1], [[0.948683, 0.894427]], rtol=0, atol=1e-6)


def test_equals_come_in_the_order_of_their_names() -> None:
    vectors = _unit(np.repeat(np.array([[1.0, 2.0, 3.0]]), 300, axis=0))
    names = [f"{(7 * n) % 300:03d}" for n in range(300)]
    found = nearest(vectors, names, vectors[:2], 4)
    assert [[names[j] for j in row] for row in found[0]] == [["000", "001", "002", "003"]] * 2


def test_a_smaller_set_gives_what_there_is() -> None:
    vectors = _unit(np.eye(3))
    found = nearest(vectors, ["a", "b", "c"], vectors[:1], 5)
    assert found[0].tolist() == [[0, 1, 2]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_vectors=st.integers(1, 120),
    num_kinds=st.integers(1, 120),  # few kinds: many equal vectors
    num_wanted=st.integers(1, 9),
)
def test_found_is_what_sorting_all_finds(
    seed: int, num_vectors: int, num_kinds: int, num_wanted: int
) -> None:
    random = np.random.default_rng(seed)
    kinds = _unit(random.standard_normal((num_kinds, 4)))
    vectors = kinds[random.integers(num_kinds, size=num_vectors)]
    names = [f"{n:04d}" for n in random.permutation(num_vectors)]
    queries = _unit(random.standard_normal((70, 4)))
    found = nearest(vectors, names, queries, num_wanted)
    for query, places in zip(queries, found[0].tolist(), strict=True):
        assert places == _sorted_all(vectors, names, query)[:num_wanted]
