"""Ask a finished run about one example: what helps it most, and what it helps most.

Both directions are exact, also where the run kept no lists (``top_k``) or shorter ones than are
asked for: a network's pairs are scored anew, a teacher's are read from its labels (`pair_lookup`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from nncift_ray.pipeline.example_ids import Place, find_example
from nncift_ray.pipeline.opening import OpenedRun
from nncift_ray.pipeline.pair_lookup import FoundPairs, pair_lookup
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.storage import schemas
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import CANDIDATE, POINTS, TABLE_OF_ROLE, TARGET, helped_role
from nncift_ray.storage.scores import NETWORK_SCORES, TEACHER_SCORES, scored_blocks, scores_of

TEXT_COLUMNS = ["row_index", "example_id", "prompt", "response", "source", "line"]
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
}


@dataclass(frozen=True, slots=True)
class FoundExample:
    """An example of the run; ``subset_rank`` is None where it was not selected."""

    role: str
    row_index: int
    example_id: str
    prompt: str
    response: str
    source: str
    line: int
    subset_rank: int | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One example of a list; influence is raw and signed, in the unit of the labels."""

    rank: int
    influence: float
    example: FoundExample


@dataclass(frozen=True, slots=True)
class InfluenceList:
    """Who helps an example ("helpers"), or whom it helps ("helped"), best first."""

    direction: Literal["helpers", "helped"]
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
    found_as: tuple[FoundExample, ...]  # a target that is also a candidate is found as both
    score: Score | None
    lists: tuple[InfluenceList, ...]
    notes: tuple[str, ...]


def query(run: OpenedRun, example_id: str, top: int = 10) -> QueryAnswer:
    """Answer for one example of a run that is scored.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Neighbours of each list; the example itself is never one.

    Raises:
        DataError: If no id or several ids begin so.
        StageError: If the run is not scored yet.
    """
    run.need("deduplicate", "utility", "fit", "project", NETWORK_SCORES, TEACHER_SCORES)
    places = find_example(run.outputs["deduplicate"], example_id)
    blocks = list(scored_blocks(run.outputs))
    ranks = _subset_ranks(run.outputs.get("select"))
    lists = [
        made
        for block in blocks
        if block != POINTS
        for place in places
        for made in _lists_of(run, block, place, top, ranks)
    ]
    notes = _notes(run, blocks, places)
    if "select" not in run.outputs:
        notes.append("nothing is selected yet, so no example is marked as in the subset")
    return QueryAnswer(
        run_dir=str(run.run_dir),
        unit=UNITS.get(run.config.teacher.kind, f"labels of {run.config.teacher.kind}"),
        found_as=tuple(
            find_texts(run.outputs["deduplicate"], place.role, [place.row_index], ranks)[0]
            for place in places
        ),
        score=_score(run, blocks, places),
        lists=tuple(lists),
        notes=tuple(notes),
    )


def _lists_of(
    run: OpenedRun, block: str, place: Place, top: int, ranks: dict[int, int]
) -> Iterator[InfluenceList]:
    """Make the lists in which an example at one place has a part in a block."""
    row_role, pairs = helped_role(block), pair_lookup(run.outputs)
    more = top + (row_role == CANDIDATE)  # the example itself may be among them
    if place.role == row_role:
        found = pairs.helpers_of(block, place.row_index, more)
        yield _make_list(run, "helpers", block, place, top, CANDIDATE, found, ranks)
    if place.role == CANDIDATE:
        found = pairs.helped_by(block, place.row_index, more)
        yield _make_list(run, "helped", block, place, top, row_role, found, ranks)


def _make_list(
    run: OpenedRun,
    direction: Literal["helpers", "helped"],
    block: str,
    place: Place,
    top: int,
    role: str,
    found: FoundPairs,
    ranks: dict[int, int],
) -> InfluenceList:
    others = (found.index != place.row_index) | (role != place.role)
    index, influence = found.index[others][:top], found.influence[others][:top]
    texts = find_texts(run.outputs["deduplicate"], role, index.tolist(), ranks)
    return InfluenceList(
        direction=direction,
        block=block,
        of_role=place.role,
        num_scored=found.num_scored,
        neighbours=tuple(
            Neighbour(at + 1, float(value), text)
            for at, (value, text) in enumerate(zip(influence, texts, strict=True))
        ),
    )


def _subset_ranks(select: StageOutput | None) -> dict[int, int]:
    """Return the rank of every selected candidate."""
    if select is None:
        return {}
    ranking = select.read("ranking", ["row_index", "rank"], schemas.RANKING)
    return {row["row_index"]: row["rank"] for row in ranking.to_pylist()}


def find_texts(
    examples: StageOutput, role: str, rows: list[int], ranks: dict[int, int]
) -> list[FoundExample]:
    """Look up the examples of some rows of a role, in the order given."""
    if not rows:
        return []
    found = examples.take_rows(TABLE_OF_ROLE[role], np.asarray(rows), TEXT_COLUMNS).to_pylist()
    return [
        FoundExample(
            role=role,
            subset_rank=ranks.get(row["row_index"]) if role == CANDIDATE else None,
            **cast("dict[str, Any]", row),
        )
        for row in found
    ]


def _score(run: OpenedRun, blocks: list[str], places: list[Place]) -> Score | None:
    """Return what a candidate is ranked by, of a run that ranks by score."""
    at = [place.row_index for place in places if place.role == CANDIDATE]
    scores = scores_of(run.outputs)
    if not at or scores.num_rows("column_sums") == 0:
        return None
    num_candidates = run.outputs["deduplicate"].num_rows("candidates")
    score_J = ScoreTables.open(scores, num_candidates).raw_scores()
    value = float(score_J[at[0]])
    if np.isnan(value):  # the teacher said nothing of it
        return None
    if POINTS in blocks:
        who = "teacher" if TEACHER_SCORES in run.outputs else "network"
        meaning = f"what the {who} says of the example"
    elif run.config.data.subtask_by:
        meaning = "mean influence on the rows of the subtask that it helps most"
    else:
        meaning = f"mean influence on all {helped_role(blocks[0])}s"
    return Score(value, int((score_J > value).sum()) + 1, len(score_J), meaning)


def _notes(run: OpenedRun, blocks: list[str], places: list[Place]) -> list[str]:
    """Say what was not scored in this run, so is not listed."""
    objective = run.config.objective
    notes = [BY_TEACHER] if TEACHER_SCORES in run.outputs else []
    if blocks == [POINTS]:
        return [
            *notes,
            f"the teacher '{run.config.teacher.kind}' scores examples, not pairs, so there is no "
            "influence of one on another",
        ]
    roles = {place.role for place in places}
    if CANDIDATE in roles and schemas.WITHIN not in blocks:
        notes.append(
            f"the objective {objective} scores what candidates do for targets; what helps a "
            "candidate was not scored"
        )
    if TARGET in roles and schemas.CROSS not in blocks:
        notes.append(f"the objective {objective} does not score what helps a target")
    return notes
