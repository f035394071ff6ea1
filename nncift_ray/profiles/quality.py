"""The quality of a candidate, a gate against wrong answers; the near examples that it is told by.

Suffixes: N candidates, D dimensions, K nearest rows, G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

FLAT_ROWS = 50_000  # up to here every pair of rows is compared
CELL_ROWS = 1000  # of the inverted lists above
NUM_PROBES = 16  # lists searched
#: Nearest rows of which one has to be the head of a row's group. More make larger groups, which
#: cost less, and contexts that are further from their rows.
GROUP_REACH = 24


def nearest_rows(vectors_ND: F32, num_nearest: int) -> I64:
    """Return the nearest other rows of every row by inner product [N, K], the best first.

    K is ``num_nearest``, or N - 1 where that is less. Above FLAT_ROWS rows only the nearest of the
    cells around NUM_PROBES sampled rows are compared; a row that finds too few has -1 at the end.
    """
    import faiss

    num_rows, dimension = vectors_ND.shape
    num_nearest = min(num_nearest, num_rows - 1)
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    flat = faiss.IndexFlatIP(dimension)
    index = flat
    if num_rows > FLAT_ROWS:
        # The centres are rows: no training, so nothing that threads could round differently.
        centres = np.linspace(0, num_rows - 1, num_rows // CELL_ROWS).astype(np.int64)
        flat.add(vectors_ND[centres])
        index = faiss.IndexIVFFlat(flat, dimension, len(centres), faiss.METRIC_INNER_PRODUCT)
        index.is_trained, index.nprobe = True, NUM_PROBES
    index.add(vectors_ND)
    found = index.search(vectors_ND, num_nearest + 1)[1]
    others = found != np.arange(num_rows)[:, None]
    others[others.all(axis=1), -1] = False  # equal vectors may have pushed the row itself out
    return found[others].reshape(num_rows, num_nearest)


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows in groups, each with the rows that are shown before its members.

    Members of ``first`` are shown ``second``, all others ``first``: so nobody is shown itself, and
    a group needs two contexts.
    """

    members: list[I64]
    first: list[I64]
    second: list[I64]

    def contexts(self, group: int) -> list[tuple[I64, I64]]:
        """Return the contexts of a group and which of its members see each."""
        members, first, second = self.members[group], self.first[group], self.second[group]
        inside = np.isin(members, first)
        pairs = [(first, members[~inside]), (second, members[inside])]
        return [(context, rows) for context, rows in pairs if len(rows) and len(context)]


def group_rows(nearest_NK: I64, num_shown: int, rows: Sequence[int] | I64 | None = None) -> Groups:
    """Return groups of near rows.

    In row order, a row becomes the head of a group unless one of its GROUP_REACH nearest is one;
    the others join the nearest head. A group is shown its head with the head's nearest.

    Args:
        nearest_NK: Of every row; see ``nearest_rows``.
        num_shown: Examples of a context, where there are so many.
        rows: Only these are members (any row may be shown); None: all.
    """
    num_rows = len(nearest_NK)
    wanted = np.arange(num_rows) if rows is None else np.asarray(rows, np.int64)
    head_N = np.full(num_rows, -1, np.int64)
    is_head = np.zeros(num_rows, bool)
    reach_NK = nearest_NK[:, :GROUP_REACH]
    for row in wanted.tolist():
        near = reach_NK[row]
        heads = near[(near >= 0) & is_head[near]]
        is_head[row] = not len(heads)
        head_N[row] = heads[0] if len(heads) else row
    members: dict[int, list[int]] = {}
    for row in wanted.tolist():
        members.setdefault(int(head_N[row]), []).append(row)
    shown = [np.r_[head, nearest_NK[head][nearest_NK[head] >= 0]] for head in members]
    return Groups(
        [np.array(each, np.int64) for each in members.values()],
        [near[:num_shown] for near in shown],
        [near[num_shown : 2 * num_shown] for near in shown],
    )


