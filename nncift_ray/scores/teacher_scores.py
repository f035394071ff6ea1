"""Teacher scores: the teacher's own labels in the place of a network's scores.

What the score stage keeps of every pair's predicted influence is kept here of the pairs that the
teacher labelled: lists of best helpers, or sums of columns for top_k, with statistics. A pair whose
label failed is in no list and in no sum; a candidate without any label cannot be ranked.

Suffixes: I rows (helped), J columns (candidates as helpers), G subtasks, K list places, P pairs,
N examples, D numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Subtasks, read_subtasks
from nncift_ray.engines.models import ResolvedModel, locate_model
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.errors import StageError
from nncift_ray.network.pair import decompose
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CROSS, POINTS, TABLE_OF_ROLE, ground_block, helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.scores.exact import (
    ScoreTotal,
    add_pairs,
    read_keys,
    start_state,
    to_fixed_point,
)
from nncift_ray.scores.scorers import (
    write_column_max,
    write_column_sums,
    write_lists,
    write_statistics,
)
from nncift_ray.teachers.base import checkpoint_weights
from nncift_ray.teachers.less import gradient_table, read_features, target_subspace

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
LIST_ROWS = 16_384  # written at a time
NO_LABEL = "no_label"
PAIR_COLUMNS = ["block", "helped_index", "helper_index", "utility"]


class TeacherScoresStage(Stage):
    """Write the tables of the score stage from labels, and ``unranked`` candidates."""

    name: ClassVar[str] = "teacher_scores"
    unit: ClassVar[str] = "passes"
    title: ClassVar[str] = "take labels for scores"
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
        """Take the labels of the blocks that the objective reads for their scores.

        ``top_k`` helpers are kept of every row; None: no lists, but the sum of every column.
        ``subtask_by`` is the field of a target's record that names its subtask; None: one for all.
        """
        self._labels, self._examples = labels, examples
        self._blocks, self._subtask_by = tuple(blocks), subtask_by
        self._top_k = None if POINTS in self._blocks else top_k
        self._num_candidates = examples.num_rows("candidates")
        self.inputs = {"labels": labels, "examples": examples}

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Statistics, sums or lists with column maxima, and who has no label."""
        tables = {
            "statistics": schemas.SCORE_STATISTICS,
            "unranked": schemas.UNRANKED,
        }
        if self._top_k is None:
            return tables | {"column_sums": schemas.COLUMN_SUMS}
        lists = {f"{block}_top_helpers": schemas.TOP_HELPERS for block in self._blocks}
        return lists | tables | {"column_max": schemas.COLUMN_MAX}

    def settings(self) -> dict[str, Any]:
        """What is kept."""
        sums = self._top_k is None
        kept = {"subtask_by": self._subtask_by} if sums else {"top_k": self._top_k}
        return {"blocks": list(self._blocks), **kept}

    def notices(self, output: StageOutput) -> list[str]:
        """What labels there are to select by."""
        return describe_labels(output)

    def make_worker(self) -> Worker:
        """Return the pass."""

        def keep(shard: Shard, sink: Sink) -> None:
            facts: dict[str, Any] = {}
            for block in self._blocks:
                try:
                    facts[block] = self._keep_block(block, sink)
                except ValueError as error:
                    raise StageError(f"labels of block '{block}': {error}") from error
            sink.facts["labels"] = facts

        return keep

    def _keep_block(self, block: str, sink: Sink) -> dict[str, int]:
        """Write what is kept of a block's labels and return how many were asked for and came.

        Raises:
            StageError: If there is no label at all.
        """
        kept = self._start(block)
        total = ScoreTotal()
        is_ranked_J = np.zeros(self._num_candidates, np.bool_)
        for helped_P, helper_P, utility_P in self._batches(block):
            kept.add(helped_P, helper_P, utility_P)
            total = total.merge(ScoreTotal.of(utility_P))
            is_ranked_J[helper_P] = True
        if total.num_pairs == 0:
            raise StageError(
                f"no label of the block '{block}' is there to select by; see label's errors"
            )
        kept.write(sink)
        write_statistics(sink, block, total)
        unranked = np.flatnonzero(~is_ranked_J)
        if block == ground_block(self._blocks):  # whose rows the objective covers
            self._write_unranked(block, unranked, sink)
        num_asked_rows, num_asked = self._num_asked(block)
        return {
            "num_rows": self._num_rows(block),
            "num_asked_rows": num_asked_rows,
            "num_columns": self._num_candidates,
            "num_asked": num_asked,
            "num_labelled": total.num_pairs,  # of them; why the others failed is in label's errors
            "num_unranked": len(unranked),  # candidates without any label here
        }

    def _start(self, block: str) -> LabelLists | LabelSums:
        """Return what folds the block's labels, with nothing in it."""
        if self._top_k is not None:
            return LabelLists(block, self._labelled_rows(block), self._num_candidates, self._top_k)
        # Of points each example is a column by itself, with one row.
        subtasks = Subtasks.one(1 if block == POINTS else self._num_rows(block))
        if block == CROSS and self._subtask_by is not None:
            subtasks = read_subtasks(self._examples, self._subtask_by)
        return LabelSums(block, subtasks, self._num_candidates)

    def _num_asked(self, block: str) -> tuple[int, int]:
        """Return how many rows of a block were asked about, and with how many pairs (or points)."""
        asked = self._labels.manifest.facts()["asked"][block]
        return asked["num_rows"], asked["num_pairs"]

    def _labelled_rows(self, block: str) -> np.ndarray:
        """Return which rows of a block have a label [I]."""
        labelled_I = np.zeros(self._num_rows(block), np.bool_)
        for helped_P, _, _ in self._batches(block):
            labelled_I[helped_P] = True
        return labelled_I

    def _batches(self, block: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (helped [P], helper [P], utility [P]) of a block; of points the row is always 0."""
        for batch in self._labels.iter_batches("labels", PAIR_COLUMNS):
            here = batch.filter(pc.equal(batch.column("block"), pa.scalar(block)))
            helped_P = here.column("helped_index").to_numpy()
            utility_P = here.column("utility").to_numpy()
            if block == POINTS:
                yield np.zeros_like(helped_P), helped_P, utility_P
            else:
                yield helped_P, here.column("helper_index").to_numpy(), utility_P

    def _num_rows(self, block: str) -> int:
        return self._examples.num_rows(f"{helped_role(block)}s")

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


class LabelLists:
    """The best helpers of every row, and of `cross` every helper's largest label.

    Only rows that have a label get places, and fewer than K where there are fewer candidates.
    Memory: 8 bytes a place.
    """

    def __init__(self, block: str, labelled_I: np.ndarray, num_candidates: int, top_k: int) -> None:
        """Begin with nothing."""
        self._block, self._labelled_I = block, labelled_I
        self._place_I = np.cumsum(labelled_I) - 1
        k = min(top_k, max(1, num_candidates))
        self._state = start_state(int(labelled_I.sum()), k, 0, num_candidates, None)
        self._max_J = np.full(num_candidates, -np.inf, np.float32)

    def add(self, helped_P: np.ndarray, helper_P: np.ndarray, utility_P: np.ndarray) -> None:
        """Fold labels in; ValueError if one is not finite."""
        add_pairs(self._state, self._place_I[helped_P], helper_P, utility_P)
        np.maximum.at(self._max_J, helper_P, utility_P)

    def write(self, sink: Sink) -> None:
        """Write every row of the block; one that no label speaks of has an empty list."""
        key_IK = self._state.key_IK
        for start in range(0, len(self._labelled_I), LIST_ROWS):
            here_I = self._labelled_I[start : start + LIST_ROWS]
            first = int(self._labelled_I[:start].sum())
            index_IK = np.full((len(here_I), key_IK.shape[1]), -1, np.int32)
            score_IK = np.full(index_IK.shape, -np.inf, np.float32)
            index_IK[here_I], score_IK[here_I] = read_keys(
                key_IK[first : first + int(here_I.sum())]
            )
            write_lists(sink, self._block, start, index_IK, score_IK)
        if self._block == CROSS:
            helper = np.flatnonzero(np.isfinite(self._max_J))
            write_column_max(sink, self._block, helper, self._max_J[helper])


class LabelSums:
    """The sum of every column over the labelled rows of each subtask, and their number.

    Memory: 16 * G * J bytes.
    """

    def __init__(self, block: str, subtasks: Subtasks, num_candidates: int) -> None:
        """Begin with nothing."""
        self._block, self._subtasks = block, subtasks
        shape = (len(subtasks.names), num_candidates)
        self.sum_GJ = np.zeros(shape, np.int64)  # whole numbers of 2**-32
        self.num_GJ = np.zeros(shape, np.int64)

    def add(self, helped_P: np.ndarray, helper_P: np.ndarray, utility_P: np.ndarray) -> None:
        """Fold labels in; ValueError if one is not finite, or 2**10 or more in size."""
        group_P = self._subtasks.group_I[helped_P]
        np.add.at(self.sum_GJ, (group_P, helper_P), to_fixed_point(utility_P))
        np.add.at(self.num_GJ, (group_P, helper_P), 1)

    def write(self, sink: Sink) -> None:
        """Write the columns that have a label."""
        for name, num_J, sum_J in zip(self._subtasks.names, self.num_GJ, self.sum_GJ, strict=True):
            helper = np.flatnonzero(num_J)
            write_column_sums(sink, self._block, name, num_J[helper], helper, sum_J[helper])


def describe_labels(scores: StageOutput) -> list[str]:
    """Say of every block what labels there are to select by, where it is not all of them."""
    lines: list[str] = []
    for block, of in scores.manifest.facts()["labels"].items():
        unit = "examples" if block == POINTS else "pairs"
        if of["num_asked_rows"] < of["num_rows"]:
            lines.append(
                f"block '{block}': {of['num_asked_rows']:,} of {of['num_rows']:,} rows are "
                "labelled, each with every candidate; the others count for nothing"
            )
        failed = of["num_asked"] - of["num_labelled"]
        if failed:
            lines.append(
                f"block '{block}': {failed:,} of {of['num_asked']:,} {unit} have no label; they "
                f"are in no list and no mean, and {of['num_unranked']:,} candidates have none at "
                "all and cannot be picked"
            )
    return lines


# Scores that need no label: every example's, or every pair's, from numbers at hand.

ROWS, COLUMNS = 1024, 4096  # of a block of pairs
MOST = 1000.0  # in size, of an example's score


class MeasuredScoresStage(TeacherScoresStage):
    """Write the tables of the score stage for a teacher that is not asked."""

    title = "take measurements for scores"
    memory_advice = (
        "give the machine more memory: it holds the vectors of all targets (of all candidates, "
        "where there are none), and 8 bytes for each place of a list"
    )

    def __init__(
        self,
        kind: str,
        sources: Mapping[str, StageOutput],
        examples: StageOutput,
        blocks: Sequence[str],
        top_k: int | None,
        *,
        subtask_by: str | None = None,
        tokenizer: ResolvedModel | None = None,
        target_rank: int | None = None,
    ) -> None:
        """Score by what the steps ``sources`` measured; see `TeacherScoresStage`.

        ``tokenizer`` is the language model whose tokens are counted, where the teacher does that;
        ``target_rank`` the directions in which gradients are compared, where it reads them.
        """
        first = next(iter(sources.values()))
        super().__init__(first, examples, blocks, top_k, subtask_by=subtask_by)
        self._kind, self._tokenizer, self._sources = kind, tokenizer, dict(sources)
        self._target_rank = target_rank
        self.inputs = {**self._sources, "examples": examples}

    def settings(self) -> dict[str, Any]:
        """What is kept, and what of."""
        model = self._tokenizer
        tokenizer = None if model is None else [model.name, model.revision]
        own = {"teacher": self._kind, "tokenizer": tokenizer}
        if self._target_rank is not None:
            own["target_rank"] = self._target_rank
        return super().settings() | own

    def _num_asked(self, block: str) -> tuple[int, int]:
        num_rows = 1 if block == POINTS else self._num_rows(block)
        return self._num_rows(block), num_rows * self._num_candidates

    def _labelled_rows(self, block: str) -> np.ndarray:
        return np.ones(self._num_rows(block), np.bool_)

    def _batches(self, block: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (row [P], column [P], score [P]) of a block; of points the row is always 0."""
        if block == POINTS:
            value_N = self._points()
            known_N = np.flatnonzero(np.isfinite(value_N))
            score_N = np.clip(value_N[known_N], -MOST, MOST).astype(np.float32)
            yield np.zeros_like(known_N), known_N, score_N
            return
        by_gradients, first = "gradients" in self._sources, 0
        if self._kind == "landmarks":
            row_ID, columns = self._landmarks()
        else:
            row_ID, columns = self._gradients() if by_gradients else self._vectors(block)
        known_I = np.flatnonzero(row_ID.any(axis=1))
        for column_JD in columns:
            known_J = np.flatnonzero(column_JD.any(axis=1))
            for start in range(0, len(known_I), ROWS):
                row_I = known_I[start : start + ROWS]
                score_IJ = np.clip(row_ID[row_I] @ column_JD[known_J].T, -1.0, 1.0)
                rows_P = np.repeat(row_I, len(known_J))
                yield rows_P, np.tile(first + known_J, len(row_I)), score_IJ.reshape(-1)
            first += len(column_JD)

    def _vectors(self, block: str) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Return the rows' embeddings [I, D] and the columns', some at a time; all of length 1."""
        table = self._labels.read(TABLE_OF_ROLE[helped_role(block)], ["embedding"])
        batches = self._labels.iter_batches("candidates", ["embedding"], COLUMNS)
        columns = (unit_rows(column_matrix(pa.chunked_array([b.column(0)]))) for b in batches)
        return unit_rows(column_matrix(table["embedding"])), columns

    def _landmarks(self) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Return the weights [I, D + 1] that tell the rows' scores from states, and the states."""
        row_ID, blocks = self._gradients()
        exact_LD = np.concatenate(list(blocks))
        rows = self._sources["gradients"].read(gradient_table(0), ["row_index"])["row_index"]
        states, known_L = self._sources["states"], exact_LD.any(axis=1)
        taken = states.take_rows("candidates", rows.to_numpy()[known_L], ["embedding"])
        feature_LD = _with_constant(column_matrix(taken["embedding"]))
        weights_ID = ridge_weights(feature_LD, row_ID @ exact_LD[known_L].T)
        batches = states.iter_batches("candidates", ["embedding"], COLUMNS)
        columns = (column_matrix(pa.chunked_array([batch.column(0)])) for batch in batches)
        return weights_ID, (_with_constant(vector_JD) for vector_JD in columns)

    def _gradients(self) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Return the rows' gradients [I, C * P] and the columns', some at a time."""
        rates = self._sources["warmup"].read("checkpoints", ["mean_learning_rate"])
        weights_C = checkpoint_weights(cast("list[float]", rates["mean_learning_rate"].to_pylist()))
        rows, columns = self._sources["target_gradients"], self._sources["gradients"]
        num_rows, num_columns = (each.num_rows(gradient_table(0)) for each in (rows, columns))
        row_ID = read_features(rows, 0, num_rows, weights_C)
        ranges = ((at, min(at + ROWS, num_columns)) for at in range(0, num_columns, ROWS))
        blocks = (read_features(columns, start, stop, weights_C) for start, stop in ranges)
        if self._target_rank is None:
            return row_ID, blocks
        basis_DR = target_subspace(row_ID, self._target_rank)
        return unit_rows(row_ID @ basis_DR), (unit_rows(block @ basis_DR) for block in blocks)

    def _points(self) -> np.ndarray:
        """Return the score of every candidate [N], NaN where it has none."""
        if self._kind == "longest":  # in thousands: scores are bounded
            return self._count_tokens()
        if self._kind == "deita" and "quality" not in self._sources:
            return np.ones(self._num_candidates)  # the field of selection.weight_by weighs it
        if self._kind == "consistency":
            return -self._numbers("quality", "consistency")[0]
        if "loss_drop" in self._sources:
            before_N, after_N = self._numbers("loss_drop", "nll_before", "nll_after")
            drop_N = before_N - after_N
            return drop_N / before_N if self._kind == "loss_drop" else drop_N
        score_N = ifd_scores(*self._numbers("profiles", "nll", "nll_alone"))
        if self._kind == "ifd":
            return score_N
        (quality_N,) = self._numbers("quality", "quality")
        return np.where(score_N > 0, score_N * quality_N, score_N)

    def _numbers(self, step: str, *names: str) -> list[np.ndarray]:
        table = self._sources[step].read("candidates", list(names))
        return [np.array(table[name].to_numpy(), np.float64) for name in names]

    def _count_tokens(self) -> np.ndarray:
        assert self._tokenizer is not None  # noqa: S101 (given where tokens are counted)
        tokenizer = SegmentTokenizer(locate_model(self._tokenizer, "language model").path)
        lengths = [
            len(tokenizer.encode(text)) / 1000
            for batch in self._examples.iter_batches("candidates", ["response"])
            for text in cast("list[str]", batch.column(0).to_pylist())
        ]
        return np.array(lengths, np.float64)


def _with_constant(vector_ND: np.ndarray) -> np.ndarray:
    """Return vectors with a 1 behind each, for what all have in common [N, D + 1]."""
    return np.concatenate([vector_ND, np.ones((len(vector_ND), 1), np.float32)], axis=1)


def ridge_weights(feature_LD: F32, score_IL: F32) -> F32:
    """Return the weights of a ridge regression from features to each row's scores [I, D].

    The penalty, one for all rows, is that of the least squared error on left-out landmarks, of
    seven from 1e-6 to 1 times the largest squared singular value; in closed form.
    """
    left_LK, values_K, right_KD = decompose(feature_LD.astype(np.float64))
    coordinates_IK = score_IL.astype(np.float64) @ left_LK
    best, weights_IK = np.inf, np.zeros_like(coordinates_IK)
    for penalty in values_K[0] ** 2 * np.logspace(-6, 0, 7):
        shrink_K = values_K**2 / (values_K**2 + penalty)
        leverage_L = (left_LK**2 * shrink_K).sum(axis=1)
        residual_IL = score_IL - (coordinates_IK * shrink_K) @ left_LK.T
        error = np.mean((residual_IL / np.maximum(1 - leverage_L, 1e-9)) ** 2)
        if error < best:
            best = error
            weights_IK = coordinates_IK * values_K / (values_K**2 + penalty)
    return (weights_IK @ right_KD).astype(np.float32)


def ifd_scores(nll_N: F64, nll_alone_N: F64) -> F64:
    """Return by how much the prompt fails to explain each response [N], 1 and above last.

    IFD = NLL(y | x) / NLL(y). The larger the better below 1; from 1 on, where the prompt does not
    help at all, the pair counts as wrong: such rows get 1 - IFD, so they come after all others, the
    worst last. NaN where a loss is not known or the response alone costs nothing.

    Source: arXiv 2308.12032, section 2.2 (losses; 2402.00530 takes perplexities, which keep the
    bound and may order otherwise).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ifd_N = np.where(nll_alone_N > 0, nll_N / nll_alone_N, np.nan)
    return np.where(ifd_N < 1, ifd_N, 1 - ifd_N)


def unit_rows(vectors_ND: F32) -> F32:
    """Return vectors at length 1 [N, D]; zero vectors, and those not finite, become zeros."""
    length_N1 = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    usable_N1 = np.isfinite(length_N1) & (length_N1 > 0)
    unit_ND = np.where(usable_N1, vectors_ND / np.where(usable_N1, length_N1, 1.0), 0.0)
    return unit_ND.astype(np.float32)
