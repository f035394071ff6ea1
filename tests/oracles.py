"""The plain forms of what the package does faster, to compare with to the last bit."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from nncift_ray.selection.budgets import FEASIBLE, Budget, verdicts
from nncift_ray.selection.greedy import (
    CLOSE,
    STOP,
    Ranking,
    Rule,
    Search,
    SearchOptions,
    close,
    judge,
    take,
)
from nncift_ray.selection.problem import Objective, Problem, all_gains


def naive_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    rule: Rule = "gain",
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Pick greedily, computing every gain anew at every step: what `lazy_greedy` must return."""
    search, stopped = Search(objective, budget, rule=rule, **options), False
    while search.picked < search.most_picks and not stopped:
        open_J = np.flatnonzero(search.limits.open_J)
        found = np.empty(len(open_J), np.int64)
        verdicts(search.limits, open_J, found)
        candidates = open_J[found == FEASIBLE]
        if len(candidates) == 0:
            break
        gain_J = np.empty(search.problem.num_columns)
        all_gains(search.problem, search.state, gain_J)
        gains = gain_J[candidates]
        key = gains / search.limits.cost_J[candidates] if rule == "gain_per_cost" else gains
        best = int(np.lexsort((candidates, search.rank_J[candidates], -key))[0])
        judged = judge(search.limits, search.log, gains[best], search.stop_gain)
        if judged == CLOSE:
            close(search.limits, search.log)
        elif judged == STOP:
            stopped = True
        else:
            j, gain = int(candidates[best]), float(gains[best])
            take(search.problem, search.state, search.limits, search.log, j, gain)
            search.report_progress()
    return search.ranking(stopped=stopped)
