"""The plain forms of what the package does faster, to compare with to the last bit."""

from __future__ import annotations

from typing import Unpack

import numpy as np

from nncift_ray.selection.budgets import FEASIBLE, Budget, verdicts
from nncift_ray.selection.greedy import (
    CLOSE,
    FLAT,
    STOP,
    Ranking,
    Rule,
    Search,
    SearchOptions,
    close,
    is_tiny,
    judge,
    take,
)
from nncift_ray.selection.problem import Objective, Problem, all_gains
from nncift_ray.selection.ties import DISTANCE, ID, LEVELS, OBJECTIVE, QUALITY, TieBreak


def naive_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    rule: Rule = "gain",
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Pick greedily, computing every gain anew at every step: what `lazy_greedy` must return."""
    search, stopped = Search(objective, budget, rule=rule, **options), False
    per_cost, tie_break = rule == "gain_per_cost", options.get("tie_break")
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
        key = gains / search.limits.cost_J[candidates] if per_cost else gains
        is_small = is_tiny(search.log, key.max(), search.tiny)
        flat = tie_break is not None and (bool(search.log.num[FLAT]) or is_small)
        key = np.zeros(len(candidates)) if flat else key
        level, near = np.zeros(len(candidates)), np.zeros(len(candidates))
        if tie_break is not None:
            level, near = _level_and_nearness(search, tie_break, candidates)
        order = np.lexsort((candidates, search.rank_J[candidates], near, -level, -key))
        best = int(order[0])
        decided = DISTANCE if flat else OBJECTIVE
        if tie_break is None:
            decided = ID if is_small else OBJECTIVE
        elif len(order) > 1 and key[order[1]] == key[best]:
            second = order[1]
            same = level[second] == level[best], near[second] == near[best]
            decided = ID if all(same) else DISTANCE if same[0] else QUALITY
        judged = judge(search.limits, search.log, gains[best], search.stop_gain)
        if judged == CLOSE:
            close(search.limits, search.log)
        elif judged == STOP:
            stopped = True
        else:
            search.log.num[FLAT] = int(flat)
            j, gain = int(candidates[best]), float(gains[best])
            take(
                search.problem, search.state, search.limits, search.log, j, gain, decided, per_cost
            )
            search.report_progress()
    return search.ranking(stopped=stopped)


def _level_and_nearness(
    search: Search, tie_break: TieBreak, columns_S: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the step of each column's quality, and its largest product with a pick."""
    level = np.rint(LEVELS * tie_break.quality_J[columns_S].astype(np.float64))
    if not search.picked:
        return level, np.zeros(len(columns_S))
    picks = tie_break.read(search.log.order[: search.picked]).astype(np.float64)
    return level, (tie_break.read(columns_S).astype(np.float64) @ picks.T).max(axis=1)
