"""Teacher scores: the teacher's own labels in the place of a network's scores.

What the score stage keeps of every pair's predicted influence is kept here of the pairs that the
teacher labelled: lists of best helpers, or sums of columns for top_k, with statistics. A pair whose
label failed is in no list and in no sum; a candidate without any label cannot be ranked.

Suffixes: I rows (helped), J columns (candidates as helpers), G subtasks, K list places, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.errors import StageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import CROSS, POINTS, helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.scores.exact import BestColumns, GivenSums, ScoreTally
from nncift_ray.scores.step import (
    column_max_table,
    column_sums_table,
    top_helpers_table,
    write_histogram,
    write_statistics,
)
from nncift_ray.selection.tables import ground_block

LIST_ROWS = 16_384  # written at a time
NO_LABEL = "no_label"
PAIR_COLUMNS = ["block", "helped_index", "helper_index"]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What was asked about a block and what came of it, for the manifest and its readers."""

    num_rows: int
    """Rows of the block."""
    num_asked_rows: int
    """Of them, rows whose pairs were in the label sample."""
    num_columns: int
    num_asked: int
    """Pairs (or examples) in the label sample."""
    num_labelled: int
    """Of them, those with a label; the others failed, and say why in earlier stages' errors."""
    num_unranked: int
    """Candidates without any label here."""


