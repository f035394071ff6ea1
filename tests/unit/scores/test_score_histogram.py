from __future__ import annotations

import functools

import numpy as np
import pytest

from nncift_ray.scores.exact import score_matrix, sum_columns, top_k_rows
from nncift_ray.scores.gpu import fold_in_torch, top_k_rows_on
from nncift_ray.scores.kernel import (
    COUNTED_ROWS,
    NUM_BINS,
    CountedRows,
    bin_edges,
    counting_step,
    spread_counts,
)

ROWS, COLUMNS, HIDDEN = 40, 150, 9
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, float]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(8)
    a, b, w = (
        rng.standard_normal(n, np.float32) for n in ((ROWS, HIDDEN), (COLUMNS, HIDDEN), HIDDEN)
    )
    return a, b, w, 0.1


def counts_by_hand(scores: np.ndarray) -> np.ndarray:
    """Look each score up among the edges of all bins of finite scores."""
    bins = np.arange(NUM_BINS)
    low, _ = bin_edges(bins)
    finite = np.isfinite(low)
    place = np.searchsorted(low[finite], scores.astype(np.float64).ravel(), side="right") - 1
    return np.bincount(bins[finite][place], minlength=NUM_BINS)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_every_score_is_counted_in_the_bin_whose_edges_hold_it(
    pairs: Pairs, device: str | None
) -> None:
    score = top_k_rows
    if device is not None:
        score = functools.partial(top_k_rows_on, device=device, fold=fold_in_torch)
    counted = CountedRows.of_range(0, ROWS, ROWS)
    score(*pairs, 5, counted=counted)
    scores = score_matrix(*pairs)
    assert scores.min() < 0 < scores.max()
    np.testing.assert_array_equal(counted.count_B, counts_by_hand(scores))


def test_sums_of_columns_count_the_same_scores(pairs: Pairs) -> None:
    counted, other = (CountedRows.of_range(0, ROWS, ROWS) for _ in range(2))
    top_k_rows(*pairs, 5, counted=counted)
    sum_columns(*pairs, np.zeros(ROWS, np.int64), 1, counted=other)
    np.testing.assert_array_equal(counted.count_B, other.count_B)


def test_counts_of_shards_and_tiles_add_up_to_those_of_the_whole(pairs: Pairs) -> None:
    a, b, w, bias = pairs
    whole = CountedRows.of_range(0, ROWS, ROWS)
    top_k_rows(a, b, w, bias, 5, counted=whole)
    total = np.zeros(NUM_BINS, np.int64)
    for rows in (slice(0, 13), slice(13, ROWS)):
        for columns in (slice(0, 70), slice(70, COLUMNS)):
            part = CountedRows.of_range(rows.start, rows.stop, ROWS)
            top_k_rows(a[rows], b[columns], w, bias, 5, counted=part)
            total += part.count_B
    np.testing.assert_array_equal(total, whole.count_B)


def test_of_a_large_block_the_same_rows_are_counted_wherever_shards_are_cut() -> None:
    num_rows = 10 * COUNTED_ROWS
    whole = CountedRows.of_range(0, num_rows, num_rows).is_counted_I
    parts = [CountedRows.of_range(s, s + 999, num_rows).is_counted_I for s in (0, 999)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[:1998])
    assert whole.sum() == COUNTED_ROWS
    assert counting_step(COUNTED_ROWS) == 1


def test_spread_counts_keep_their_sum_and_follow_the_scores() -> None:
    scores = np.random.default_rng(1).normal(0.4, 0.3, 20_000).astype(np.float32)
    counts = counts_by_hand(scores)
    bins = np.flatnonzero(counts)
    edges = np.linspace(-2, 3, 26)
    spread = spread_counts(bins, counts[bins], edges)
    assert spread.sum() == pytest.approx(len(scores))
    expected = np.histogram(scores, edges)[0]
    assert np.abs(spread - expected).max() < 0.01 * len(scores)
