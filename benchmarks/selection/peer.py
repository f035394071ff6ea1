"""Run another library's facility location on a matrix in a file: started in the peers' own venv.

    python peer.py apricot|submodlib MATRIX.npz BUDGET RESULT.npz

MATRIX.npz holds `data`, `indices`, `indptr` and `shape` of a sparse matrix (apricot), or `dense`
(submodlib): row = helped, column = helper. RESULT.npz gets the picks and the seconds of the search
alone, of the clock and of the processor; reading, turning and copying the matrix is not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def main() -> None:
    """Run and write."""
    name, matrix_path, budget, result_path = sys.argv[1:]
    with np.load(matrix_path) as matrix:
        arrays = {key: matrix[key] for key in matrix}
    search = {"apricot": _apricot, "submodlib": _submodlib}[name](arrays, int(budget))
    wall, cpu = time.perf_counter(), time.process_time()
    picks = search()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    np.savez(result_path, picks=np.asarray(picks, np.int64), wall=seconds[0], cpu=seconds[1])


def _apricot(arrays: dict[str, np.ndarray], budget: int) -> Callable[[], Any]:
    """Select by similarities as they are given; apricot wants the examples to pick as rows."""
    from apricot import FacilityLocationSelection
    from scipy.sparse import csr_matrix

    parts = (arrays["data"].astype(np.float64), arrays["indices"], arrays["indptr"])
    given = csr_matrix(parts, shape=tuple(arrays["shape"])).T.tocsr()

    def fit(count: int) -> Any:
        model = FacilityLocationSelection(
            count, metric="precomputed", optimizer="lazy", verbose=False
        )
        return model.fit(given).ranking

    fit(2)  # compiles
    return lambda: fit(budget)


def _submodlib(arrays: dict[str, np.ndarray], budget: int) -> Callable[[], Any]:
    """Select columns of a dense kernel [represented rows, ground set]."""
    from submodlib import FacilityLocationFunction

    kernel = arrays["dense"]
    function = FacilityLocationFunction(
        n=kernel.shape[1], n_rep=kernel.shape[0], separate_rep=True, mode="dense", sijs=kernel
    )

    def search() -> list[int]:
        picks = function.maximize(
            budget=budget,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            verbose=False,
            show_progress=False,
        )
        return [pick for pick, _ in picks]

    return search


if __name__ == "__main__":
    main()
