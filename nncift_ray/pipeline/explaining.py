"""Why an example of a finished run was picked, or why it was not.

The set function is built again from the stored lists and the picks are replayed on it, so gains and
covering picks are those of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift_ray.core.selection.objectives import coverage
from nncift_ray.core.selection.standing import Standing, stand
from nncift_ray.errors import DataError
from nncift_ray.pipeline.example_ids import find_example
from nncift_ray.pipeline.opening import OpenedRun
from nncift_ray.pipeline.querying import FoundExample, find_texts
from nncift_ray.pipeline.selecting import selection_plan
from nncift_ray.stages.selection.score_tables import ScoreTables
from nncift_ray.stages.selection.selection_objectives import build_objective
from nncift_ray.stages.selection.selection_plan import TOP_K, SelectionPlan
from nncift_ray.stages.selection.selection_tables import cosines
from nncift_ray.storage import schemas
from nncift_ray.storage.schemas import CANDIDATE, TABLE_OF_ROLE
from nncift_ray.storage.scores import NETWORK_SCORES, TEACHER_SCORES, scored_blocks, scores_of

ROLE_OF_TABLE = {table: role for role, table in TABLE_OF_ROLE.items()}


@dataclass(frozen=True, slots=True)
class Covered:
    """A row for which the pick is the best of all picks."""

    coverage: float  # scaled influence of the pick on it, 0..1
    example: FoundExample


@dataclass(frozen=True, slots=True)
class Taker:
    """A pick that took some of what a candidate is worth alone."""

    share: float  # of that worth
    cosine: float  # of the two embeddings
    example: FoundExample


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a candidate was picked or not."""

    run_dir: str
    objective: str
    example: FoundExample
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
    taken_by: tuple[Taker, ...]
    stands_for: tuple[Taker, ...]  # skipped candidates whose place this pick took
    reasons: tuple[str, ...]


def explain(run: OpenedRun, example_id: str, top: int = 5) -> Explanation:
    """Explain one candidate of a finished selection.

    Args:
        run: The run.
        example_id: An id, or the beginning of one that no other id shares.
        top: Rows and picks to name.

    Raises:
        DataError: If no id or several ids begin so, or the example is no candidate.
        StageError: If the run has no finished selection.
    """
    run.need("deduplicate", "embed", "project", NETWORK_SCORES, TEACHER_SCORES, "select")
    places = find_example(run.outputs["deduplicate"], example_id)
    rows = [place.row_index for place in places if place.role == CANDIDATE]
    if not rows:
        raise DataError(
            f"the example '{example_id}' is a {places[0].role}, so it could not be selected; "
            f"`nncift query {run.run_dir} --id {example_id}` says what helps it"
        )
    return _Explainer(run).explain(rows[0], top)


