"""Scores that need no label and no network: every example's, or every pair's, from numbers at hand.

Pairs are inner products of the rows' and the columns' vectors, a block at a time, and folded as
they come into what `teacher_scores` keeps. Suffixes: I rows, J columns, P pairs, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nncift_ray.engines.models import ResolvedModel, locate_model
from nncift_ray.engines.tokens import SegmentTokenizer
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.schemas import POINTS, TABLE_OF_ROLE, helped_role
from nncift_ray.scores.teacher_scores import TeacherScoresStage
from nncift_ray.teachers.less import (
    checkpoint_weights,
    gradient_table,
    read_features,
    target_subspace,
)
from nncift_ray.teachers.measured import ifd_scores, ridge_weights, unit_rows

ROWS, COLUMNS = 1024, 4096  # of a block of pairs
MOST = 1000.0  # in size, of an example's score


class MeasuredScoresStage(TeacherScoresStage):
    """Write the tables of the score stage for a teacher that is not asked (`teachers.measured`)."""

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

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Examples and what was measured of them."""
        return {**self._sources, "examples": self._examples}

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
