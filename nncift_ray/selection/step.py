"""The steps that select: lists of helpers or sums of columns to a ranked subset, greedily."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import fields_of, iter_groups
from nncift_ray.errors import DataError, ShapeError, StageError, StorageError
from nncift_ray.recipe.sections import QuotasConfig, SelectionConfig, TokenBudget
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import POINTS, TABLE_OF_ROLE, helped_role
from nncift_ray.runtime.shards import ATTEMPTS_FOLDER
from nncift_ray.runtime.step import Shard, Stage, Worker, present
from nncift_ray.selection.budgets import Budget, Constraints
from nncift_ray.selection.greedy import (
    NO_PREFIX,
    TINY_SHARE,
    Prefix,
    Progress,
    Ranking,
    Rule,
    cost_benefit_greedy,
    evaluate,
    lazy_greedy,
    random_ranking,
    round_robin_ranking,
    spread_ranking,
)
from nncift_ray.selection.names import PARTITIONED, RANDOM, ROUND_ROBIN
from nncift_ray.selection.objectives import coverage, marginal_gains
from nncift_ray.selection.partitioned import merge_parts, part_tasks, search_part
from nncift_ray.selection.problem import MODULAR, Objective, Problem
from nncift_ray.selection.repeats import read_repeats
from nncift_ray.selection.tables import (
    ScoreTables,
    build_objective,
    coverage_table,
    has_quality,
    ranking_table,
    read_directions,
    read_quality,
    skipped_table,
)
from nncift_ray.selection.ties import DISTANCE, OBJECTIVE, QUALITY, TieBreak

ID_COLUMNS = ["row_index", "example_id", "num_tokens"]
CANDIDATES_PER_PART = 50_000  # where the recipe does not say
PICKS_NAME = "picks.arrow"
SAVE_SECONDS = 5.0
HALF = 0.5
MANY_TINY = 0.1  # of the picks
NUM_NAMED = 3  # ids or groups in a message
SHARE_ROUNDING = 1e-9  # 0.3 of 10 is 3

PICKS = pa.schema(
    [
        pa.field("rule", pa.string(), nullable=False),  # what was ranked by: see Progress
        pa.field("limit", pa.int64(), nullable=False),  # most picks there may be
        pa.field("value", pa.float64(), nullable=False),  # of the objective
        pa.field("gain", pa.float64(), nullable=False),  # of the last pick
        pa.field("order", pa.list_(pa.int64()), nullable=False),
        pa.field("decided", pa.list_(pa.int8()), nullable=False),  # places in DECIDED_BY
    ]
)


@dataclass(frozen=True)
class SearchInputs:
    """What a search is given, read from the finished steps before it."""

    names: pa.Table  # of the candidates: ID_COLUMNS
    tie_rank_J: np.ndarray
    tie_break: TieBreak
    tables: ScoreTables
    objective: Objective
    budget: Budget
    constraints: Constraints
    quotas: Mapping[str, Mapping[str, int | None]]  # least and most picks by group


class _SelectionStage(Stage):
    """What both steps read: scores and ids; with quotas, the records that name groups."""

    def __init__(
        self,
        scores: StageOutput,
        embeddings: StageOutput,
        selection: SelectionConfig,
        examples: StageOutput | None = None,
        profiles: StageOutput | None = None,
        repeats: StageOutput | None = None,
    ) -> None:
        """Select by a resolved section of the recipe (`resolve_selection`)."""
        reads_records = selection.quotas.given or selection.weight_by is not None
        if reads_records and examples is None:
            raise StageError("selection.quotas and weight_by need the examples with their records")
        self._scores, self._embeddings, self._selection = scores, embeddings, selection
        self._examples = examples if reads_records else None
        wanted = profiles is not None and selection.quality == "auto" and has_quality(profiles)
        self._profiles = profiles if wanted else None
        self._repeats = repeats
        self.inputs = present(
            scores=scores,
            embeddings=embeddings,
            examples=self._examples,
            profiles=self._profiles,
            repeats=repeats,
        )

    def settings(self) -> dict[str, Any]:
        """The section; of lists of ids, which may be long, a digest."""
        ids = {name: getattr(self._selection, name) for name in ("include", "exclude")}
        hidden = {"optimizer": {"pool"}, **dict.fromkeys(ids, True)}
        return self._selection.model_dump(mode="json", exclude=hidden) | {
            name: {
                "num_ids": len(listed),
                "sha256": hashlib.sha256("\n".join(listed).encode()).hexdigest()[:32]
                if listed
                else None,
            }
            for name, listed in ids.items()
        }

    @property
    def _worth(self) -> list[str]:
        """What multiplies a candidate's worth, by its key in the recipe."""
        weight = self._selection.weight_by
        by_quality = ["quality (selection.quality)"] if self._profiles is not None else []
        return by_quality + ([f"{weight} (selection.weight_by)"] if weight else [])

    def num_partitions(self) -> int:
        """Parts of a partitioned search."""
        num_candidates = self._embeddings.num_rows("candidates")
        return self._selection.optimizer.partitions or max(
            2, -(-num_candidates // CANDIDATES_PER_PART)
        )

    def _read(self) -> SearchInputs:
        selection, names = self._selection, self._embeddings.read("candidates", ID_COLUMNS)
        tie_rank_J = np.empty(names.num_rows, np.int64)
        tie_rank_J[pc.sort_indices(names["example_id"]).to_numpy()] = np.arange(names.num_rows)
        num_existing = self._embeddings.num_rows("existing")
        quality_J = None
        if self._profiles is not None:
            quality_J = read_quality(self._profiles, names.num_rows)
        if selection.weight_by is not None and self._examples is not None:
            weight_J = read_weights(self._examples, selection.weight_by)
            quality_J = weight_J if quality_J is None else quality_J * weight_J
        tables = ScoreTables.open(self._scores, names.num_rows, num_existing, quality_J)
        tie_break = TieBreak(
            np.ones(names.num_rows, np.float32) if quality_J is None else quality_J,
            partial(read_directions, self._embeddings),
        )
        budget = _budget(selection, names.num_rows)
        constraints, quotas = read_constraints(
            selection,
            names["example_id"],
            self._examples if selection.quotas.given else None,
            tables.unranked(),
            list(read_repeats(self._repeats)) if self._repeats else (),
        )
        objective = build_objective(selection, tables)
        return SearchInputs(
            names, tie_rank_J, tie_break, tables, objective, budget, constraints, quotas
        )


def _budget(selection: SelectionConfig, num_candidates: int) -> Budget:
    """Return the budget for a number of candidates; a fraction is rounded, to at least 1."""
    budget = selection.budget
    if isinstance(budget, TokenBudget):
        return Budget(max_cost=float(budget.tokens))
    count = budget if isinstance(budget, int) else max(1, round(budget * num_candidates))
    return Budget(max_count=min(count, num_candidates))


class SelectStage(_SelectionStage):
    """Write the ``ranking``, who covers every row (``coverage``), and who was ``skipped``."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 4
    unit: ClassVar[str] = "rankings"
    title: ClassVar[str] = "select the subset"
    produces = {
        "ranking": schemas.RANKING,
        "coverage": schemas.COVERAGE,
        "skipped": schemas.SKIPPED,
    }

    def __init__(
        self,
        scores: StageOutput,
        embeddings: StageOutput,
        selection: SelectionConfig,
        examples: StageOutput | None = None,
        parts: StageOutput | None = None,
        save_seconds: float = SAVE_SECONDS,
        profiles: StageOutput | None = None,
        repeats: StageOutput | None = None,
    ) -> None:
        """Select from scored pairs.

        Args:
            scores: Of the score stage.
            embeddings: They hold ids and token counts.
            selection: What to select: the recipe's section, resolved.
            examples: Of the deduplicate stage; needed where there are quotas.
            parts: Of the select_partitions stage, where the search is partitioned.
            save_seconds: Least time between two savings of the picks so far; changes no row.
            profiles: Of the profiles stage: its quality of the candidates multiplies their worth.
            repeats: Of the repeats stage: what it lists is not picked.
        """
        super().__init__(scores, embeddings, selection, examples, profiles, repeats)
        if (parts is None) == (selection.optimizer.kind == PARTITIONED):
            raise StageError("a partitioned search, and no other, merges the picks of its parts")
        self._parts, self._save_seconds = parts, save_seconds
        self.inputs |= present(parts=parts)

    def progress(self, folder: Location) -> str:
        """Say how many picks there are so far."""
        rows = load_picks(folder)
        if not rows:
            return ""
        return (
            f"{len(rows[-1]['order']):,} of at most {rows[-1]['limit']:,} picks, "
            f"value {rows[-1]['value']:,.4g}, last gain {rows[-1]['gain']:,.3g}"
        )

    def notices(self, output: StageOutput) -> list[str]:
        """Say where the objective decided few of the picks, and how strongly quality weighs."""
        facts, num_picks = output.manifest.facts(), output.num_rows("ranking")
        notes: list[str] = []
        if facts["num_tiny_gains"] > MANY_TINY * num_picks:
            notes.append(
                f"{facts['num_decided']:,} of {num_picks:,} picks were decided by the objective: "
                f"{facts['num_tiny_gains']:,} gain less than a thousandth of the mean. Quality "
                f"decided {facts['num_by_quality']:,}, the distance to the picks "
                f"{facts['num_by_distance']:,} (ranking, decided_by; docs/selection.md)"
            )
        if facts["quality"] != "none":
            what = " times ".join(facts["worth"])
            notes.append(
                f"{what} more than halves the worth of {facts['num_halved']:,}"
                f" candidates, {facts['num_halved_picks']:,} of them picked; its mean is "
                f"{facts['mean_quality']:.2f}, of the picks {facts['mean_quality_of_picks']:.2f}"
            )
        return notes

    def make_worker(self) -> Worker:
        """Return the selection."""

        def select(shard: Shard, sink: Sink) -> None:
            given = self._read()
            problem = given.objective.problem() if self._parts is None else None
            checkpoint = PicksCheckpoint(sink.folder, self._save_seconds)
            try:
                ranking = self._search(given, problem, checkpoint)
            except ShapeError:
                raise
            except ValueError as error:  # quotas or lists that contradict the budget
                raise DataError(f"selection: {error}") from error
            self._write(ranking, given, problem, sink)

        return select

    def _search(
        self, given: SearchInputs, problem: Problem | None, checkpoint: PicksCheckpoint
    ) -> Ranking:
        selection, budget = self._selection, given.budget
        common: dict[str, Any] = {
            "tie_rank": given.tie_rank_J,
            "constraints": given.constraints,
        }
        if self._parts is not None:
            rankings = read_part_rankings(self._parts)
            common |= {"stop_gain": selection.stop_gain, "tie_break": given.tie_break}
            return merge_parts(given.objective, budget, rankings, **common)
        assert problem is not None  # noqa: S101
        if isinstance(selection.budget, TokenBudget):
            common["costs"] = given.names["num_tokens"].to_numpy().astype(np.float64)
        if selection.objective == RANDOM:
            return random_ranking(problem, budget, seed=selection.seed, **common)
        if selection.min_distance:
            score_J, distance = given.objective.modular_J, selection.min_distance
            return spread_ranking(problem, budget, score_J, given.tie_break, distance, **common)
        if selection.objective == ROUND_ROBIN:
            return round_robin_ranking(given.objective, budget, **common)
        common |= {"on_progress": checkpoint.save, "stop_gain": selection.stop_gain}
        common["tie_break"] = given.tie_break
        prefixes = checkpoint.prefixes()
        if selection.optimizer.kind == "cost_benefit":
            return cost_benefit_greedy(problem, budget, prefixes=prefixes, **common)
        return lazy_greedy(problem, budget, prefix=prefixes.get("gain", NO_PREFIX), **common)

    def _write(
        self, ranking: Ranking, given: SearchInputs, problem: Problem | None, sink: Sink
    ) -> None:
        objective, names, order = given.objective, given.names, ranking.order
        num_parts = self.num_partitions() if problem is None else None
        block, unranked = given.tables.ground_block, given.tables.unranked()
        source = objective if problem is None else problem
        best_I, value_I = coverage(objective, order)
        gains = marginal_gains(objective, order, best_I, num_parts, problem)
        sink.facts.update(
            scale_min=given.tables.scale.min,
            scale_max=given.tables.scale.max,
            random_objective=_random_objective(source, len(order), unranked),
            upper_bound=ranking.upper_bound,
            share_of_best=ranking.share_of_best,
            stopped_by=ranking.stopped_by,
            ranked_by=ranking.rule,
            optimizer=self._selection.optimizer.kind,
            num_parts=num_parts,
            **_describe_decisions(ranking, is_sum=objective.kind == MODULAR),
            worth=self._worth,
            **_describe_quality(given.tables.quality_J, order),
            num_tokens=int(names["num_tokens"].to_numpy()[order].sum()),
            covers="" if block == POINTS else TABLE_OF_ROLE[helped_role(block)],
            quotas=given.quotas,
        )
        excluded = np.asarray(given.constraints.exclude, np.int64)
        skipped = skipped_table(gains, names, given.tie_rank_J, self._embeddings, excluded)
        sink.write("ranking", ranking_table(ranking, names, best_I))
        sink.write("coverage", coverage_table(best_I, value_I))
        sink.write("skipped", skipped)


def _describe_decisions(ranking: Ranking, *, is_sum: bool) -> dict[str, int]:
    """Return how many picks the objective, quality and distance decided, and how many gain little.

    No gain of a sum of scores is too small to decide: greedy sorts by it.
    """
    counts = {
        "num_decided": int((ranking.decided == OBJECTIVE).sum()),
        "num_by_quality": int((ranking.decided == QUALITY).sum()),
        "num_by_distance": int((ranking.decided == DISTANCE).sum()),
    }
    mean_gain = ranking.value / max(len(ranking.gain), 1)
    num_tiny = 0 if is_sum else int((ranking.gain <= TINY_SHARE * mean_gain).sum())
    return counts | {"num_tiny_gains": 0 if ranking.rule in ("random", "turns") else num_tiny}


def _describe_quality(quality_J: np.ndarray | None, order: np.ndarray) -> dict[str, Any]:
    """Return how strongly quality weighs: means, and how many candidates it more than halves."""
    if quality_J is None:
        return {"quality": "none"}
    picked = quality_J[order]
    return {
        "quality": "auto",
        "mean_quality": float(quality_J.mean(dtype=np.float64)),
        "mean_quality_of_picks": float(picked.mean(dtype=np.float64)) if len(picked) else None,
        "num_halved": int((quality_J < HALF).sum()),
        "num_halved_picks": int((picked < HALF).sum()),
    }


def _random_objective(source: Problem | Objective, size: int, unranked: np.ndarray) -> float:
    """Return the value of a seeded random subset of the same size, to compare with.

    Candidates without a score are not drawn: no selection may hold them.
    """
    order = np.random.default_rng(0).permutation(source.num_columns)
    order = order[~np.isin(order, unranked)][:size]
    if isinstance(source, Objective):
        source, order = source.restricted(order), np.arange(len(order))
    return float(evaluate(source, order)[-1]) if len(order) else 0.0


class SelectPartitionsStage(_SelectionStage):
    """Write ``part_picks``: what each part of the candidates would pick by itself."""

    name: ClassVar[str] = "select_partitions"
    version: ClassVar[int] = 3
    unit: ClassVar[str] = "parts"
    title: ClassVar[str] = "select in parts"
    produces = {"part_picks": schemas.PART_PICKS}
    memory_advice: ClassVar[str] = (
        "raise selection.optimizer.partitions: an actor holds the lists' entries of one part at a "
        "time; or run fewer of its actors (selection.optimizer.pool.num_actors)"
    )

    def num_items(self) -> int:
        """The parts."""
        return self.num_partitions()

    def make_worker(self) -> Worker:
        """Read what the parts share; each part reads its own entries of the lists."""
        given = self._read()
        try:
            tasks = part_tasks(
                given.objective,
                given.budget,
                num_parts=self.num_partitions(),
                seed=self._selection.seed,
                tie_rank=given.tie_rank_J,
                tie_break=given.tie_break,
                constraints=given.constraints,
            )
        except ValueError as error:
            raise DataError(f"selection: {error}") from error

        def search_parts(shard: Shard, sink: Sink) -> None:
            # A part that no candidate fell into has no search.
            for part in range(shard.start, min(shard.stop, len(tasks))):
                ranking = search_part(tasks[part])
                columns = {
                    "part": pa.array(np.full(len(ranking.order), part), pa.int32()),
                    "row_index": pa.array(ranking.order, pa.int64()),
                    "gain": pa.array(ranking.gain, pa.float64()),
                    "decided_by": pa.array(ranking.decided, pa.int8()),
                }
                sink.write("part_picks", pa.table(columns, schema=schemas.PART_PICKS))

        return search_parts


def read_part_rankings(parts: StageOutput) -> list[Ranking]:
    """Return what each part picked; parts without a pick are left out."""
    table = parts.read("part_picks", schema=schemas.PART_PICKS)
    part, order, gain, decided = (table[name].to_numpy() for name in table.column_names)
    edges = np.flatnonzero(np.diff(part, prepend=-1, append=-1))
    return [
        Ranking(order[a:b], gain[a:b], np.cumsum(gain[a:b]), decided[a:b])
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


# What a selection has picked so far, kept in its stage's folder: a rerun goes on from there.


class PicksCheckpoint:
    """Saves the picks so far, and gives back what an earlier attempt had saved."""

    def __init__(self, folder: Location, every_seconds: float = SAVE_SECONDS) -> None:
        """Keep the picks of a stage's folder."""
        self._location = folder / ATTEMPTS_FOLDER / PICKS_NAME
        self._every_seconds = every_seconds
        self._rows = {row["rule"]: row for row in load_picks(folder)}
        self._last = time.monotonic()

    def prefixes(self) -> dict[Rule, Prefix]:
        """Return what was picked by each rule, in order; nothing at first."""
        return {rule: Prefix(row["order"], row["decided"]) for rule, row in self._rows.items()}

    def save(self, progress: Progress) -> None:
        """Save how far a search is, unless that was done a moment ago."""
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
            "decided": progress.decided.tolist(),
        }
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, PICKS) as writer:
            writer.write_table(pa.Table.from_pylist(list(self._rows.values()), schema=PICKS))
        self._location.write_bytes(out.getvalue().to_pybytes())


