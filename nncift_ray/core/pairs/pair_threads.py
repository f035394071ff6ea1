"""The CPU kernels on several threads of one process, which share one copy of the columns.

Rows are cut into runs, one a thread; a row's scores, lists and statistics do not depend on which
other rows are in its call, so no bit depends on the number of threads. The kernels let go of the
interpreter's lock.

Suffixes: I rows, J columns, H hidden units, P probed cells, G groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.pairs.column_sums import ColumnSums, sum_columns
from nncift_ray.core.pairs.pair_scores import (
    ScoreStatistics,
    TopK,
    TopKState,
    read_keys,
    start_state,
    top_k_rows,
)
from nncift_ray.core.pairs.rescoring import PackedColumns, RescoredTopK, rescore_rows
from nncift_ray.core.pairs.score_histogram import CountedRows

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Result = TypeVar("Result")

ROWS_AT_ONCE = 8  # a run of rows that is no multiple of it leaves a group of the kernel unfilled


def run_parts(
    num_rows: int,
    num_threads: int,
    task: Callable[[slice], Result],
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[Result]:
    """Call a task with runs of rows that cover all rows, each on a thread; in the rows' order.

    No rows are one empty run. Runs are cut at multiples of `rows_at_once`.

    Raises:
        Exception: The first that a task raised.
    """
    groups = -(-num_rows // rows_at_once)
    step = max(1, -(-groups // max(num_threads, 1))) * rows_at_once
    parts = [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    if len(parts) < 2:
        return [task(part) for part in parts or [slice(0, 0)]]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(task, parts))


@dataclass(frozen=True, slots=True)
class CpuThreads:
    """The kernels of `pair_scores`, `column_sums` and `rescoring`, on threads.

    Arguments, results and errors are those of the functions of one thread, to the last bit.
    """

    num_threads: int = 1

    def top_k_rows(
        self,
        a_IH: F32,
        b_JH: F32,
        w_H: F32,
        bias: float,
        k: int,
        *,
        column_offset: int = 0,
        state: TopKState | None = None,
        counted: CountedRows | None = None,
    ) -> TopK:
        """Do `pair_scores.top_k_rows`."""
        whole = start_state(len(a_IH), k, column_offset, len(b_JH), state)

        def score(rows: slice) -> tuple[F32, I64 | None]:
            part = None if counted is None else counted.part(rows)
            top = top_k_rows(
                a_IH[rows],
                b_JH,
                w_H,
                bias,
                k,
                column_offset=column_offset,
                state=TopKState(whole.key_IK[rows], _rows_of(whole.statistics, rows)),
                counted=part,
            )
            return top.column_max_J, None if part is None else part.count_B

        parts = run_parts(len(a_IH), self.num_threads, score)
        _add_counts(counted, [count_B for _, count_B in parts])
        column_max_J = np.maximum.reduce([column_max for column_max, _ in parts])
        index_IK, score_IK = read_keys(whole.key_IK)
        return TopK(index_IK, score_IK, whole.statistics.copy(), column_max_J, whole)

    def sum_columns(
        self,
        a_IH: F32,
        b_JH: F32,
        w_H: F32,
        bias: float,
        group_I: I64,
        num_groups: int,
        *,
        statistics: ScoreStatistics | None = None,
        counted: CountedRows | None = None,
    ) -> ColumnSums:
        """Do `column_sums.sum_columns`; sums are whole numbers, so they add up exactly."""
        whole = ScoreStatistics.empty(len(a_IH)) if statistics is None else statistics

        def add(rows: slice) -> tuple[I64, I64 | None]:
            part = None if counted is None else counted.part(rows)
            sums = sum_columns(
                a_IH[rows],
                b_JH,
                w_H,
                bias,
                group_I[rows],
                num_groups,
                statistics=_rows_of(whole, rows),
                counted=part,
            )
            return sums.sum_GJ, None if part is None else part.count_B

        parts = run_parts(len(a_IH), self.num_threads, add)
        _add_counts(counted, [count_B for _, count_B in parts])
        return ColumnSums(np.sum([sum_GJ for sum_GJ, _ in parts], axis=0), whole)

    def rescore_rows(
        self, a_IH: F32, columns: PackedColumns, candidate_IC: NDArray[np.integer], k: int
    ) -> RescoredTopK:
        """Do `rescoring.rescore_rows`."""
        return _join(
            run_parts(
                len(a_IH),
                self.num_threads,
                lambda rows: rescore_rows(a_IH[rows], columns, candidate_IC[rows], k),
            )
        )


def _rows_of(statistics: ScoreStatistics, rows: slice) -> ScoreStatistics:
    """Return the statistics of some rows, sharing memory with those of all."""
    return ScoreStatistics(
        statistics.num_pairs_I[rows],
        statistics.min_I[rows],
        statistics.max_I[rows],
        statistics.sum_I[rows],
        statistics.sum_of_squares_I[rows],
    )


def _add_counts(counted: CountedRows | None, parts: list[I64 | None]) -> None:
    for count_B in parts:
        if counted is not None and count_B is not None:
            counted.count_B[:] += count_B


def _join(parts: list[RescoredTopK]) -> RescoredTopK:
    return RescoredTopK(
        np.concatenate([part.index_IK for part in parts]),
        np.concatenate([part.score_IK for part in parts]),
        np.concatenate([part.num_pairs_I for part in parts]),
    )
