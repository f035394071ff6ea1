from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from nncift_ray.errors import ShapeError
from nncift_ray.scores.exact import NO_COLUMN, TopK, top_k_rows, top_k_tiles
from nncift_ray.scores.gpu import fold_in_torch, top_k_rows_on, top_k_tiles_on
from nncift_ray.scores.scorers import pair_backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SUM_TOLERANCE = 1e-6  # a tile's sums may be made in float32
ROWS, COLUMNS, HIDDEN, K = 37, 301, 23, 9  # none a multiple of a tile


def make_scorer() -> Callable[..., TopK]:
    """Score by torch, or by the Triton kernel where Triton interprets its kernels."""
    if INTERPRETED:
        from nncift_ray.scores.triton_kernel import fold_in_triton

        return functools.partial(top_k_rows_on, device="cpu", fold=fold_in_triton)
    return functools.partial(top_k_rows_on, device="cpu", fold=fold_in_torch)


score_on_device = make_scorer()


@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_the_triton_kernel_passes_these_tests_in_tritons_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (it comes with a GPU build of torch)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    # Triton reads the variable when it is imported, which other tests may have done.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def make_pairs(
    rows: int = ROWS, columns: int = COLUMNS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(0)
    a, b, w = (
        rng.standard_normal(n, np.float32) for n in ((rows, HIDDEN), (columns, HIDDEN), HIDDEN)
    )
    return a, b, w, 0.25


def assert_same(one: TopK, other: TopK) -> None:
    """Lists, extremes and column maxima to the last bit, sums nearly."""
    for name in ("index_IK", "score_IK", "column_max_J"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    for name in ("num_pairs_I", "min_I", "max_I"):
        expected, got = (getattr(top.statistics, name) for top in (other, one))
        assert got.tobytes() == expected.tobytes(), name
    for name in ("sum_I", "sum_of_squares_I"):
        expected, got = (getattr(top.statistics, name) for top in (other, one))
        size = other.statistics.sum_of_squares_I.max(initial=1.0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=SUM_TOLERANCE * size, err_msg=name)


@pytest.mark.parametrize("k", [1, K, 64])
def test_lists_have_the_bits_of_the_cpu_kernel(k: int) -> None:
    pairs = make_pairs()
    assert_same(score_on_device(*pairs, k), top_k_rows(*pairs, k))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("k", [1, 64])
def test_a_gpu_gives_the_bits_of_the_cpu_kernel(k: int) -> None:
    pairs = make_pairs(rows=300, columns=5000)
    a, b, w, bias = pairs
    found = pair_backend("cuda")(a, [(0, b)], w, bias, k)
    assert found is not None
    assert_same(found, top_k_rows(*pairs, k))


@pytest.mark.parametrize("sign", [1, -1])
def test_output_weights_of_one_sign_are_scored_alike(sign: int) -> None:
    a, b, w, bias = make_pairs(rows=3, columns=50)
    w = sign * np.abs(w)
    assert_same(score_on_device(a, b, w, bias, K), top_k_rows(a, b, w, bias, K))


@pytest.mark.parametrize("turns", ["cpu then device", "device then cpu", "device then device"])
def test_a_state_goes_from_one_to_the_other(turns: str) -> None:
    a, b, w, bias = make_pairs()
    first, last = (_scorer(turn) for turn in turns.split(" then "))
    state = first(a, b[:120], w, bias, K).state
    assert_same(
        _with_all_maxima(
            last(a, b[120:], w, bias, K, column_offset=120, state=state), a, b, w, bias
        ),
        top_k_rows(a, b, w, bias, K),
    )


def test_equal_scores_go_to_the_smaller_column_even_when_it_arrives_last() -> None:
    a, b, w, bias = make_pairs(columns=6)
    b[:] = b[0]
    late = score_on_device(a, b[3:], w, bias, 2, column_offset=3)
    both = score_on_device(a, b[:3], w, bias, 2, state=late.state)
    assert (late.index_IK == [3, 4]).all()
    assert (both.index_IK == [0, 1]).all()


def test_lists_longer_than_the_row_are_padded() -> None:
    pairs = make_pairs(rows=2, columns=3)
    top = score_on_device(*pairs, 5)
    assert_same(top, top_k_rows(*pairs, 5))
    assert (top.index_IK[:, 3:] == NO_COLUMN).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (4, 0), (1, 1)])
def test_small_blocks_are_those_of_the_cpu_kernel(rows: int, columns: int) -> None:
    pairs = make_pairs(rows, columns)
    assert_same(score_on_device(*pairs, 2), top_k_rows(*pairs, 2))


@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_is_not_finite_is_named(side: int) -> None:
    pairs = make_pairs()
    pairs[side][6, 2] = np.nan
    with pytest.raises(ValueError, match=r"row 6 is not finite \(1 of"):
        score_on_device(*pairs, 3)


def test_a_state_of_other_rows_is_refused() -> None:
    a, b, w, bias = make_pairs()
    state = top_k_rows(a, b, w, bias, 3).state
    with pytest.raises(ShapeError, match="state holds"):
        score_on_device(a[:5], b, w, bias, 3, state=state)


def test_the_cpu_is_scored_by_its_own_kernel() -> None:
    assert pair_backend("cpu").func is top_k_tiles  # type: ignore[attr-defined]
    assert pair_backend("cuda").func is top_k_tiles_on  # type: ignore[attr-defined]


class KeptTiles(list[tuple[int, np.ndarray]]):
    """Tiles that a device may keep; ``reads`` are the times that they were asked for."""

    reads = 0

    def __init__(self, b: np.ndarray, width: int) -> None:
        super().__init__((at, b[at : at + width]) for at in range(0, len(b), width))
        self.on_device: list[object] = []

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        self.reads += 1
        return super().__iter__()


def test_tiles_are_prepared_once_and_rows_come_back_once() -> None:
    a, b, w, bias = make_pairs()
    tiles = KeptTiles(b, 64)
    over_tiles = functools.partial(
        top_k_tiles_on, device="cpu", fold=score_on_device.keywords["fold"]
    )
    for rows in (slice(0, 20), slice(20, ROWS)):
        found = over_tiles(a[rows], tiles, w, bias, K)
        expected = top_k_tiles(a[rows], KeptTiles(b, 64), w, bias, K)
        assert found is not None
        assert expected is not None
        assert_same(found, expected)
    assert tiles.reads == 1
    assert len(tiles.on_device) == -(-COLUMNS // 64)
    assert over_tiles(a, [], w, bias, K) is None


def test_the_pair_networks_rows_keep_their_own_effect() -> None:
    a, b, _, bias = make_pairs()
    none = np.zeros(0, np.float32)
    found = score_on_device(a, b, none, bias, K)
    expected = top_k_rows(a, b, none, bias, K)
    np.testing.assert_allclose(found.score_IK, expected.score_IK, rtol=1e-5, atol=1e-5)
    shifted = a.copy()
    shifted[:, -1] += 1
    moved = score_on_device(shifted, b, none, bias, K)
    np.testing.assert_allclose(moved.score_IK, found.score_IK + 1, rtol=1e-5, atol=1e-5)


def _scorer(turn: str) -> Callable[..., TopK]:
    return top_k_rows if turn == "cpu" else score_on_device


def _with_all_maxima(top: TopK, a: np.ndarray, b: np.ndarray, w: np.ndarray, bias: float) -> TopK:
    """Put the maxima of all columns in place of those of the last call."""
    maxima = top_k_rows(a, b, w, bias, 1).column_max_J
    return TopK(top.index_IK, top.score_IK, top.statistics, maxima, top.state)
