"""Near examples, and which of them are shown together: rows that lie close share a context.

Suffixes: N rows, D dimensions, K nearest rows, G groups.
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