def fitting_prefix(nearest_first: Iterable[Sequence[int]], room: int) -> list[int]:
    """Return shown examples' tokens one after the other, the first of them last.

    What does not fit into ``room`` tokens is left out whole, the last given first.
    """
    prefix: list[int] = []
    for ids in nearest_first:
        if len(prefix) + len(ids) > room:
            break
        prefix = [*ids, *prefix]
    return prefix


F64 = npt.NDArray[np.float64]

#: Quality falls from 1 to 0 between these suspicions; decided on planted faults
#: (docs/decisions.md). A normal row passes the first with chance 0.07, the middle with
#: 0.01.
FLAT_TO, ZERO_FROM = 1.5, 3.0
#: Suspicion from which a row is listed: its quality is below a half.
SUSPECT = (FLAT_TO + ZERO_FROM) / 2
LEFT_QUANTILE = 0.15866  # one standard deviation below the median of a normal distribution
MIN_ROWS = 20  # fewer say nothing about what is usual


def deviations(values_N: F64) -> F64:
    """Return by how many spreads each value lies above the median [N]; NaN stays NaN.

    The spread is that of the *lower* side: wrong answers lie on the upper one, and must not widen
    what counts as usual.
    """
    known = values_N[np.isfinite(values_N)]
    if len(known) < MIN_ROWS:
        return np.where(np.isfinite(values_N), 0.0, np.nan)
    middle = np.median(known)
    spread = middle - np.quantile(known, LEFT_QUANTILE)
    if spread <= 0:
        return np.where(np.isfinite(values_N), 0.0, np.nan)
    return (values_N - middle) / spread


def suspicion(nll: F64, nll_alone: F64, nll_shown: F64, cosine: F64) -> F64:
    """Return how much speaks against each answer [N], about 0 +- 1 for the usual row.

    It is the sum of two deviations over the square root of 2: of the consistency (loss of the
    answer behind near examples over its loss alone; IFD, the loss behind its prompt over its loss
    alone, where there are no near examples) and of the negative cosine of prompt and answer. A
    row that a measure is missing of is judged by the other one; NaN where both are.

    Args:
        nll: Of the response behind its prompt, nats a token.
        nll_alone: Of the response alone.
        nll_shown: Behind near examples and its prompt; NaN where unknown.
        cosine: Of prompt and answer, by the embedder.
    """
    consistency, ifd = nll_shown / nll_alone, nll / nll_alone
    unexplained = np.where(np.isfinite(consistency), deviations(consistency), deviations(ifd))
    parts = np.stack([unexplained, deviations(-cosine)])
    known = np.isfinite(parts)
    total = np.where(known, parts, 0.0).sum(axis=0) / np.sqrt(np.maximum(known.sum(axis=0), 1))
    return np.where(known.any(axis=0), total, np.nan)


def beside_neighbours(suspicion_N: F64, near_NK: npt.NDArray[np.int64]) -> F64:
    """Return suspicions [N], each less half of the median of its neighbours'.

    Where all answers of a kind look odd to the model, as words spelt backwards do, it is the kind
    and not the answer. Half, because neighbours may be wrong together.

    Args:
        suspicion_N: Of every row; NaN where unknown.
        near_NK: Rows near each one, -1 where there are fewer.
    """
    near = np.ma.masked_invalid(np.where(near_NK < 0, np.nan, suspicion_N[near_NK]))
    usual_N = np.ma.median(near, axis=1) if near.shape[1] else np.ma.masked_all(len(near))
    return suspicion_N - np.ma.filled(usual_N, 0.0) / 2


def quality_of(suspicion_N: F64) -> F32:
    """Return the quality [N]: 1 up to FLAT_TO, 0 from ZERO_FROM, linear between; NaN stays."""
    fall = (suspicion_N - FLAT_TO) / (ZERO_FROM - FLAT_TO)
    return (1.0 - np.clip(fall, 0.0, 1.0)).astype(np.float32)
