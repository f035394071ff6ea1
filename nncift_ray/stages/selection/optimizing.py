"""Runs the optimiser of a selection plan, from where an earlier attempt had come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift_ray.core.selection.baseline import random_ranking
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.column_source import ColumnSource
from nncift_ray.core.selection.greedy import cost_benefit_greedy, lazy_greedy, naive_greedy
from nncift_ray.core.selection.partitioned import greedi, multi_round_greedy, search_part
from nncift_ray.core.selection.problem import Objective
from nncift_ray.core.selection.search import Progress, Ranking, Rule
from nncift_ray.core.selection.stochastic import stochastic_greedy
from nncift_ray.errors import DataError, ShapeError, StageError
from nncift_ray.stages.selection.selection_plan import RANDOM, SelectionPlan
from nncift_ray.storage import schemas
from nncift_ray.storage.output import StageOutput


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
