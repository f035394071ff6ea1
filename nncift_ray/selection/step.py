"""Select: lists of helpers or sums of columns to a ranked subset, greedily."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import iter_groups
from nncift_ray.errors import DataError, ShapeError, StageError, StorageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import POINTS, TABLE_OF_ROLE, helped_role
from nncift_ray.runtime.shards import ATTEMPTS_FOLDER
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.selection.greedy import (
    Budget,
    Constraints,
    Progress,
    Ranking,
    Rule,
    cost_benefit_greedy,
    lazy_greedy,
    naive_greedy,
    random_ranking,
    stochastic_greedy,
)
from nncift_ray.selection.objectives import Objective, Problem, coverage
from nncift_ray.selection.partitioned import (
    PartTask,
    first_tasks,
    greedi,
    multi_round_greedy,
    search_part,
)
from nncift_ray.selection.problem import ColumnSource
from nncift_ray.selection.redundancy import Standing, StandingInParts, stand, stand_in_parts
from nncift_ray.selection.tables import (
    PARTITIONED,
    RANDOM,
    Quotas,
    ScoreTables,
    SelectionPlan,
    build_objective,
    coverage_table,
    random_objective,
    ranking_table,
    skipped_table,
    source_of_parts,
)


@dataclass(frozen=True)
class Search:
    """Everything an optimiser is given."""

    plan: SelectionPlan
    objective: Objective
    budget: Budget
    costs_J: np.ndarray | None
    tie_rank_J: np.ndarray
    constraints: Constraints | None
    on_progress: Callable[[Progress], None]
    prefixes: Mapping[Rule, np.ndarray]
    parts: StageOutput | None = None  # of a partitioned search, like what it reads columns from
    source: ColumnSource | None = None

    def run(self) -> Ranking:
        """Search.

        Raises:
            DataError: If the limits cannot be kept: quotas or lists that contradict the budget.
        """
        try:
            return self._run()
        except ShapeError:
            raise
        except ValueError as error:
            raise DataError(f"selection: {error}") from error

    def _run(self) -> Ranking:
        common: dict[str, Any] = {
            "tie_rank": self.tie_rank_J,
            "constraints": self.constraints,
            "on_progress": self.on_progress,
            "stop_gain": self.plan.stop_gain,
        }
        kind, plan = self.plan.optimizer, self.plan
        if plan.objective == RANDOM:
            return random_ranking(
                self.objective,
                self.budget,
                seed=plan.seed,
                costs=self.costs_J,
                tie_rank=self.tie_rank_J,
                constraints=self.constraints,
            )
        if kind == "cost_benefit":
            costs_J = np.zeros(0) if self.costs_J is None else self.costs_J
            return cost_benefit_greedy(
                self.objective, self.budget, costs=costs_J, prefixes=self.prefixes, **common
            )
        if self.parts is not None and self.source is not None:
            return self._merge_parts(self.parts, self.source)
        common |= {"costs": self.costs_J, "prefix": self.prefixes.get("gain", ())}
        if kind == "stochastic":
            return stochastic_greedy(
                self.objective, self.budget, epsilon=plan.epsilon, seed=plan.seed, **common
            )
        search = naive_greedy if kind == "naive" else lazy_greedy
        return search(self.objective, self.budget, **common)

    def _merge_parts(self, parts: StageOutput, source: ColumnSource) -> Ranking:
        """Go on from what the parts of the first round picked."""
        plan = self.plan
        common: dict[str, Any] = {
            "num_parts": plan.num_partitions(source.num_columns),
            "seed": plan.seed,
            "run": FirstRoundDone(read_part_rankings(parts)),
            "tie_rank": self.tie_rank_J,
            "constraints": self.constraints,
            "stop_gain": plan.stop_gain,
        }
        if plan.num_rounds is None:
            return greedi(source, self.budget, **common)
        common |= {"num_rounds": plan.num_rounds, "bounding": plan.bounding}
        return multi_round_greedy(source, self.budget, **common)


class FirstRoundDone:
    """Gives the results of a first round that is done; whatever else there is to run, runs here."""

    def __init__(self, results: list[Ranking]) -> None:
        """Keep the results of the first round."""
        self._results: list[Ranking] | None = results

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[Ranking]:
        """Return the results of some tasks, in their order.

        Raises:
            StageError: If the first round was of other parts.
        """
        if self._results is None or function is not search_part:  # bounding comes before
            return map(function, tasks)
        done, self._results = self._results, None
        if len(done) != len(tasks):
            raise StageError(f"{len(done)} parts were searched, the plan has {len(tasks)}")
        return done


def read_part_rankings(parts: StageOutput) -> list[Ranking]:
    """Read what each part picked; parts without a candidate are left out.

    There may be none at all, where bounding has settled everything.
    """
    table = parts.read("part_picks", schema=schemas.PART_PICKS)
    if table.num_rows == 0:
        return []
    part, order, gain = (table[name].to_numpy() for name in ("part", "row_index", "gain"))
    starts = np.flatnonzero(np.r_[True, part[1:] != part[:-1]])
    return [
        Ranking(order[at], gain[at], np.cumsum(gain[at]))
        for at in (slice(a, b) for a, b in zip(starts, [*starts[1:], len(part)], strict=True))
    ]


# What a selection has picked so far, kept in its stage's folder: a rerun goes on from there.

PICKS_NAME = "picks.arrow"
SAVE_SECONDS = 5.0

PICKS = pa.schema(
    [
        pa.field("rule", pa.string(), nullable=False),  # what was ranked by: see core's Progress
        pa.field("limit", pa.int64(), nullable=False),  # most picks there may be
        pa.field("value", pa.float64(), nullable=False),  # of the objective
        pa.field("gain", pa.float64(), nullable=False),  # of the last pick
        pa.field("order", pa.list_(pa.int64()), nullable=False),
    ]
)


class SavedPicks:
    """Saves progress, and gives back what an earlier attempt had saved."""

    def __init__(self, folder: Location, every_seconds: float = SAVE_SECONDS) -> None:
        """Keep the picks of a stage's folder."""
        self._location = folder / ATTEMPTS_FOLDER / PICKS_NAME
        self._every_seconds = every_seconds
        self._rows = {row["rule"]: row for row in read_picks(folder)}
        self._last = time.monotonic()

    def prefixes(self) -> dict[Rule, np.ndarray]:
        """Return what was picked by each rule, in order; nothing at first."""
        return {rule: np.asarray(row["order"], np.int64) for rule, row in self._rows.items()}

    def save(self, progress: Progress) -> None:
        """Keep how far a search is, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._last < self._every_seconds and progress.picked < progress.limit:
            return
        self._last = now
        self._rows[progress.rule] = {
            "rule": progress.rule,
            "limit": progress.limit,
            "value": progress.value,
            "gain": progress.gain,
            "order": progress.order.tolist(),
        }
        table = pa.Table.from_pylist(list(self._rows.values()), schema=PICKS)
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, PICKS) as writer:
            writer.write_table(table)
        self._location.write_bytes(out.getvalue().to_pybytes())


def read_picks(folder: Location) -> list[dict[str, Any]]:
    """Read the saved picks of a stage's folder: rows of PICKS, one a rule; none at first.

    Raises:
        StorageError: If the file is damaged.
    """
    location = folder / ATTEMPTS_FOLDER / PICKS_NAME
    if not location.exists():
        return []
    try:
        with pa.ipc.open_file(location.read_bytes()) as reader:
            return reader.read_all().cast(PICKS).to_pylist()
    except (pa.ArrowInvalid, ValueError) as error:
        raise StorageError(
            f"{location}: saved picks cannot be read ({error}). Delete the file: the selection "
            "then starts again."
        ) from error


def describe_picks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how far a selection is, in one line."""
    if not rows:
        return ""
    row = rows[-1]
    return (
        f"{len(row['order']):,} of at most {row['limit']:,} picks, value {row['value']:,.4g}, "
        f"last gain {row['gain']:,.3g}"
    )