class _Explainer:
    """The selection of a run, replayed."""

    def __init__(self, run: OpenedRun) -> None:
        """Build the objective and replay the picks."""
        self._run, self._examples = run, run.outputs["deduplicate"]
        self._select, self._embeddings = run.outputs["select"], run.outputs["embed"]
        self._plan: SelectionPlan = selection_plan(run.config, scored_blocks(run.outputs))
        num_candidates = self._examples.num_rows("candidates")
        tables = ScoreTables.open(scores_of(run.outputs), num_candidates)
        self._unranked = frozenset(tables.unranked().tolist())
        objective = build_objective(self._plan, tables, self._embeddings.num_rows("existing"))
        ranking = self._select.read("ranking", schema=schemas.RANKING)
        self._gain_S = ranking["gain"].to_numpy()
        order_S = np.asarray(ranking["row_index"].to_numpy(), np.int64)
        self._best_I, self._value_I = coverage(objective, order_S)
        self._standing: Standing = stand(objective.problem(), order_S, self._best_I)
        self._ranks = {int(row): at + 1 for at, row in enumerate(order_S)}

    def explain(self, row: int, top: int) -> Explanation:
        """Explain the candidate of a row."""
        standing = self._standing
        rank = self._ranks.get(row)
        gain = float(standing.gain_J[row] if rank is None else self._gain_S[rank - 1])
        covered = np.flatnonzero(self._best_I == row)
        last = float(self._gain_S[-1]) if len(self._gain_S) else 0.0
        return Explanation(
            run_dir=str(self._run.run_dir),
            objective=self._plan.objective,
            example=self._texts(CANDIDATE, [row])[0],
            picked=rank is not None,
            num_picks=len(self._gain_S),
            num_candidates=len(standing.rank_J),
            gain=gain,
            alone_gain=float(standing.alone_J[row]),
            last_gain=last,
            place=self._next_place(row) if rank is None else rank,
            num_covered=len(covered),
            covers=self._covers(covered, top),
            taken_by=self._takers(row, top),
            stands_for=() if rank is None else self._stands_for(row, top),
            reasons=tuple(self._reasons(row, rank, gain, last)),
        )

    def _texts(self, role: str, rows: list[int]) -> list[FoundExample]:
        return find_texts(self._examples, role, rows, self._ranks)

    def _next_place(self, row: int) -> int:
        """Return the rank after the picks and all that would add more now."""
        standing = self._standing
        left = standing.rank_J < 0
        ahead = int((standing.gain_J[left] > standing.gain_J[row]).sum())
        return len(standing.order_S) + ahead + 1

    def _covers(self, covered: np.ndarray, top: int) -> tuple[Covered, ...]:
        best = covered[np.argsort(-self._value_I[covered], kind="stable")][:top]
        role = ROLE_OF_TABLE.get(self._select.manifest.facts()["covers"], CANDIDATE)
        texts = self._texts(role, best.tolist())
        return tuple(
            Covered(float(self._value_I[row]), text) for row, text in zip(best, texts, strict=True)
        )

    def _takers(self, row: int, top: int) -> tuple[Taker, ...]:
        picks, amount = self._standing.takers(row)
        if not len(picks):
            return ()
        worth = float(self._standing.alone_J[row])
        picks, amount = picks[:top], amount[:top]
        cosine = cosines(self._embeddings, np.full(len(picks), row), picks)
        texts = self._texts(CANDIDATE, picks.tolist())
        shares = amount / worth if worth > 0 else np.zeros(len(amount))
        return tuple(
            Taker(float(share), float(near), text)
            for share, near, text in zip(shares, cosine, texts, strict=True)
        )

    def _stands_for(self, row: int, top: int) -> tuple[Taker, ...]:
        skipped = self._select.read("skipped", schema=schemas.SKIPPED).to_pylist()
        mine = [other for other in skipped if other["taken_by"] == row][:top]
        texts = self._texts(CANDIDATE, [other["row_index"] for other in mine])
        return tuple(
            Taker(other["taken_share"], other["cosine"], text)
            for other, text in zip(mine, texts, strict=True)
        )

    def _reasons(self, row: int, rank: int | None, gain: float, last: float) -> list[str]:
        plan, standing = self._plan, self._standing
        name = self._texts(CANDIDATE, [row])[0].example_id
        if rank is not None:
            if name in plan.include:
                return ["selection.include asked for it"]
            if plan.objective == TOP_K:
                return [f"its score {gain:.4g} is the {rank:,}. highest"]
            return [f"no other candidate added more at rank {rank:,}"]
        if name in plan.exclude:
            return ["selection.exclude named it"]
        if row in self._unranked:
            return ["the teacher gave it no label, so it has no rank and could not be picked"]
        if standing.alone_J[row] <= 0:
            return ["it is in no row's list of best helpers, so it would add nothing"]
        if plan.objective == TOP_K:
            return [f"its score {gain:.4g} is below the cut-off {last:.4g}"]
        if gain > last and (plan.quotas.given or plan.tokens is not None):
            return ["it would add more than the last pick did: a quota or its tokens kept it out"]
        lost = 1 - gain / float(standing.alone_J[row])
        return [
            f"the picks already give {max(lost, 0.0):.0%} of what it is worth alone; what is left, "
            f"{gain:.4g}, is no more than what the last pick added, {last:.4g}"
        ]
