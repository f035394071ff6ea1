from __future__ import annotations

import functools

import numpy as np
import pytest

from nncift_ray.scores.exact import (
    TopK,
    pack_columns,
    rescore_rows,
    run_parts,
    sum_columns,
    top_k_rows,
)

ROWS, COLUMNS, HIDDEN, K = 45, 210, 11, 6
THREADS = (1, 2, 3, 7, 64)
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, float]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(3)
    a, b, w = (
        rng.standard_normal(n, np.float32) for n in ((ROWS, HIDDEN), (COLUMNS, HIDDEN), HIDDEN)
    )
    return a, b, w, 0.5


def stream(pairs: Pairs, num_threads: int) -> TopK:
    """Score the columns in two calls."""
    a, b, w, bias = pairs
    score = functools.partial(top_k_rows, num_threads=num_threads)
    first = score(a, b[:100], w, bias, K)
    return score(a, b[100:], w, bias, K, column_offset=100, state=first.state)


@pytest.mark.parametrize("num_threads", THREADS)
def test_threads_change_no_bit_of_lists_statistics_and_maxima(
    pairs: Pairs, num_threads: int
) -> None:
    one, other = stream(pairs, 1), stream(pairs, num_threads)
    for name in ("index_IK", "score_IK", "column_max_J"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    for name in ("num_pairs_I", "min_I", "max_I", "sum_I", "sum_of_squares_I"):
        found, expected = getattr(other.statistics, name), getattr(one.statistics, name)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("num_threads", THREADS)
def test_threads_change_no_sum_of_a_column(pairs: Pairs, num_threads: int) -> None:
    a, b, w, bias = pairs
    group = np.arange(ROWS) % 3
    one = sum_columns(a, b, w, bias, group, 3)
    other = sum_columns(a, b, w, bias, group, 3, num_threads=num_threads)
    np.testing.assert_array_equal(one.sum_GJ, other.sum_GJ)
    assert one.statistics.sum_I.tobytes() == other.statistics.sum_I.tobytes()


@pytest.mark.parametrize("num_threads", THREADS)
def test_threads_change_no_pruned_list(pairs: Pairs, num_threads: int) -> None:
    a, b, w, bias = pairs
    rng = np.random.default_rng(4)
    listed = rng.integers(0, COLUMNS, (ROWS, 30))
    columns = pack_columns(b, w, bias)
    one = rescore_rows(a, columns, listed, K)
    other = rescore_rows(a, columns, listed, K, num_threads=num_threads)
    assert one.index_IK.tobytes() == other.index_IK.tobytes()
    assert one.score_IK.tobytes() == other.score_IK.tobytes()
    np.testing.assert_array_equal(one.num_pairs_I, other.num_pairs_I)


def test_no_rows_and_one_row_need_no_second_thread(pairs: Pairs) -> None:
    a, b, w, bias = pairs
    assert top_k_rows(a[:0], b, w, bias, K, num_threads=4).index_IK.shape == (0, K)
    assert run_parts(1, 4, lambda rows: rows) == [slice(0, 1)]


@pytest.mark.parametrize(("num_rows", "num_threads"), [(17, 2), (64, 8), (65, 8), (100, 3)])
def test_parts_cover_each_row_once_in_order(num_rows: int, num_threads: int) -> None:
    parts = run_parts(num_rows, num_threads, lambda rows: list(range(num_rows))[rows])
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert len(parts) <= num_threads


def test_an_error_on_a_thread_is_raised_and_names_the_row(pairs: Pairs) -> None:
    a, b, w, bias = pairs
    bad = b.copy()
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"column \(helper\) activations: row 3 is not finite"):
        top_k_rows(a, bad, w, bias, K, num_threads=4)