# Quotas and must-lists of a selection plan as constraints on candidates by number.

NAMED = 3  # ids or groups in a message
SHARE_ROUNDING = 1e-9  # 0.3 of 10 is 3


def read_constraints(
    plan: SelectionPlan,
    ids_J: np.ndarray,
    examples: StageOutput | None,
    unranked: np.ndarray | None = None,
) -> Constraints | None:
    """Look up what limits the picks; None where nothing does.

    Args:
        plan: What to select.
        ids_J: Id of each candidate.
        examples: Of the deduplicate stage; read for quotas only.
        unranked: Candidates without a score, which are not picked either.

    Raises:
        DataError: If an id is of no candidate or of one without a score, a quota of no group, or a
            group is too small.
    """
    unranked = np.zeros(0, np.int64) if unranked is None else unranked
    if not (plan.quotas.given or plan.include or plan.exclude or len(unranked)):
        return None
    include = find_rows(ids_J, plan.include, "selection.include")
    exclude = find_rows(ids_J, plan.exclude, "selection.exclude")
    both = np.intersect1d(include, exclude)
    if len(both):
        raise DataError(f"selection.include and exclude both name {_some(ids_J[both].tolist())}")
    without = np.intersect1d(include, unranked)
    if len(without):
        raise DataError(
            f"selection.include names {_some(ids_J[without].tolist())}, which the teacher gave no "
            "label, so nothing says what it is worth; the errors of the label stage say why"
        )
    exclude = np.union1d(exclude, unranked)
    if not plan.quotas.given or examples is None:
        return Constraints(include=include.tolist(), exclude=exclude.tolist())
    names, group_J = read_groups(examples, plan.quotas.field)
    least, most = count_quotas(plan.quotas, names, plan.budget(len(ids_J)).max_count)
    _check_sizes(names, least, np.bincount(np.delete(group_J, exclude), minlength=len(names)))
    return Constraints(
        group_J=group_J,
        min_per_group=least,
        max_per_group=most,
        include=include.tolist(),
        exclude=exclude.tolist(),
    )


