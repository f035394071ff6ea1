"""From the score stage's tables and a recipe to an objective, and from a ranking to tables.

Suffixes: I rows, J candidates, S picks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.recipe.sections import SelectionConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN, ground_block
from nncift_ray.scores.exact import best_group_mean, check_sum_range
from nncift_ray.scores.kernel import ONE
from nncift_ray.selection.greedy import Ranking
from nncift_ray.selection.names import PAIR_COVERAGE, RANDOM, ROUND_ROBIN, TOP_K
from nncift_ray.selection.objectives import (
    MarginalGains,
    facility_location,
    facility_location_conditional_gain,
    facility_location_mutual_information,
    facility_location_query_mutual_information,
    graph_cut,
    graph_cut_conditional_gain,
    graph_cut_mutual_information,
    saturated_coverage,
    top_scores,
)
from nncift_ray.selection.problem import (
    InfluenceScale,
    Objective,
    SparseScores,
    StreamedScores,
)
from nncift_ray.selection.ties import DECIDED_BY, direction_width, directions

SKIPPED_SHOWN = 200
BATCH_ROWS = 16_384  # lists of 64: 25 MB while they are read


@dataclass(frozen=True)
class ScoreTables:
    """The tables of a finished score stage, read scaled to 0..1."""

    scores: StageOutput
    num_candidates: int
    num_existing: int
    scale: InfluenceScale
    quality_J: np.ndarray | None = None

    @classmethod
    def open(
        cls,
        scores: StageOutput,
        num_candidates: int,
        num_existing: int = 0,
        quality_J: np.ndarray | None = None,
    ) -> ScoreTables:
        """Find the one scale of all blocks scored: over every pair, not only what was kept.

        ``quality_J``, in [0, 1], multiplies what a candidate is worth as a helper; a negative score
        stays as it is.
        """
        rows = scores.read("statistics", schema=schemas.SCORE_STATISTICS).to_pylist()
        scale = InfluenceScale(min(row["min"] for row in rows), max(row["max"] for row in rows))
        return cls(scores, num_candidates, num_existing, scale, quality_J)

    @property
    def ground_block(self) -> str:
        """The block whose rows are covered."""
        return ground_block(self.scores.manifest.settings["blocks"])

    def lists(self, block: str) -> StreamedScores:
        """Return a block's top-K lists, read anew for every pass over them."""
        num_rows = self.scores.num_rows(f"{block}_top_helpers")
        return StreamedScores(num_rows, self.num_candidates, partial(self._batches, block))

    def _batches(self, block: str) -> Iterator[SparseScores]:
        table = f"{block}_top_helpers"
        for batch in self.scores.iter_batches(table, ["helper_index", "influence"], BATCH_ROWS):
            helper = cast("pa.ListArray[Any]", batch.column(0))
            influence = cast("pa.ListArray[Any]", batch.column(1))
            indptr = np.zeros(batch.num_rows + 1, np.int64)
            np.cumsum(np.asarray(helper.value_lengths().to_numpy(), np.int64), out=indptr[1:])
            scaled, index = self.scale.apply(influence.flatten().to_numpy()), helper.flatten()
            if self.quality_J is not None:
                scaled = scaled * self.quality_J[index.to_numpy()]
            yield SparseScores(indptr, index.to_numpy(), scaled, self.num_candidates)

    def column_max(self) -> np.ndarray:
        """Return max_q s_qj over all targets for every candidate j: [J] float32.

        A candidate that nothing is known of (labels as scores) adds nothing, like an entry that no
        list holds.
        """
        largest = np.full(self.num_candidates, self.scale.min, np.float32)
        for batch in self.scores.iter_batches("column_max", ["helper_index", "max_influence"]):
            np.maximum.at(largest, batch.column(0).to_numpy(), batch.column(1).to_numpy())
        scaled = self.scale.apply(largest)
        return scaled if self.quality_J is None else scaled * self.quality_J

    def existing_max(self, block: str) -> np.ndarray:
        """Return max_p s_ip over all existing examples p for every row i: [I] float32."""
        table = self.scores.read(f"{block}_existing_influence", ["max_influence"])
        return self.scale.apply(table["max_influence"].to_numpy())

    def existing_sum(self, block: str) -> np.ndarray:
        """Return sum_p s_ip over all existing examples p for every row i: [I] float64."""
        table = self.scores.read(f"{block}_existing_influence", ["sum"])
        mean_I = table["sum"].to_numpy() / (ONE * self.num_existing)
        # A mean of scaled influence is a scaled mean; rounding may leave it below the minimum.
        return np.maximum(self.scale.apply_to_means(mean_I), 0.0) * self.num_existing

    def unranked(self) -> np.ndarray:
        """Return the candidates that must not be picked because they have no score, ascending.

        There are none where a network scored; a teacher's labels may have failed.
        """
        table = self.scores.read("unranked", ["row_index"], schemas.UNRANKED)
        return np.asarray(table["row_index"].to_numpy(), np.int64)

    def own_scores(self) -> np.ndarray:
        """Return every candidate's raw, signed score [J]; 0 of ``unranked``.

        What is positive is multiplied by the quality.
        """
        score_J = np.nan_to_num(self.raw_scores(), nan=0.0)
        if self.quality_J is None:
            return score_J
        return np.where(score_J > 0, score_J * self.quality_J, score_J)

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


