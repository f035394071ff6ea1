"""What selection reads of the score stage, put on the run's one scale.

Suffixes: I rows (helped), J columns (candidates as helpers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nncift_ray.core.pairs.column_sums import best_group_mean, check_sum_range
from nncift_ray.core.pairs.pair_kernel import ONE
from nncift_ray.core.selection.sparse_scores import InfluenceScale, SparseScores
from nncift_ray.core.selection.streamed_scores import StreamedScores
from nncift_ray.errors import StageError
from nncift_ray.storage import schemas
from nncift_ray.storage.output import StageOutput

BATCH_ROWS = 16_384  # lists of 64: 25 MB while they are sifted


@dataclass(frozen=True)
class ScoreTables:
    """The tables of a finished score stage, read scaled to 0..1."""

    scores: StageOutput
    num_candidates: int
    scale: InfluenceScale

    @classmethod
    def open(cls, scores: StageOutput, num_candidates: int) -> ScoreTables:
        """Find the one scale of all blocks scored: over every pair, not only what was kept."""
        rows = scores.read("statistics", schema=schemas.SCORE_STATISTICS).to_pylist()
        scale = InfluenceScale(min(row["min"] for row in rows), max(row["max"] for row in rows))
        return cls(scores, num_candidates, scale)

    def lists(self, block: str) -> SparseScores:
        """Read a block's top-K lists as sparse rows."""
        return self.streamed(block).whole()

    def streamed(self, block: str) -> StreamedScores:
        """Return a block's top-K lists as something that is read anew for every pass over them."""
        num_rows = self.scores.num_rows(f"{block}_top_helpers")
        return StreamedScores(num_rows, self.num_candidates, partial(self._batches, block))

    def _batches(self, block: str) -> Iterator[SparseScores]:
        table = f"{block}_top_helpers"
        names = ["helper_index", "influence"]
        for batch in self.scores.iter_batches(table, names, BATCH_ROWS):
            helper = cast("pa.ListArray[Any]", batch.column(0))
            influence = cast("pa.ListArray[Any]", batch.column(1))
            indptr = np.zeros(batch.num_rows + 1, np.int64)
            np.cumsum(np.asarray(helper.value_lengths().to_numpy(), np.int64), out=indptr[1:])
            yield SparseScores(
                indptr,
                helper.flatten().to_numpy(),
                self.scale.apply(influence.flatten().to_numpy()),
                self.num_candidates,
            )

    def column_max(self) -> np.ndarray:
        """Return max_q s_qj over all targets for every candidate j: [J] float32.

        A candidate that nothing is known of (labels as scores) adds nothing, like an entry that no
        list holds.
        """
        largest = np.full(self.num_candidates, self.scale.min, np.float32)
        for batch in self.scores.iter_batches("column_max", ["helper_index", "max_influence"]):
            np.maximum.at(largest, batch.column(0).to_numpy(), batch.column(1).to_numpy())
        return self.scale.apply(largest)

    def existing_max(self, block: str) -> np.ndarray:
        """Return max_p s_ip over all existing examples p for every row i: [I] float32."""
        table = self.scores.read(f"{block}_existing_influence", ["max_influence"])
        return self.scale.apply(table["max_influence"].to_numpy())

    def existing_sum(self, block: str, num_existing: int) -> np.ndarray:
        """Return sum_p s_ip over all existing examples p for every row i: [I] float64."""
        table = self.scores.read(f"{block}_existing_influence", ["sum"])
        mean_I = table["sum"].to_numpy() / (ONE * num_existing)
        # A mean of scaled influence is a scaled mean; rounding may leave it below the minimum.
        return np.maximum(self.scale.apply_to_means(mean_I), 0.0) * num_existing

    def unranked(self) -> np.ndarray:
        """Return the candidates that must not be picked because they have no score, ascending.

        There are none where a network scored; a teacher's labels may have failed.
        """
        table = self.scores.read("unranked", ["row_index"], schemas.UNRANKED)
        return np.asarray(table["row_index"].to_numpy(), np.int64)

    def scaled_scores(self) -> np.ndarray:
        """Return every candidate's score on the run's scale: [J] float64; 0 of ``unranked``."""
        return np.nan_to_num(self.scale.apply_to_means(self.raw_scores()), nan=0.0)

    def raw_scores(self) -> np.ndarray:
        """Return every candidate's score, raw and signed: [J] float64; NaN of ``unranked``.

        That is its mean influence on the rows of the subtask where the mean is highest, or what a
        pointwise network says of it. Where labels are the scores, a mean is over the rows that the
        candidate has a label for. The sums are whole numbers: the order of the shards is no matter.

        Raises:
            StageError: If a sum could pass 64 bits.
        """
        sums: dict[str | None, np.ndarray] = {}
        num_rows: dict[str | None, np.ndarray] = {}
        for batch in self.scores.iter_batches("column_sums"):
            subtask = batch.column("subtask").dictionary_encode("encode")
            helper, rows = (batch.column(name).to_numpy() for name in ("helper_index", "num_rows"))
            for code, name in enumerate(subtask.dictionary.to_pylist()):
                at = subtask.indices.to_numpy() == code
                sum_J = sums.setdefault(name, np.zeros(self.num_candidates, np.int64))
                np.add.at(sum_J, helper[at], batch.column("sum").to_numpy()[at])
                num_J = num_rows.setdefault(name, np.zeros(self.num_candidates, np.int64))
                np.add.at(num_J, helper[at], rows[at])
        try:
            most = max(int(num_J.max(initial=0)) for num_J in num_rows.values())
            check_sum_range(most, self.scale.min, self.scale.max)
            return best_group_mean(list(sums.values()), list(num_rows.values()))
        except ValueError as error:
            raise StageError(f"objective top_k: {error}") from error
