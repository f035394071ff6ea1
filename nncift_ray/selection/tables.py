"""The tables of a finished selection: ranking, coverage, and strong candidates that were skipped.

Suffixes: I rows, J candidates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa

from nncift_ray.errors import DataError, StageError, StorageError
from nncift_ray.recipe.sections import Config, TokenBudget
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN
from nncift_ray.scores.exact import best_group_mean, check_sum_range
from nncift_ray.scores.kernel import ONE
from nncift_ray.selection.greedy import Budget, Ranking, evaluate
from nncift_ray.selection.objectives import (
    FacilityLocation,
    FacilityLocationConditionalGain,
    FacilityLocationMutualInformation,
    FacilityLocationQueryMutualInformation,
    GraphCut,
    GraphCutConditionalGain,
    GraphCutMutualInformation,
    Objective,
    SaturatedCoverage,
    TopScores,
    column_source,
)
from nncift_ray.selection.problem import (
    ColumnSource,
    InfluenceScale,
    Scores,
    SparseScores,
    StreamedScores,
)
from nncift_ray.selection.redundancy import Standing, StandingInParts

SKIPPED_SHOWN = 200
#: The steps that hold a run's scores: by a network, or the teacher's own labels; a run has one.
NETWORK_SCORES, TEACHER_SCORES = "score_pairs", "teacher_scores"


def scores_of(outputs: Mapping[str, StageOutput]) -> StageOutput:
    """Return the output that holds a run's scores.

    Raises:
        KeyError: If neither step is finished.
    """
    return outputs[TEACHER_SCORES if TEACHER_SCORES in outputs else NETWORK_SCORES]


def scored_blocks(outputs: Mapping[str, StageOutput]) -> tuple[str, ...]:
    """Return the blocks that a run has scored."""
    return tuple(scores_of(outputs).manifest.settings["blocks"])


def random_objective(source: ColumnSource, size: int, unranked: np.ndarray) -> float:
    """Return the objective of a seeded random subset of the same size, to compare with.

    Candidates without a score are not drawn: no selection may hold them.
    """
    order = np.random.default_rng(0).permutation(source.num_columns)
    order = order[~np.isin(order, unranked)][:size]
    drawn = source.restricted(order)
    return float(evaluate(drawn, np.arange(len(order)))[-1]) if len(order) else 0.0


def ranking_table(ranking: Ranking, names: pa.Table, best_I: np.ndarray) -> pa.Table:
    """Write the ranking with ids and how many rows each pick covers best."""
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
    standing: Standing | StandingInParts,
    names: pa.Table,
    rank_J: np.ndarray,
    embeddings: StageOutput,
    left_out_J: np.ndarray,
) -> pa.Table:
    """Write the candidates that are worth most alone and were not picked, and who took their place.

    Args:
        standing: How the candidates stand beside the selection.
        names: Id of each candidate.
        rank_J: Ranks among equals.
        embeddings: To say how near each is to the pick that took its place.
        left_out_J: Numbers of candidates that were excluded by wish.
    """
    open_J = standing.rank_J < 0
    open_J[left_out_J] = False
    rows = np.flatnonzero(open_J)
    rows = rows[np.lexsort((rank_J[rows], -standing.alone_J[rows]))][:SKIPPED_SHOWN]
    takers = standing.takers_of(rows)
    pick = np.array([int(picks[0]) if len(picks) else -1 for picks, _ in takers], np.int64)
    amount = np.array([float(taken[0]) if len(picks) else 0.0 for picks, taken in takers])
    found = pick >= 0
    share = np.zeros(len(rows))
    np.divide(amount, standing.alone_J[rows], out=share, where=standing.alone_J[rows] > 0)
    cosine = np.full(len(rows), np.nan)
    cosine[found] = cosines(embeddings, rows[found], pick[found])
    return pa.Table.from_pydict(
        {
            "row_index": pa.array(rows, pa.int64()),
            "example_id": names["example_id"].take(pa.array(rows, pa.int64())),
            "alone_gain": pa.array(standing.alone_J[rows], pa.float64()),
            "final_gain": pa.array(standing.gain_J[rows], pa.float64()),
            "taken_by": pa.array(pick, pa.int64(), mask=~found),
            "taken_by_rank": pa.array(standing.rank_J[pick] + 1, pa.int32(), mask=~found),
            "taken_share": pa.array(share, pa.float64()),
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


# What selection reads of the score stage, put on the run's one scale.

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


# What to select: the recipe's wishes as the select stages read them.

TOP_K, RANDOM = "top_k", "random"
PARTITIONED = "partitioned"
CANDIDATES_A_PART = 50_000  # where the recipe does not say
CONDITIONAL_GAIN = "facility_location_conditional_gain"
GRAPH_CUT_CONDITIONAL_GAIN = "graph_cut_conditional_gain"
GRAPH_CUTS = ("graph_cut", GRAPH_CUT_CONDITIONAL_GAIN)  # those with pairs among the picks
#: Objectives whose rows are the targets where there are any, else the candidates.
COVER_TARGETS_IF_ANY = (CONDITIONAL_GAIN, "saturated_coverage", RANDOM)
#: Which blocks of pairs each of the other objectives reads that needs pairs.
BLOCKS_OF_OBJECTIVE: Mapping[str, tuple[str, ...]] = {
    "facility_location": (WITHIN,),
    "facility_location_mutual_information": (WITHIN, CROSS),
    "facility_location_query_mutual_information": (CROSS,),
    "graph_cut": (WITHIN,),
    "graph_cut_mutual_information": (CROSS,),
    GRAPH_CUT_CONDITIONAL_GAIN: (WITHIN,),
}
#: Objectives that read every candidate's largest influence on any target.
READS_COLUMN_MAX = (
    "facility_location_mutual_information",
    "facility_location_query_mutual_information",
)


def blocks_of(objective: str, *, pointwise: bool, has_targets: bool) -> tuple[str, ...]:
    """Return the blocks that an objective reads, so what is to be labelled, fitted and scored.

    Args:
        objective: An objective of the recipe.
        pointwise: Whether the teacher scores examples, not pairs.
        has_targets: Whether there are targets.

    Raises:
        ValueError: If the objective needs pairs and the teacher has none.
    """
    if pointwise and objective in (TOP_K, RANDOM):
        return (POINTS,)
    if pointwise:
        raise ValueError(
            "a pointwise teacher scores examples, not pairs, so selection.objective must be top_k "
            f"(given: {objective})"
        )
    if objective in (TOP_K, *COVER_TARGETS_IF_ANY):
        return (CROSS,) if has_targets else (WITHIN,)
    return BLOCKS_OF_OBJECTIVE[objective]


def list_blocks(objective: str, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return those of an objective's blocks of which it reads the lists of best helpers alone.

    Of these, pairs that no list holds need not be scored. Sums (``top_k``) and the largest
    influence of every candidate on any target need every pair.
    """
    if objective == TOP_K:
        return ()
    needs_all = (POINTS, CROSS) if objective in READS_COLUMN_MAX else (POINTS,)
    return tuple(block for block in blocks if block not in needs_all)


