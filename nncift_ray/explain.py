"""Questions to a run: what helps an example, why it was selected, how two selections differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nncift_ray.corpus.export import ADDED_KEY
from nncift_ray.errors import DataError
from nncift_ray.network.factored import FactoredNetwork, read_network
from nncift_ray.recipe.sections import SelectionConfig, TokenBudget
from nncift_ray.runs import Example, Places, Run
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.scores.exact import top_k_rows, top_k_vector
from nncift_ray.selection.names import (
    NETWORK_SCORES,
    REPEATS,
    TEACHER_SCORES,
    TOP_K,
    resolve_selection,
    scored_blocks,
    scores_of,
)
from nncift_ray.selection.objectives import MarginalGains, coverage, marginal_gains
from nncift_ray.selection.repeats import read_repeats
from nncift_ray.selection.tables import ScoreTables, build_objective, cosines, read_quality

# Query: what helps an example most, and what it helps most, over all pairs.

TILE_ROWS = 65_536
BY_TEACHER = (
    "the run has no network: influence is the teacher's own label, and a pair without one is not "
    "listed"
)
#: What a label of a built-in teacher is measured in.
UNITS = {
    "delift": "difference of DELIFT distances, from -1 to 1",
    "delift_se": "cosine of the two embeddings, from -1 to 1",
    "less": "cosine of gradients, averaged over checkpoints by learning rate",
    "selectit": "SelectIT rating",
    "longest": "thousands of response tokens",
    "ifd": "loss of the response after its prompt over its loss alone; from 1 on, 1 minus it",
    "consistency": "loss of the response after near examples over its loss alone, negative",
    "loss_drop": "share of the loss that a short training on the targets saves",
    "loss_drop_in_context": "nats a response token that targets in the context save",
    "deita": "IFD times quality, or the field selection.weight_by",
    "cosine": "squared cosine of the two embeddings, 0 where it is negative",
    "landmarks": "cosine of gradients, told from the model's states",
    "rds_plus": "cosine of the model's averaged states, from -1 to 1",
}
Direction = Literal["helpers", "helped"]
Best = tuple[np.ndarray, np.ndarray]  # rows or columns and their influence, best first


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One example of a list; influence is raw and signed, in the unit of the labels."""

    rank: int
    influence: float
    example: Example


@dataclass(frozen=True, slots=True)
class InfluenceList:
    """Who helps an example ("helpers"), or whom it helps ("helped"), best first."""

    direction: Direction
    block: str
    of_role: str  # as what the example asked about was taken
    num_scored: int
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """What an example is ranked by where the objective is ``top_k``."""

    value: float
    rank: int  # 1-based, among all candidates; equal scores share the best rank
    num_candidates: int
    meaning: str


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """What a run knows of one example."""

    run_dir: str
    unit: str
    found_as: tuple[Example, ...]  # a target that is also a candidate is found as both
    score: Score | None
    lists: tuple[InfluenceList, ...]
    notes: tuple[str, ...]


def query(run: Run, example_id: str, top: int = 10) -> QueryAnswer:
    """Return what a scored run knows of one example.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Neighbours of each list; the example itself is never one.

    Raises:
        DataError: If no id or several ids begin so.
        StageError: If the run is not scored yet.
    """
    run.need("deduplicate", "label", "fit", "project", NETWORK_SCORES, TEACHER_SCORES)
    places, blocks = run.find(example_id), list(scored_blocks(run.outputs))
    lists: list[InfluenceList] = []
    for block in blocks:
        measured = TEACHER_SCORES in run.outputs and "label" not in run.outputs
        for role, row in places if block != schemas.POINTS and not measured else ():
            if role == schemas.helped_role(block):
                lists.append(_influence_list(run, "helpers", block, role, row, top))
            if role == schemas.CANDIDATE:
                lists.append(_influence_list(run, "helped", block, role, row, top))
    kind = run.config.teacher.kind
    return QueryAnswer(
        run_dir=str(run.run_dir),
        unit=UNITS.get(kind, f"labels of {kind}"),
        found_as=tuple(run.examples(role, [row])[0] for role, row in places),
        score=_score(run, blocks, places),
        lists=tuple(lists),
        notes=tuple(_notes(run, blocks, {role for role, _ in places})),
    )