def load_picks(folder: Location) -> list[dict[str, Any]]:
    """Return the saved picks of a stage's folder: rows of PICKS, one a rule; none at first.

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


# Quotas, must-include and exclude lists of the recipe as constraints on candidates by number.


def read_constraints(
    selection: SelectionConfig,
    ids: pa.ChunkedArray,
    examples: StageOutput | None,
    unranked: np.ndarray,
    repeats: Sequence[int] = (),
) -> tuple[Constraints, dict[str, dict[str, int | None]]]:
    """Look up what limits the picks.

    Args:
        selection: What to select.
        ids: Id of each candidate.
        examples: Of the deduplicate stage; read for quotas only.
        unranked: Candidates without a score, which are not picked either.
        repeats: Candidates that repeat others; they are picked if ``selection.include`` says so.

    Returns:
        The constraints, and the least and most picks of each group that has a quota.

    Raises:
        DataError: If an id is of no candidate or of one without a score, a quota of no group, or a
            group is too small.
    """
    include = find_rows(ids, selection.include, "selection.include")
    exclude = find_rows(ids, selection.exclude, "selection.exclude")
    both = np.intersect1d(include, exclude)
    if len(both):
        raise DataError(f"selection.include and exclude both name {_some(ids.take(both))}")
    without = np.intersect1d(include, unranked)
    if len(without):
        raise DataError(
            f"selection.include names {_some(ids.take(without))}, which the teacher gave no "
            "label, so nothing says what it is worth; the errors of the label stage say why"
        )
    repeated = np.setdiff1d(np.asarray(repeats, np.int64), include)
    exclude = np.union1d(np.union1d(exclude, unranked), repeated)
    lists: dict[str, Any] = {"include": include.tolist(), "exclude": exclude.tolist()}
    if examples is None:
        return Constraints(**lists), {}
    names, group_J = read_groups(examples, selection.quotas.field)
    least, most = count_quotas(selection.quotas, names, _budget(selection, len(ids)).max_count)
    sizes = np.bincount(np.delete(group_J, exclude), minlength=len(names)).tolist()
    for name, need, size in zip(names, least, sizes, strict=True):
        if need > size:
            raise DataError(
                f"selection.quotas.min: group '{name}' is to have {need:,} picks, and has {size:,} "
                "candidates that may be picked"
            )
    quotas = {
        name: {"least": low, "most": high}
        for name, low, high in zip(names, least, most, strict=True)
        if low or high is not None
    }
    return Constraints(group_J, least, most, **lists), quotas


def find_rows(ids: pa.ChunkedArray, wanted: Sequence[str], key: str) -> np.ndarray:
    """Return the row of each wanted id, in the order given.

    Raises:
        DataError: Naming the first ids that are of no candidate.
    """
    unique = list(dict.fromkeys(wanted))
    found = pc.index_in(pa.array(unique, ids.type), value_set=ids)
    missing = [name for name, row in zip(unique, found.to_pylist(), strict=True) if row is None]
    if missing:
        raise DataError(
            f"{key}: {len(missing):,} of {len(unique):,} ids are of no candidate of this run, the "
            f"first: {_some(missing)}. Ids are in export/ids.txt and in the tables of deduplicate."
        )
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


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


def read_weights(examples: StageOutput, field: str) -> np.ndarray:
    """Return a field of every candidate's record, divided by the largest: [J] float32 in [0, 1].

    Raises:
        DataError: If a record lacks the field, or it is no finite number from 0; naming the first.
    """
    values: list[float] = []
    for batch in examples.iter_batches("candidates", ["record", "source", "line"]):
        for row in cast("list[dict[str, Any]]", batch.to_pylist()):
            value: Any = fields_of(row["record"]).get(field)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise DataError(
                    f"selection.weight_by: '{field}' of {row['source']}:{row['line']} is {value!r};"
                    " every candidate needs a finite number from 0 there"
                )
            values.append(float(value))
    weight_J = np.array(values)
    return (weight_J / (weight_J.max(initial=0.0) or 1.0)).astype(np.float32)


def count_quotas(
    quotas: QuotasConfig, names: Sequence[str], max_count: int | None
) -> tuple[list[int], list[int | None]]:
    """Return least and most picks of each group [G]; shares of the budget become counts.

    Raises:
        DataError: If a quota names a group that no candidate is of.
    """
    by_group = quotas.max if isinstance(quotas.max, dict) else {}
    for_all = None if isinstance(quotas.max, dict) else quotas.max
    unknown = sorted({*quotas.min, *by_group} - set(names))
    if unknown:
        field = "source file" if quotas.field is None else f"field '{quotas.field}'"
        raise DataError(
            f"selection.quotas: no candidate is of the group {_some(unknown)} ({field}). Groups "
            f"here: {_some(names, 10)}"
        )

    def count(quota: float | int, whole: Callable[[float], int], slack: float) -> int:
        if isinstance(quota, int) or max_count is None:
            return int(quota)
        return whole(quota * max_count + slack)

    most = [by_group.get(name, for_all) for name in names]
    return (
        [count(quotas.min.get(name, 0), math.ceil, -SHARE_ROUNDING) for name in names],
        [None if quota is None else count(quota, math.floor, SHARE_ROUNDING) for quota in most],
    )


def _some(names: Sequence[str] | pa.ChunkedArray, most: int = NUM_NAMED) -> str:
    more = ", ..." if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