def describe_quotas(
    plan: SelectionPlan, num_candidates: int, examples: StageOutput | None
) -> dict[str, dict[str, int | None]]:
    """Return least and most picks of each group that has a quota."""
    if not plan.quotas.given or examples is None:
        return {}
    names, _ = read_groups(examples, plan.quotas.field)
    least, most = count_quotas(plan.quotas, names, plan.budget(num_candidates).max_count)
    return {
        name: {"least": low, "most": high}
        for name, low, high in zip(names, least, most, strict=True)
        if low or high is not None
    }


def find_rows(ids_J: np.ndarray, wanted: Sequence[str], key: str) -> np.ndarray:
    """Return the row of each wanted id, in the order given.

    Raises:
        DataError: Naming the first ids that are of no candidate.
    """
    if not wanted:
        return np.zeros(0, np.int64)
    unique = np.asarray(list(dict.fromkeys(wanted)))
    order_J = np.argsort(ids_J, kind="stable")
    place = np.minimum(np.searchsorted(ids_J, unique, sorter=order_J), len(ids_J) - 1)
    row = order_J[place]
    missing = unique[ids_J[row] != unique].tolist()
    if missing:
        raise DataError(
            f"{key}: {len(missing):,} of {len(unique):,} ids are of no candidate of this run, the "
            f"first: {_some(missing)}. Ids are in export/ids.txt and in the tables of deduplicate."
        )
    return row