# The objectives of the recipe, made of these tables.


def _random(selection: SelectionConfig, tables: ScoreTables) -> Objective:
    """Return what a random ranking is measured by: it has no value of its own."""
    if tables.ground_block == POINTS:
        return top_scores(tables.own_scores())
    return facility_location(tables.lists(tables.ground_block))


def _conditional_gain(selection: SelectionConfig, tables: ScoreTables) -> Objective:
    block = tables.ground_block
    return facility_location_conditional_gain(
        tables.lists(block), tables.existing_max(block), selection.nu
    )


_BUILDERS: Mapping[str, Callable[[SelectionConfig, ScoreTables], Objective]] = {
    "facility_location": lambda _, tables: facility_location(tables.lists(WITHIN)),
    PAIR_COVERAGE: lambda _, tables: facility_location(tables.lists(tables.ground_block)),
    "facility_location_pool_mutual_information": (
        lambda selection, tables: facility_location_query_mutual_information(
            tables.lists(WITHIN), tables.column_max(), selection.eta
        )
    ),
    "facility_location_mutual_information": (
        lambda selection, tables: facility_location_mutual_information(
            tables.lists(WITHIN), tables.column_max(), selection.eta
        )
    ),
    "facility_location_query_mutual_information": (
        lambda selection, tables: facility_location_query_mutual_information(
            tables.lists(CROSS), tables.column_max(), selection.eta
        )
    ),
    "facility_location_conditional_gain": _conditional_gain,
    "graph_cut": lambda selection, tables: graph_cut(tables.lists(WITHIN), selection.redundancy),
    "graph_cut_conditional_gain": (
        lambda selection, tables: graph_cut_conditional_gain(
            tables.lists(WITHIN), tables.existing_sum(WITHIN), selection.redundancy, selection.nu
        )
    ),
    "graph_cut_mutual_information": (
        lambda selection, tables: graph_cut_mutual_information(
            tables.lists(CROSS), selection.redundancy
        )
    ),
    "saturated_coverage": (
        lambda selection, tables: saturated_coverage(
            tables.lists(tables.ground_block), selection.saturation
        )
    ),
    # Facility location says what the picks are worth.
    ROUND_ROBIN: lambda _, tables: facility_location(tables.lists(CROSS)),
    TOP_K: lambda _, tables: top_scores(tables.own_scores()),
    RANDOM: _random,
}


def build_objective(selection: SelectionConfig, tables: ScoreTables) -> Objective:
    """Return the set function of a resolved selection; its lists stay in storage."""
    return _BUILDERS[selection.objective](selection, tables)


# The tables of a finished selection: ranking, coverage, and strong candidates that were skipped.


def ranking_table(ranking: Ranking, names: pa.Table, best_I: np.ndarray) -> pa.Table:
    """Write the ranking with ids, how many rows each pick covers best, and what decided it."""
    picked = names.take(pa.array(ranking.order, pa.int64()))
    num_covered = np.bincount(best_I[best_I >= 0], minlength=names.num_rows)[ranking.order]
    return pa.Table.from_pydict(
        {
            "rank": pa.array(np.arange(1, len(ranking.order) + 1), pa.int32()),
            "row_index": picked["row_index"],
            "example_id": picked["example_id"],
            "gain": pa.array(ranking.gain, pa.float64()),
            "objective": pa.array(ranking.objective, pa.float64()),
            "num_tokens": picked["num_tokens"].cast(pa.int64()),
            "num_covered": pa.array(num_covered, pa.int32()),
            "decided_by": pa.array([DECIDED_BY[code] for code in ranking.decided], pa.string()),
        },
        schema=schemas.RANKING,
    )