class TeacherScoresStage(Stage):
    """Write the tables of the score stage from labels, and ``unranked`` candidates."""

    name: ClassVar[str] = "teacher_scores"
    unit: ClassVar[str] = "passes"
    memory_advice: ClassVar[str] = (
        "lower pair_scores.top_k or labels.label_pairs: it holds 8 bytes for each place of a list, "
        "so for each label at most, or 16 bytes for each candidate and subtask"
    )

    def __init__(
        self,
        labels: StageOutput,
        examples: StageOutput,
        blocks: Sequence[str],
        top_k: int | None,
        *,
        subtask_by: str | None = None,
    ) -> None:
        """Take the labels of blocks for their scores.

        Args:
            labels: Of the label step.
            examples: The deduplicated examples.
            blocks: What the objective reads.
            top_k: Helpers kept of every row; None: no lists, but the sum of every column.
            subtask_by: Field of a target's record that names its subtask; None: one for all.
        """
        self._labels, self._examples = labels, examples
        self._blocks, self._top_k, self._subtask_by = tuple(blocks), top_k, subtask_by

    @property
    def _keeps_sums(self) -> bool:
        return self._top_k is None or POINTS in self._blocks

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, sums or lists with column maxima, and who has no label."""
        tables = {
            "statistics": schemas.SCORE_STATISTICS,
            "histogram": schemas.SCORE_HISTOGRAM,
            "unranked": schemas.UNRANKED,
        }
        if self._keeps_sums:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        return lists | tables | {"column_max": schemas.COLUMN_MAX}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Labels and examples."""
        return {"labels": self._labels, "examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """What is kept."""
        kept = {"subtask_by": self._subtask_by} if self._keeps_sums else {"top_k": self._top_k}
        return {"blocks": list(self._blocks), **kept}

    def num_items(self) -> int:
        """One pass over the labels."""
        return 1

    def make_worker(self) -> Worker:
        """Return the pass."""

        def keep(shard: Shard, sink: Sink) -> None:
            facts: dict[str, Any] = {}
            for block in self._blocks:
                try:
                    counts = self._keep_block(block, sink)
                except ValueError as error:
                    raise StageError(f"labels of block '{block}': {error}") from error
                facts[block] = asdict(counts)
            sink.facts["labels"] = facts

        return keep

    def _keep_block(self, block: str, sink: Sink) -> LabelCounts:
        """Fold a block's labels and write what is kept of them.

        Raises:
            StageError: If there is no label at all.
        """
        fold = self._make_fold(block)
        tally, ranked_J = ScoreTally(), np.zeros(self._num_candidates, np.bool_)
        for helped_P, helper_P, utility_P in self._batches(block):
            fold.add(helped_P, helper_P, utility_P)
            tally.add(utility_P)
            ranked_J[helper_P] = True
        total = tally.total()
        if total.num_pairs == 0:
            raise StageError(
                f"no label of the block '{block}' is there to select by; see label's errors"
            )
        fold.write(sink)
        write_statistics(sink, block, total)
        write_histogram(sink, block, tally.count_B)
        unranked = np.flatnonzero(~ranked_J)
        if block == ground_block(self._blocks):
            self._write_unranked(block, unranked, sink)
        asked = self._labels.manifest.facts()["asked"][block]
        return LabelCounts(
            num_rows=self._num_rows(block),
            num_asked_rows=asked["num_rows"],
            num_columns=self._num_candidates,
            num_asked=asked["num_pairs"],
            num_labelled=total.num_pairs,
            num_unranked=len(unranked),
        )

    def _make_fold(self, block: str) -> _Fold:
        if not self._keeps_sums:
            labelled_I = self._labelled_rows(block)
            return _ListFold(block, labelled_I, self._num_candidates, self._top_k or 1)
        subtasks = Subtasks.one(self._num_rows(block))
        if block == CROSS and self._subtask_by is not None:
            subtasks = read_subtasks(self._examples, self._subtask_by)
        if block == POINTS:  # each example is a column by itself
            subtasks = Subtasks.one(1)
        return _SumFold(block, subtasks, self._num_candidates)

    def _batches(self, block: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (helped [P], helper [P], utility [P]) of a block; of points the row is always 0."""
        for batch in self._labels.iter_batches("labels", [*PAIR_COLUMNS, "utility"]):
            here = batch.filter(pc.equal(batch.column("block"), pa.scalar(block)))
            helped_P = here.column("helped_index").to_numpy()
            utility_P = here.column("utility").to_numpy()
            if block == POINTS:
                yield np.zeros_like(helped_P), helped_P, utility_P
            else:
                yield helped_P, here.column("helper_index").to_numpy(), utility_P

    def _labelled_rows(self, block: str) -> np.ndarray:
        """Return which rows of a block have a label [I]."""
        labelled_I = np.zeros(self._num_rows(block), np.bool_)
        for batch in self._labels.iter_batches("labels", ["block", "helped_index"]):
            here = batch.filter(pc.equal(batch.column("block"), pa.scalar(block)))
            labelled_I[here.column("helped_index").to_numpy()] = True
        return labelled_I

    def _num_rows(self, block: str) -> int:
        return self._examples.num_rows(f"{helped_role(block)}s")

    @property
    def _num_candidates(self) -> int:
        return self._examples.num_rows("candidates")

    def _write_unranked(self, block: str, unranked: np.ndarray, sink: Sink) -> None:
        """Name the candidates that the teacher said nothing of: they cannot be picked."""
        table = {"row_index": pa.array(unranked, pa.int64())}
        sink.write("unranked", pa.table(table, schema=schemas.UNRANKED))
        if not len(unranked):
            return
        texts = self._examples.take_rows("candidates", unranked, ["example_id", "prompt"])
        what = "no rating" if block == POINTS else f"no label as a helper in block '{block}'"
        for row in texts.to_pylist():
            sink.error(
                NO_LABEL,
                f"the teacher gave it {what}, so it cannot be ranked and is never picked; why is "
                "in the errors of the stages before",
                example_id=row["example_id"],
                excerpt=row["prompt"],
            )


class _ListFold:
    """Keeps the best helpers of every row, and of `cross` every helper's largest label."""

    def __init__(self, block: str, labelled_I: np.ndarray, num_candidates: int, top_k: int) -> None:
        self._block, self._labelled_I = block, labelled_I
        self._place_I = np.cumsum(labelled_I) - 1
        self._best = BestColumns(int(labelled_I.sum()), num_candidates, top_k)
        self._max_J = np.full(num_candidates, -np.inf, np.float32)

    def add(self, helped_P: np.ndarray, helper_P: np.ndarray, utility_P: np.ndarray) -> None:
        self._best.add(self._place_I[helped_P], helper_P, utility_P)
        np.maximum.at(self._max_J, helper_P, utility_P)

    def write(self, sink: Sink) -> None:
        """Write every row of the block; one that no label speaks of has an empty list."""
        for start in range(0, len(self._labelled_I), LIST_ROWS):
            stop = min(start + LIST_ROWS, len(self._labelled_I))
            labelled = np.flatnonzero(self._labelled_I[start:stop])
            first = int(self._labelled_I[:start].sum())
            index_AK, score_AK = self._best.lists(slice(first, first + len(labelled)))
            index = np.full((stop - start, index_AK.shape[1]), -1, np.int32)
            score = np.full(index.shape, -np.inf, np.float32)
            index[labelled], score[labelled] = index_AK, score_AK
            rows = pa.array(np.arange(start, stop), pa.int64())
            sink.write(f"{self._block}_top_helpers", top_helpers_table(rows, index, score))
        if self._block == CROSS:
            helper = np.flatnonzero(np.isfinite(self._max_J))
            table = column_max_table(self._block, helper, self._max_J[helper])
            sink.write("column_max", table)


class _SumFold:
    """Keeps the sum of every column over the labelled rows of each subtask, and their number."""

    def __init__(self, block: str, subtasks: Subtasks, num_candidates: int) -> None:
        self._block, self._subtasks = block, subtasks
        self._sums = GivenSums(subtasks.group_I, len(subtasks.names), num_candidates)

    def add(self, helped_P: np.ndarray, helper_P: np.ndarray, utility_P: np.ndarray) -> None:
        self._sums.add(helped_P, helper_P, utility_P)

    def write(self, sink: Sink) -> None:
        for group, name in enumerate(self._subtasks.names):
            num_J, sum_J = self._sums.num_GJ[group], self._sums.sum_GJ[group]
            helper = np.flatnonzero(num_J)
            table = column_sums_table(self._block, name, num_J[helper], helper, sum_J[helper])
            sink.write("column_sums", table)


_Fold = _ListFold | _SumFold