def read_groups(examples: StageOutput, field: str | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the groups, sorted, and the group of every candidate [J] int32."""
    code: dict[str, int] = {}
    group_J = np.fromiter(
        (code.setdefault(name, len(code)) for name in iter_groups(examples, field)), np.int32
    )
    names = sorted(code)
    new_code = np.empty(len(code), np.int32)
    new_code[[code[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return names, new_code[group_J]


def count_quotas(
    quotas: Quotas, names: Sequence[str], max_count: int | None
) -> tuple[list[int], list[int | None]]:
    """Return least and most picks of each group [G]; shares of the budget become counts.

    Raises:
        DataError: If a quota names a group that no candidate is of.
    """
    least = quotas.least or {}
    most: Mapping[str, float | int] = quotas.most if isinstance(quotas.most, Mapping) else {}
    unknown = sorted({*least, *most} - set(names))
    if unknown:
        field = "source file" if quotas.field is None else f"field '{quotas.field}'"
        raise DataError(
            f"selection.quotas: no candidate is of the group {_some(unknown)} ({field}). Groups "
            f"here: {_some(names, 10)}"
        )
    for_all = None if isinstance(quotas.most, Mapping) else quotas.most
    lows = [_count(least.get(name, 0), max_count, math.ceil, -SHARE_ROUNDING) for name in names]
    highs: list[int | None] = []
    for name in names:
        quota = most.get(name, for_all)
        highs.append(
            None if quota is None else _count(quota, max_count, math.floor, SHARE_ROUNDING)
        )
    return lows, highs


def _count(
    quota: float | int, max_count: int | None, whole: Callable[[float], int], slack: float
) -> int:
    if isinstance(quota, int) or max_count is None:
        return int(quota)
    return whole(quota * max_count + slack)


def _check_sizes(names: Sequence[str], least: Sequence[int], size_G: np.ndarray) -> None:
    for name, need, size in zip(names, least, size_G.tolist(), strict=True):
        if need > size:
            raise DataError(
                f"selection.quotas.min: group '{name}' is to have {need:,} picks, and has {size:,} "
                "candidates that may be picked"
            )


def _some(names: Sequence[str], most: int = NAMED) -> str:
    more = ", ..." if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


# Select: lists of helpers or sums of columns to a ranked subset, greedily.

ID_COLUMNS = ["row_index", "example_id", "num_tokens"]


class SelectStage(Stage):
    """Write the ``ranking``, who covers every row (``coverage``), and who was ``skipped``."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 2
    unit: ClassVar[str] = "rankings"

    def __init__(
        self,
        scores: StageOutput,
        embeddings: StageOutput,
        plan: SelectionPlan,
        *,
        examples: StageOutput | None = None,
        parts: StageOutput | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """Select from scored pairs.

        Args:
            scores: Of the score stage.
            embeddings: They hold ids and token counts.
            plan: What to select.
            examples: Of the deduplicate stage; needed where the plan has quotas.
            parts: Of the select_partitions stage, where the search is partitioned.
            save_seconds: Least time between two savings of the picks so far; changes no row.
        """
        self._scores, self._embeddings, self._plan = scores, embeddings, plan
        self._save_seconds, self._parts = save_seconds, parts
        if (parts is None) == (plan.optimizer == PARTITIONED):
            raise StageError("a partitioned search, and no other, merges the picks of its parts")
        self._examples = examples if plan.reads_examples else None
        if plan.reads_examples and examples is None:
            raise StageError("selection.quotas needs the examples, whose records name the groups")

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Ranking, coverage and skipped candidates."""
        return {
            "ranking": schemas.RANKING,
            "coverage": schemas.COVERAGE,
            "skipped": schemas.SKIPPED,
        }

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Scores and ids; with quotas, the records that name groups."""
        inputs = {"scores": self._scores, "embeddings": self._embeddings}
        more = {"examples": self._examples, "parts": self._parts}
        return inputs | {name: output for name, output in more.items() if output is not None}

    def settings(self) -> dict[str, Any]:
        """The plan."""
        return self._plan.settings()

    def num_items(self) -> int:
        """One ranking."""
        return 1

    def progress(self, folder: Location) -> str:
        """Say how many picks there are so far."""
        return describe_picks(read_picks(folder))

    def make_worker(self) -> Worker:
        """Return the selection."""

        def select(shard: Shard, sink: Sink) -> None:
            names = self._embeddings.read("candidates", ID_COLUMNS)
            ids_J = np.asarray(names["example_id"].to_pylist())
            rank_J = np.argsort(np.argsort(ids_J, kind="stable"), kind="stable")
            tables = ScoreTables.open(self._scores, names.num_rows)
            num_existing = self._embeddings.num_rows("existing")
            source: ColumnSource | None = None
            if self._in_parts:
                objective, source = source_of_parts(self._plan, tables, num_existing)
            else:
                objective = build_objective(self._plan, tables, num_existing)
            search = self._search(objective, source, tables, names, ids_J, rank_J, sink.folder)
            ranking = search.run()
            source = source or objective.problem()
            self._write(ranking, objective, source, tables, names, ids_J, rank_J, sink)

        return select

    def _search(
        self,
        objective: Objective,
        source: ColumnSource | None,
        tables: ScoreTables,
        names: pa.Table,
        ids_J: np.ndarray,
        rank_J: np.ndarray,
        folder: Location,
    ) -> Search:
        saved = SavedPicks(folder, self._save_seconds)
        tokens = names["num_tokens"].to_numpy().astype(np.float64)
        return Search(
            plan=self._plan,
            objective=objective,
            budget=self._plan.budget(names.num_rows),
            costs_J=tokens if self._plan.tokens is not None else None,
            tie_rank_J=rank_J,
            constraints=read_constraints(self._plan, ids_J, self._examples, tables.unranked()),
            on_progress=saved.save,
            prefixes=saved.prefixes(),
            parts=self._parts,
            source=source,
        )

    def _write(
        self,
        ranking: Ranking,
        objective: Objective,
        source: ColumnSource,
        tables: ScoreTables,
        names: pa.Table,
        ids_J: np.ndarray,
        rank_J: np.ndarray,
        sink: Sink,
    ) -> None:
        plan = self._plan
        best_I, value_I = coverage(objective, ranking.order)
        standing = self._stand(source, ranking, best_I)
        unranked = tables.unranked()
        excluded = np.union1d(find_rows(ids_J, plan.exclude, "selection.exclude"), unranked)
        sink.facts.update(
            scale_min=tables.scale.min,
            scale_max=tables.scale.max,
            random_objective=random_objective(source, len(ranking.order), unranked),
            upper_bound=ranking.upper_bound,
            share_of_best=ranking.share_of_best,
            stopped_by=ranking.stopped_by,
            ranked_by=ranking.rule,
            optimizer=plan.optimizer,
            num_parts=plan.num_partitions(len(ids_J)) if self._in_parts else None,
            num_rounds=plan.rounds,
            num_tokens=int(names["num_tokens"].to_numpy()[ranking.order].sum()),
            covers=self._covers(),
            quotas=describe_quotas(self._plan, len(ids_J), self._examples),
        )
        sink.write("ranking", ranking_table(ranking, names, best_I))
        sink.write("coverage", coverage_table(best_I, value_I))
        sink.write("skipped", skipped_table(standing, names, rank_J, self._embeddings, excluded))

    @property
    def _in_parts(self) -> bool:
        """Whether no machine is to hold all lists; a random ranking has no parts to merge."""
        return self._plan.optimizer == PARTITIONED and self._plan.objective != RANDOM

    def _stand(
        self, source: ColumnSource, ranking: Ranking, best_I: np.ndarray
    ) -> Standing | StandingInParts:
        if isinstance(source, Problem):
            return stand(source, ranking.order, best_I)
        num_parts = self._plan.num_partitions(source.num_columns)
        return stand_in_parts(source, ranking.order, best_I, num_parts)

    def _covers(self) -> str:
        """Name the table whose examples the rows of ``coverage`` are."""
        block = self._plan.ground_block
        return "" if block == POINTS else TABLE_OF_ROLE[helped_role(block)]


# Select in parts: the first round of a partitioned search, one part of the candidates an item.


@dataclass(frozen=True)
class PartitionInputs:
    """What a part is searched in."""

    scores: StageOutput
    embeddings: StageOutput
    examples: StageOutput | None  # where the plan has quotas


class SelectPartitionsStage(Stage):
    """Write ``part_picks``: what each part of the candidates would pick by itself."""

    name: ClassVar[str] = "select_partitions"
    unit: ClassVar[str] = "parts"
    memory_advice: ClassVar[str] = (
        "raise selection.optimizer.partitions: an actor holds the lists' entries of one part at a "
        "time; or run fewer of its actors (selection.optimizer.pool.num_actors)"
    )

    def __init__(self, inputs: PartitionInputs, plan: SelectionPlan) -> None:
        """Search the parts of a plan."""
        self._inputs, self._plan = inputs, plan

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Picks of each part."""
        return {"part_picks": schemas.PART_PICKS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Scores and ids; with quotas, the records that name groups."""
        found = self._inputs
        inputs = {"scores": found.scores, "embeddings": found.embeddings}
        return inputs if found.examples is None else inputs | {"examples": found.examples}

    def settings(self) -> dict[str, Any]:
        """The plan."""
        return self._plan.settings()

    def num_items(self) -> int:
        """Parts of the first round."""
        return self._plan.num_partitions(self._inputs.embeddings.num_rows("candidates"))

    def make_worker(self) -> Worker:
        """Read what the parts share; each part reads its own entries of the lists."""
        tasks = self._tasks()

        def search_parts(shard: Shard, sink: Sink) -> None:
            for part in range(shard.start, shard.stop):
                # A part that no candidate fell into has no search.
                ranking = search_part(tasks[part]) if part < len(tasks) else None
                order = np.zeros(0, np.int64) if ranking is None else ranking.order
                gain = np.zeros(0) if ranking is None else ranking.gain
                sink.write("part_picks", part_picks_table(part, order, gain))

        return search_parts

    def _tasks(self) -> list[PartTask]:
        plan, names = self._plan, self._inputs.embeddings.read("candidates", ["example_id"])
        ids_J = np.asarray(names["example_id"].to_pylist())
        rank_J = np.argsort(np.argsort(ids_J, kind="stable"), kind="stable")
        tables = ScoreTables.open(self._inputs.scores, len(ids_J))
        num_existing = self._inputs.embeddings.num_rows("existing")
        try:
            _, source = source_of_parts(plan, tables, num_existing)
            return first_tasks(
                source,
                plan.budget(len(ids_J)),
                num_parts=self.num_items(),
                num_rounds=plan.num_rounds,
                seed=plan.seed,
                tie_rank=rank_J,
                constraints=read_constraints(plan, ids_J, self._inputs.examples, tables.unranked()),
                bounding=plan.bounding,
            )
        except ValueError as error:
            raise DataError(f"selection: {error}") from error


def part_picks_table(part: int, order: np.ndarray, gain: np.ndarray) -> pa.Table:
    """Write the picks of a part, best first."""
    return pa.table(
        {
            "part": pa.array(np.full(len(order), part), pa.int32()),
            "row_index": pa.array(order, pa.int64()),
            "gain": pa.array(gain, pa.float64()),
        },
        schema=schemas.PART_PICKS,
    )