def coverage_table(best_I: np.ndarray, value_I: np.ndarray) -> pa.Table:
    """Write each ground-set row's best pick; null where no pick is in its list."""
    return pa.table(
        {
            "row_index": pa.array(np.arange(len(best_I)), pa.int64()),
            "covered_by": pa.array(best_I, pa.int64(), mask=best_I < 0),
            "coverage": pa.array(value_I, pa.float32()),
        },
        schema=schemas.COVERAGE,
    )


def skipped_table(
    gains: MarginalGains,
    names: pa.Table,
    tie_rank_J: np.ndarray,
    embeddings: StageOutput,
    excluded: np.ndarray,
) -> pa.Table:
    """Write the candidates that are worth most alone and were neither picked nor excluded.

    With each the pick that it is most redundant with.
    """
    open_J = gains.rank_J < 0
    open_J[excluded] = False
    rows = np.flatnonzero(open_J)
    rows = rows[np.lexsort((tie_rank_J[rows], -gains.alone_J[rows]))][:SKIPPED_SHOWN]
    redundant = gains.redundant_with(rows)
    pick = np.array([int(picks[0]) if len(picks) else -1 for picks, _ in redundant], np.int64)
    amount = np.array([float(lost[0]) if len(picks) else 0.0 for picks, lost in redundant])
    found, alone = pick >= 0, gains.alone_J[rows]
    share = np.zeros(len(rows))
    np.divide(amount, alone, out=share, where=alone > 0)
    cosine = np.full(len(rows), np.nan)
    cosine[found] = cosines(embeddings, rows[found], pick[found])
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_id": names["example_id"].take(pa.array(rows, pa.int64())),
            "alone_gain": pa.array(alone, pa.float64()),
            "final_gain": pa.array(gains.gain_J[rows], pa.float64()),
            "redundant_with": pa.array(pick, pa.int64(), mask=~found),
            "redundant_with_rank": pa.array(gains.rank_J[pick] + 1, pa.int32(), mask=~found),
            "redundant_share": pa.array(share, pa.float64()),
            "cosine": pa.array(cosine, pa.float64(), mask=~found),
        },
        schema=schemas.SKIPPED,
    )


def cosines(embeddings: StageOutput, rows_N: np.ndarray, others_N: np.ndarray) -> np.ndarray:
    """Return the cosine of the embeddings of candidates, pair by pair: [N] float64."""
    if not len(rows_N):
        return np.zeros(0)
    both = np.concatenate([rows_N, others_N])
    vectors = column_matrix(embeddings.take_rows("candidates", both, ["embedding"])["embedding"])
    a_ND, b_ND = (part.astype(np.float64) for part in np.split(vectors, 2))
    norms = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return (a_ND * b_ND).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)


def read_directions(embeddings: StageOutput, columns_S: np.ndarray) -> np.ndarray:
    """Return the directions of some candidates' embeddings [S, D], in the order given; one pass."""
    num_candidates = embeddings.num_rows("candidates")
    place_J = np.full(num_candidates, -1, np.int64)
    place_J[columns_S] = np.arange(len(columns_S))
    found_SD, first = np.zeros((len(columns_S), 0), np.float32), 0
    for batch in embeddings.iter_batches("candidates", ["embedding"], BATCH_ROWS):
        place = place_J[first : first + batch.num_rows]
        vectors = column_matrix(pa.chunked_array([batch.column(0)]))
        width = direction_width(num_candidates, vectors.shape[1])
        if found_SD.shape[1] != width:
            found_SD = np.zeros((len(columns_S), width), np.float32)
        found_SD[place[place >= 0]] = directions(vectors[place >= 0], width)
        first += batch.num_rows
    return found_SD


def has_quality(profiles: StageOutput) -> bool:
    """Return whether profiles say how good a candidate is."""
    first = next(iter(profiles.iter_batches("candidates")), None)
    return first is not None and "quality" in first.schema.names


def read_quality(profiles: StageOutput, num_candidates: int) -> np.ndarray:
    """Return the quality of every candidate: [J] float32; 1 where the profile is missing.

    Raises:
        StageError: If a quality does not lie in [0, 1].
    """
    table = profiles.read("candidates", ["row_index", "quality"]).drop_null()
    quality = table["quality"].to_numpy().astype(np.float32)
    if not ((quality >= 0) & (quality <= 1)).all():
        raise StageError(f"{profiles.folder}: a candidate's quality does not lie in [0, 1]")
    quality_J = np.ones(num_candidates, np.float32)
    quality_J[table["row_index"].to_numpy()] = quality
    return quality_J
