"""Runs the optimiser of a selection plan, from where an earlier attempt had come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift_ray.core.selection.baseline import random_ranking
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.greedy import cost_benefit_greedy, lazy_greedy, naive_greedy
from nncift_ray.core.selection.problem import Objective
from nncift_ray.core.selection.search import Progress, Ranking, Rule
from nncift_ray.core.selection.stochastic import stochastic_greedy
from nncift_ray.errors import DataError, ShapeError
from nncift_ray.stages.selection_plan import RANDOM, SelectionPlan


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
        common |= {"costs": self.costs_J, "prefix": self.prefixes.get("gain", ())}
        if kind == "stochastic":
            return stochastic_greedy(
                self.objective, self.budget, epsilon=plan.epsilon, seed=plan.seed, **common
            )
        search = naive_greedy if kind == "naive" else lazy_greedy
        return search(self.objective, self.budget, **common)