def _influence_list(
    run: Run, direction: Direction, block: str, role: str, row: int, top: int
) -> InfluenceList:
    """List the best partners of an example in a block: as its row, or as its column."""
    outputs, other_role = run.outputs, schemas.helped_role(block)
    if direction == "helpers":
        other_role = schemas.CANDIDATE
    same_table = other_role == role  # so the example itself may be among them
    if TEACHER_SCORES in outputs:
        index, influence, num_scored = _labelled(
            outputs["label"], direction, block, row, top + same_table
        )
    else:
        activations, network = outputs["project"], read_network(outputs["fit"], block)
        index, influence = best_partners(
            activations, network, block, direction, row, top + same_table
        )
        table = f"{block}_columns" if direction == "helpers" else f"{block}_rows"
        num_scored = activations.num_rows(table) - (schemas.helped_role(block) == schemas.CANDIDATE)
    others = (index != row) | (not same_table)
    examples = run.examples(other_role, index[others][:top].tolist())
    neighbours = (
        Neighbour(rank, float(value), example)
        for rank, (value, example) in enumerate(
            zip(influence[others][:top], examples, strict=True), start=1
        )
    )
    return InfluenceList(direction, block, role, num_scored, tuple(neighbours))


def _labelled(
    labels: StageOutput, direction: Direction, block: str, row: int, top: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the best labelled partners of an example, their labels, and how many there are.

    Memory: the labels of one example and a batch.
    """
    own, partner = "helped_index", "helper_index"
    if direction == "helped":
        own, partner = partner, own
    indices, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for batch in labels.iter_batches("labels", ["block", own, partner, "utility"]):
        in_block = pc.equal(batch.column("block"), pa.scalar(block))
        wanted = pc.equal(batch.column(own), pa.scalar(row, pa.int64()))
        here = batch.filter(pc.and_(in_block, wanted))
        indices.append(here.column(partner).to_numpy())
        values.append(here.column("utility").to_numpy())
    index_P, value_P = np.concatenate(indices), np.concatenate(values)
    best = np.lexsort((index_P, -value_P))[:top]
    return index_P[best], value_P[best], len(index_P)


def best_partners(
    activations: StageOutput,
    network: FactoredNetwork,
    block: str,
    direction: Direction,
    at: int,
    top: int,
) -> Best:
    """Score a row against all columns of a block, or a column against all rows; return the best.

    Scored anew by the kernel of the run, so exact also where it kept no lists or shorter ones; a
    pair's score is the same from either side. Equal scores stand by smaller place. Memory: one
    tile of activations.
    """
    own, others = f"{block}_rows", f"{block}_columns"
    if direction == "helped":
        own, others = others, own
    mine_1H = column_matrix(activations.read_range(own, at, at + 1, ["activation"])["activation"])
    index, score, start = np.zeros(0, np.int64), np.zeros(0, np.float32), 0
    for batch in activations.iter_batches(others, ["activation"], TILE_ROWS):
        tile_IH = column_matrix(pa.Table.from_batches([batch])["activation"])
        score_I = top_k_rows(tile_IH, mine_1H, network.w_H, network.bias, 1).score_IK[:, 0]
        place, score = top_k_vector(np.r_[score, score_I], top)
        index = np.r_[index, np.arange(start, start + len(tile_IH))][place]
        start += len(tile_IH)
    return index, score


def _score(run: Run, blocks: list[str], places: Places) -> Score | None:
    """Return what a candidate is ranked by, of a run that ranks by score."""
    at = [row for role, row in places if role == schemas.CANDIDATE]
    scores = scores_of(run.outputs)
    if not at or scores.num_rows("column_sums") == 0:
        return None
    num_candidates = run.outputs["deduplicate"].num_rows("candidates")
    score_J = ScoreTables.open(scores, num_candidates).raw_scores()
    value = float(score_J[at[0]])
    if np.isnan(value):  # the teacher said nothing of it
        return None
    if schemas.POINTS in blocks:
        who = "teacher" if TEACHER_SCORES in run.outputs else "network"
        meaning = f"what the {who} says of the example"
    elif run.config.data.subtask_by:
        meaning = "mean influence on the rows of the subtask that it helps most"
    else:
        meaning = f"mean influence on all {schemas.helped_role(blocks[0])}s"
    return Score(value, int((score_J > value).sum()) + 1, len(score_J), meaning)


def _notes(run: Run, blocks: list[str], roles: set[str]) -> Iterator[str]:
    """Say what was not scored in this run, so is not listed."""
    objective = run.config.objective
    if TEACHER_SCORES in run.outputs and "label" in run.outputs:
        yield BY_TEACHER
    elif TEACHER_SCORES in run.outputs and blocks != [schemas.POINTS]:
        folder = run.outputs[TEACHER_SCORES].folder
        yield f"no pair was labelled: the best helpers of every row are in the tables of {folder}"
    if blocks == [schemas.POINTS]:
        yield (
            f"the teacher '{run.config.teacher.kind}' scores examples, not pairs, so there is no "
            "influence of one on another"
        )
    elif schemas.CANDIDATE in roles and schemas.WITHIN not in blocks:
        yield (
            f"the objective {objective} scores what candidates do for targets; what helps a "
            "candidate was not scored"
        )
    if blocks != [schemas.POINTS] and schemas.TARGET in roles and schemas.CROSS not in blocks:
        yield f"the objective {objective} does not score what helps a target"
    if "select" not in run.outputs:
        yield "nothing is selected yet, so no example is marked as in the subset"


# Explain: why a candidate was selected, or why it was not.

ROLE_OF_TABLE = {table: role for role, table in schemas.TABLE_OF_ROLE.items()}


@dataclass(frozen=True, slots=True)
class Covered:
    """A row for which the example is the best of all that are selected."""

    coverage: float  # scaled influence of the example on it, 0..1
    example: Example


@dataclass(frozen=True, slots=True)
class Redundancy:
    """An example that shares some of what a candidate is worth alone."""

    share: float  # of that worth
    cosine: float  # of the two embeddings
    example: Example


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a candidate was selected or not."""

    run_dir: str
    objective: str
    example: Example
    picked: bool
    num_picks: int
    num_candidates: int
    #: What it added as a pick; of one that was not picked, what it would add to all picks.
    gain: float
    #: What it is worth as the only pick; under top_k its score.
    alone_gain: float
    last_gain: float  # of the last pick; under top_k the cut-off
    place: int  # rank of a pick; else the earliest rank it could still have
    num_covered: int
    covers: tuple[Covered, ...]
    redundant_with: tuple[Redundancy, ...]  # selected examples
    stands_for: tuple[Redundancy, ...]  # high-gain candidates left out that are redundant with it
    reasons: tuple[str, ...]


def explain(run: Run, example_id: str, top: int = 5) -> Explanation:
    """Return why a candidate of a finished selection was selected or not; the picks are replayed.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Rows and picks to name.

    Raises:
        DataError: If no id or several ids begin so, or the example is no candidate.
        StageError: If the run has no finished selection.
    """
    run.need("deduplicate", "embed", "project", NETWORK_SCORES, TEACHER_SCORES, "select")
    places = run.find(example_id)
    row = next((row for role, row in places if role == schemas.CANDIDATE), None)
    if row is None:
        raise DataError(
            f"the example '{example_id}' is a {places[0][0]}, so it could not be selected; "
            f"`nncift query {run.run_dir} --id {example_id}` says what helps it"
        )
    outputs, select = run.outputs, run.outputs["select"]
    selection = resolve_selection(run.config)
    num_candidates = outputs["deduplicate"].num_rows("candidates")
    num_existing = outputs["embed"].num_rows("existing")
    quality_J = None
    if select.manifest.facts()["quality"] == "auto":
        quality_J = read_quality(outputs["quality"], num_candidates)
    tables = ScoreTables.open(scores_of(outputs), num_candidates, num_existing, quality_J)
    objective = build_objective(selection, tables)
    ranking = select.read("ranking", schema=schemas.RANKING)
    gain_S = ranking["gain"].to_numpy()
    order_S = np.asarray(ranking["row_index"].to_numpy(), np.int64)
    best_I, value_I = coverage(objective, order_S)
    gains = marginal_gains(objective, order_S, best_I)

    place = run.subset_ranks.get(row)
    gain = float(gains.gain_J[row] if place is None else gain_S[place - 1])
    earliest = len(order_S) + int((gains.gain_J[gains.rank_J < 0] > gains.gain_J[row]).sum()) + 1
    last = float(gain_S[-1]) if len(gain_S) else 0.0
    decided_by = "" if place is None else ranking["decided_by"][place - 1].as_py()
    covered = np.flatnonzero(best_I == row)
    best = covered[np.argsort(-value_I[covered], kind="stable")][:top]
    covered_role = ROLE_OF_TABLE.get(select.manifest.facts()["covers"], schemas.CANDIDATE)
    return Explanation(
        run_dir=str(run.run_dir),
        objective=selection.objective,
        example=run.examples(schemas.CANDIDATE, [row])[0],
        picked=place is not None,
        num_picks=len(gain_S),
        num_candidates=num_candidates,
        gain=gain,
        alone_gain=float(gains.alone_J[row]),
        last_gain=last,
        place=place or earliest,
        num_covered=len(covered),
        covers=tuple(
            Covered(float(value), example)
            for value, example in zip(
                value_I[best], run.examples(covered_role, best.tolist()), strict=True
            )
        ),
        redundant_with=_redundant_with(run, gains, row, top),
        stands_for=() if place is None else _redundant_skipped(run, row, top),
        reasons=(_reason(run, selection, tables, gains, row, gain, last, decided_by),),
    )


def _redundant_with(run: Run, gains: MarginalGains, row: int, top: int) -> tuple[Redundancy, ...]:
    """Return the picks that share most of what a candidate is worth alone."""
    ((picks, amount),) = gains.redundant_with(np.array([row]))
    picks, amount = picks[:top], amount[:top]
    if not len(picks):
        return ()
    worth = float(gains.alone_J[row])
    share = amount / worth if worth > 0 else np.zeros(len(amount))
    cosine = cosines(run.outputs["embed"], np.full(len(picks), row), picks)
    examples = run.examples(schemas.CANDIDATE, picks.tolist())
    return tuple(
        Redundancy(float(part), float(near), example)
        for part, near, example in zip(share, cosine, examples, strict=True)
    )


def _redundant_skipped(run: Run, row: int, top: int) -> tuple[Redundancy, ...]:
    """Return the candidates left out that are redundant with a pick above all others."""
    skipped = run.outputs["select"].read("skipped", schema=schemas.SKIPPED).to_pylist()
    mine = [other for other in skipped if other["redundant_with"] == row][:top]
    examples = run.examples(schemas.CANDIDATE, [other["row_index"] for other in mine])
    return tuple(
        Redundancy(other["redundant_share"], other["cosine"], example)
        for other, example in zip(mine, examples, strict=True)
    )


_AMONG_EQUALS = "no other candidate added clearly more at rank {rank}; of these it "
_DECIDED = {
    "objective": "no other candidate added more at rank {rank}",
    "quality": _AMONG_EQUALS + "had the best quality",
    "distance": _AMONG_EQUALS + "lay farthest from the picks before it",
    "id": _AMONG_EQUALS + "came first by its id, with the same quality and distance",
    "include": "selection.include asked for it",
    "random": "it was drawn at rank {rank}",
}


def _reason(
    run: Run,
    selection: SelectionConfig,
    tables: ScoreTables,
    gains: MarginalGains,
    row: int,
    gain: float,
    last: float,
    decided_by: str,
) -> str:
    """Say what decided: ``gain`` is the candidate's, ``last`` that of the last pick."""
    example = run.examples(schemas.CANDIDATE, [row])[0]
    rank, alone = example.subset_rank, float(gains.alone_J[row])
    if rank is not None:
        if selection.objective == TOP_K:
            return f"its score {gain:.4g} is the {rank:,}. highest"
        return _DECIDED[decided_by].format(rank=f"{rank:,}")
    if example.example_id in selection.exclude:
        return "selection.exclude named it"
    if REPEATS in run.outputs and (twin := read_repeats(run.outputs[REPEATS]).get(row)) is not None:
        asked = run.examples(schemas.CANDIDATE, [twin])[0]
        return f"it asks in other words what {asked.example_id} asks, and has its answer"
    if row in tables.unranked():
        return "the teacher gave it no label, so it has no rank and could not be picked"
    if selection.objective == TOP_K:
        return f"its score {gain:.4g} is below the cut-off {last:.4g}"
    if alone <= 0:
        return "it is in no row's list of best helpers, so it would add nothing"
    in_tokens = isinstance(selection.budget, TokenBudget)
    if gain > last and (selection.quotas.given or in_tokens):
        return "it would add more than the last pick did: a quota or its tokens kept it out"
    return (
        f"the picks already give {max(1 - gain / alone, 0.0):.0%} of what it is worth alone; what "
        f"is left, {gain:.4g}, is no more than what the last pick added, {last:.4g}"
    )


# Diff: how two selections differ; of two runs, or of files with their subsets.

DEPTHS = (0.01, 0.05, 0.10, 0.30)  # of the candidates
FILE_ENDINGS = (".jsonl", ".parquet", ".txt")


Ranking = dict[str, str]  # the source of each selected id, "" where not known; best first


def compare(first: str, second: str, top: int = 10) -> dict[str, Any]:
    """Return how two selections differ, as plain values.

    Args:
        first: A run directory, or a file: subset.jsonl, subset.parquet or ids.txt of an export.
        second: Another.
        top: Examples of each side to name.

    Raises:
        DataError: If a file is no such export, or names an example twice.
        StageError: If a run has no finished selection.
        StorageError: If there is nothing.
    """
    (a, size_a), (b, size_b) = _read_ranking(first), _read_ranking(second)
    sizes, longest = [size for size in (size_a, size_b) if size], max(len(a), len(b))
    depths = {share: max(1, round(share * max(sizes, default=longest))) for share in DEPTHS}
    depths = {share: depth for share, depth in depths.items() if depth <= longest}
    shared, source = a.keys() & b.keys(), b | a
    in_a, in_b, in_both = (Counter(source[name] for name in ids) for ids in (a, b, shared))
    return {
        "a": first,
        "b": second,
        "num_a": len(a),
        "num_b": len(b),
        "measured_by": "candidates" if sizes else "the longer ranking",
        "overlaps": [
            _overlap(share, list(a)[:depth], list(b)[:depth])
            for share, depth in (*depths.items(), (None, None))
        ],
        "rank_correlation": _rank_correlation(a, b, shared),
        "sources": [
            {"source": name or "(not known)", "num_a": in_a[name], "num_b": in_b[name],
             "shared": in_both[name]}
            for name in sorted({*in_a, *in_b}, key=lambda name: (-in_a[name] - in_b[name], name))
        ],
        "num_only_a": len(a) - len(shared),
        "num_only_b": len(b) - len(shared),
        "only_a": _only(a, shared, top),
        "only_b": _only(b, shared, top),
    }  # fmt: skip


def _read_ranking(place: str) -> tuple[Ranking, int | None]:
    """Read a ranking and its number of candidates from a run directory or an exported file."""
    num_candidates: int | None = None
    if place.endswith(FILE_ENDINGS):
        ids, sources = _read_subset(place)
    else:
        run = Run.open(place)
        run.need("deduplicate", "select")
        examples, rows = run.outputs["deduplicate"], np.array(list(run.subset_ranks), np.int64)
        table = examples.take_rows("candidates", rows, ["example_id", "source"])
        ids = cast("list[str]", table["example_id"].to_pylist())
        sources = cast("list[str]", table["source"].to_pylist())
        num_candidates = examples.num_rows("candidates")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{place}: the example {twice[0]} is listed twice ({len(twice)} such)")
    names = (source.rsplit("/", 1)[-1] for source in sources)
    return dict(zip(ids, names, strict=True)), num_candidates


def _read_subset(file: str) -> tuple[list[str], list[str]]:
    """Return ids and sources of an exported subset."""
    data = Location.of(file).read_bytes()
    try:
        if file.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data), columns=["example_id", "source"])
            rows = cast("list[dict[str, Any]]", table.to_pylist())
        elif file.endswith(".jsonl"):
            rows = [json.loads(line)[ADDED_KEY] for line in data.decode().splitlines() if line]
        else:
            rows = [{"example_id": name} for name in data.decode().split()]
        return (
            [str(row["example_id"]) for row in rows],
            [str(row.get("source", "")) for row in rows],
        )
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: not the subset of a run ({type(error).__name__}: {error}); give a run "
            "directory, or subset.jsonl, subset.parquet or ids.txt of its export folder"
        ) from error


def _overlap(share: float | None, a: Sequence[str], b: Sequence[str]) -> dict[str, Any]:
    """Return what two heads, a share of the candidates, have in common; None: both whole."""
    both, either, smaller = len({*a} & {*b}), len({*a, *b}), min(len(a), len(b))
    found = {"share": share, "num_a": len(a), "num_b": len(b), "shared": both}
    return found | {"jaccard": both / max(1, either), "contained": both / max(1, smaller)}


def _rank_correlation(a: Ranking, b: Ranking, shared: set[str]) -> float | None:
    """Return Spearman's correlation of the order in which both have what they share."""
    if len(shared) < 2:
        return None
    rank_a = {name: at for at, name in enumerate(name for name in a if name in shared)}
    order = np.array([rank_a[name] for name in b if name in shared], np.float64)
    return float(np.corrcoef(order, np.arange(len(order)))[0, 1])


def _only(ranking: Ranking, shared: set[str], top: int) -> list[dict[str, Any]]:
    """Return the first examples of a ranking that the other one lacks."""
    mine = [
        {"rank": rank, "example_id": name, "source": source}
        for rank, (name, source) in enumerate(ranking.items(), start=1)
        if name not in shared
    ]
    return mine[:top]