def ground_block(blocks: Sequence[str]) -> str:
    """Return the block whose rows an objective covers; of several that is ``within``."""
    return WITHIN if WITHIN in blocks else blocks[0]


@dataclass(frozen=True)
class Quotas:
    """Least and most picks by group: counts, or shares of the budget below 1."""

    field: str | None = None  # of the original record; None: the name of the source file
    least: Mapping[str, float | int] | None = None
    most: Mapping[str, float | int] | float | int | None = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return bool(self.least) or (self.most is not None and self.most != {})


@dataclass(frozen=True)
class SelectionPlan:
    """An objective, one of three budgets, and what limits the picks."""

    objective: str
    blocks: tuple[str, ...]
    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None
    eta: float = 1.0
    nu: float = 1.0
    redundancy: float = 0.5
    saturation: float = 0.1
    optimizer: str = "lazy"
    epsilon: float = 0.01
    partitions: int | None = None
    rounds: int = 1
    bounding: bool = False
    stop_gain: float | None = None
    quotas: Quotas = Quotas()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0

    def budget(self, num_candidates: int) -> Budget:
        """Return the budget for a number of candidates; a fraction is rounded, to at least 1."""
        if self.tokens is not None:
            return Budget(max_cost=float(self.tokens))
        if self.count is not None:
            return Budget(max_count=min(self.count, num_candidates))
        count = max(1, round((self.fraction or 0.0) * num_candidates))
        return Budget(max_count=min(count, num_candidates))

    def num_partitions(self, num_candidates: int) -> int:
        """Return the parts of a partitioned search."""
        return self.partitions or max(2, -(-num_candidates // CANDIDATES_A_PART))

    @property
    def num_rounds(self) -> int | None:
        """Rounds of a search that thins out in several; None where the parts are merged at once."""
        return self.rounds if self.rounds > 1 else None

    @property
    def ground_block(self) -> str:
        """The block whose rows are covered."""
        return ground_block(self.blocks)

    @property
    def reads_examples(self) -> bool:
        """Whether the records of the candidates are needed: for groups."""
        return self.quotas.given

    def settings(self) -> dict[str, Any]:
        """What shapes the ranking, as JSON; of lists of ids, which may be long, a digest."""
        values = dict(self.__dict__)
        values["blocks"] = list(self.blocks)
        values["quotas"] = dict(self.quotas.__dict__)
        for name in ("include", "exclude"):
            ids = getattr(self, name)
            digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32] if ids else None
            values[name] = {"num_ids": len(ids), "sha256": digest}
        return values


# The objective of a selection plan, built from the tables of the score stage.

#: Gives the lists of a block.
Lists = Callable[[str], Scores]


def build_objective(
    plan: SelectionPlan, tables: ScoreTables, num_existing: int = 0, *, streamed: bool = False
) -> Objective:
    """Build the set function of a plan.

    Args:
        plan: What to select.
        tables: Of the score stage.
        num_existing: Examples that the model already has.
        streamed: Whether its lists stay in storage and are read in passes (`column_source`).
    """
    lists = tables.streamed if streamed else tables.lists
    if plan.objective == RANDOM:
        return _yardstick(plan, tables, lists)
    if plan.objective == GRAPH_CUT_CONDITIONAL_GAIN:
        shared_J = tables.existing_sum(WITHIN, num_existing)
        return GraphCutConditionalGain(lists(WITHIN), shared_J, lambda_=plan.redundancy, nu=plan.nu)
    return _BUILDERS[plan.objective](plan, tables, lists)


def source_of_parts(
    plan: SelectionPlan, tables: ScoreTables, num_existing: int
) -> tuple[Objective, ColumnSource]:
    """Build the set function of a partitioned plan, and what reads its columns part by part.

    Bounding a graph cut looks at pairs that lie across parts: its lists are read whole.
    """
    whole = plan.bounding and plan.objective in GRAPH_CUTS
    objective = build_objective(plan, tables, num_existing, streamed=not whole)
    return objective, column_source(objective)


def _yardstick(plan: SelectionPlan, tables: ScoreTables, lists: Lists) -> Objective:
    """Return what a random ranking is measured by: it has no value of its own."""
    if POINTS in plan.blocks:
        return TopScores(tables.scaled_scores())
    return FacilityLocation(lists(plan.ground_block))


def _conditional_gain(plan: SelectionPlan, tables: ScoreTables, lists: Lists) -> Objective:
    block = plan.ground_block
    floor_I = tables.existing_max(block)
    return FacilityLocationConditionalGain(lists(block), floor_I, nu=plan.nu)


_BUILDERS: Mapping[str, Callable[[SelectionPlan, ScoreTables, Lists], Objective]] = {
    TOP_K: lambda plan, tables, lists: TopScores(tables.scaled_scores()),
    "facility_location": lambda plan, tables, lists: FacilityLocation(lists(WITHIN)),
    "facility_location_mutual_information": lambda plan, tables, lists: (
        FacilityLocationMutualInformation(lists(WITHIN), tables.column_max(), plan.eta)
    ),
    "facility_location_query_mutual_information": lambda plan, tables, lists: (
        FacilityLocationQueryMutualInformation(lists(CROSS), tables.column_max(), plan.eta)
    ),
    CONDITIONAL_GAIN: _conditional_gain,
    "graph_cut": lambda plan, tables, lists: GraphCut(lists(WITHIN), lambda_=plan.redundancy),
    "graph_cut_mutual_information": lambda plan, tables, lists: GraphCutMutualInformation(
        lists(CROSS), lambda_=plan.redundancy
    ),
    "saturated_coverage": lambda plan, tables, lists: SaturatedCoverage(
        lists(plan.ground_block), alpha=plan.saturation
    ),
}


# The recipe's ``selection`` section as the plan that the select stage works by.

_ID = re.compile(r"[0-9a-f]{32}")


def selection_plan(config: Config, blocks: Sequence[str]) -> SelectionPlan:
    """Read what to select.

    Args:
        config: The recipe.
        blocks: The blocks that its objective reads.

    Raises:
        DataError: If a list of ids cannot be read.
    """
    selection = config.selection
    budget, optimizer, quotas = selection.budget, selection.optimizer, selection.quotas
    return SelectionPlan(
        objective=config.objective,
        blocks=tuple(blocks),
        fraction=budget if isinstance(budget, float) else None,
        count=budget if isinstance(budget, int) else None,
        tokens=budget.tokens if isinstance(budget, TokenBudget) else None,
        eta=selection.eta,
        nu=selection.nu,
        redundancy=selection.redundancy,
        saturation=selection.saturation,
        optimizer=optimizer.kind,
        epsilon=optimizer.epsilon,
        partitions=optimizer.partitions,
        rounds=optimizer.rounds,
        bounding=optimizer.bounding,
        stop_gain=selection.stop_gain,
        quotas=Quotas(
            quotas.field or config.data.group_by,
            dict(quotas.min),
            dict(quotas.max) if isinstance(quotas.max, Mapping) else quotas.max,
        )
        if quotas.given
        else Quotas(),
        include=read_ids(selection.include, "selection.include"),
        exclude=read_ids(selection.exclude, "selection.exclude"),
        seed=selection.seed,
    )


def read_ids(given: tuple[str, ...] | str, key: str) -> tuple[str, ...]:
    """Return ids as they are listed in the recipe, or in a file with one a line.

    Raises:
        DataError: If the file cannot be read or a line is no id.
    """
    if not isinstance(given, str):
        lines, where = list(given), key
    elif _ID.fullmatch(given):
        lines, where = [given], key
    else:
        where = f"{key}: {given}"
        try:
            text = Location.of(given).read_bytes().decode("utf-8")
        except (StorageError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: the list of ids cannot be read ({error})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if not _ID.fullmatch(line)]
    if wrong:
        raise DataError(
            f"{where}: '{wrong[0][:80]}' is no id of an example. Ids are the 32 hexadecimal digits "
            "of export/ids.txt"
        )
    return tuple(dict.fromkeys(lines))
