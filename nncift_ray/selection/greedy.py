"""Greedy maximisation: the plain oracle, the lazy search, and the one that minds costs.

Each picks, at every step, the column of greatest marginal gain among those admitted, ties by
`tie_rank`; plain and lazy return the same ranking to the last bit (`problem` says why a gain
computed earlier is a bound in floating point too).

Greedy reaches 1 - 1/e of the best value of a monotone submodular function under a count budget
(Nemhauser et al. 1978), half of it under quotas (Fisher et al. 1978). Lazy evaluation: Minoux 1978.
Suffixes: J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray import jit as code
from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.selection.problem import (
    Columns,
    Objective,
    Problem,
    State,
    add,
    add_each,
    all_gains,
    gain_of,
    gains_of,
)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be selected: at most so many columns, at most so much total cost, or both."""

    max_count: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError when nothing bounds the selection or a bound is negative."""
        if self.max_count is None and self.max_cost is None:
            msg = "a budget needs max_count, max_cost or both"
            raise ValueError(msg)
        if (self.max_count or 0) < 0 or not (self.max_cost or 0.0) >= 0:
            msg = f"a budget cannot be negative: {self}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """Which selections are allowed within the budget.

    The rules, in the order they bite:
    - `include` is picked first, in the order given, whatever it gains; `exclude` never.
    - At most `max_per_group[g]` picks of group g, those of `include` counted (a partition matroid).
    - At least `min_per_group[g]`: what the groups still lack is reserved. A column of a group that
      has its minimum is picked only while more slots are free than are reserved, and, under a cost
      budget, only while the cheapest columns that would meet the minima still fit afterwards. So
      the minima are always met, and greedy picks freely until the reserve is all that is left.
    With minima the ranking is no prefix order: a smaller budget begins to reserve earlier.

    Attributes:
        group_J: Group of each column, 0..G-1; -1 for a column of no group.
        min_per_group: Least picks of each group [G].
        max_per_group: Most picks of each group [G]; None for no limit (of one group or of all).
        include: Columns that must be picked, best first.
        exclude: Columns that must not be.
    """

    group_J: NDArray[np.integer] | None = None
    min_per_group: Sequence[int] | None = None
    max_per_group: Sequence[int | None] | None = None
    include: Sequence[int] = field(default=())
    exclude: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        """Raise ValueError naming both sides of a contradiction."""
        _check_lists(self.include, self.exclude)
        quotas = self.min_per_group is not None or self.max_per_group is not None
        if quotas and self.group_J is None:
            msg = "min_per_group and max_per_group need group_J, the group of each column"
            raise ValueError(msg)
        if self.group_J is not None and len(self.group_J):
            _check_groups(int(self.group_J.min()), int(self.group_J.max()), self)
        for group in range(self.num_groups):
            _check_quota(group, self.minimum(group), self.maximum(group))

    @property
    def num_groups(self) -> int:
        """Number of groups G."""
        lengths = [len(q) for q in (self.min_per_group, self.max_per_group) if q is not None]
        if lengths:
            return max(lengths)
        return int(self.group_J.max()) + 1 if self.group_J is not None and len(self.group_J) else 0

    def minimum(self, group: int) -> int:
        """Return the least picks of a group."""
        return 0 if self.min_per_group is None else int(self.min_per_group[group])

    def maximum(self, group: int) -> int | None:
        """Return the most picks of a group; None for no limit."""
        most = None if self.max_per_group is None else self.max_per_group[group]
        return None if most is None else int(most)


def _check_lists(include: Sequence[int], exclude: Sequence[int]) -> None:
    both = sorted({int(j) for j in include} & {int(j) for j in exclude})
    if both:
        msg = f"column {both[0]} is in include and in exclude ({len(both)} such columns)"
        raise ValueError(msg)
    if len({int(j) for j in include}) != len(include):
        msg = "include names a column twice"
        raise ValueError(msg)


def _check_groups(least: int, most: int, constraints: Constraints) -> None:
    if least < -1:
        msg = f"group_J holds {least}: groups are 0, 1, ..., and -1 is no group"
        raise ValueError(msg)
    for name in ("min_per_group", "max_per_group"):
        quotas = getattr(constraints, name)
        if quotas is not None and len(quotas) != constraints.num_groups:
            msg = f"{name} has {len(quotas)} groups, the other quota {constraints.num_groups}"
            raise ValueError(msg)
    if most >= constraints.num_groups:
        msg = f"group_J names group {most}, the quotas have {constraints.num_groups} groups"
        raise ValueError(msg)


def _check_quota(group: int, least: int, most: int | None) -> None:
    if least < 0 or (most is not None and most < 0):
        msg = f"group {group}: quotas are >= 0, got min_per_group {least}, max_per_group {most}"
        raise ValueError(msg)
    if most is not None and least > most:
        msg = f"group {group}: min_per_group {least} is above max_per_group {most}"
        raise ValueError(msg)


# Whether a column may be picked now, under budget and constraints, and what a pick uses up.

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

ADMITTED, TOO_DEAR, OVER_QUOTA = 0, 1, 2
FREE, RESERVED = 0, 1  # places in `slots` and `money`
NO_LIMIT = np.iinfo(np.int64).max


class Admission(NamedTuple):
    """What is left of the budget and the quotas; the kernels change it as columns are picked.

    `slots` holds the picks left and those of them reserved for minima; `money` the cost left and
    that of the cheapest columns that would meet the minima. `by_cost` lists the open columns of
    each group that has a minimum, cheapest first; `edge_G` is the place in it of the dearest
    column reserved. `bounded` is False where nothing but the number of picks is limited, so that a
    search of a million columns need not look up groups and costs.
    """

    bounded: bool
    open_J: Bools
    group_J: I32
    cost_J: F64
    need_G: I64
    left_G: I64
    slots: I64
    money: F64
    by_cost: I32
    place_J: I32
    start_G: I64
    edge_G: I64


def open_admission(
    num_columns: int,
    budget: Budget,
    costs: NDArray[np.number] | None,
    constraints: Constraints,
) -> Admission:
    """Return what may be picked at the start.

    Raises:
        ShapeError: If costs or groups are not one a column.
        ValueError: If costs are missing or no costs, a listed column does not exist, or the minima
            cannot be met.
    """
    cost_J = _check_costs(num_columns, budget, costs)
    group_J, num_groups = _groups(num_columns, constraints)
    open_J = np.ones(num_columns, np.bool_)
    open_J[_check_columns("exclude", constraints.exclude, num_columns)] = False
    _check_columns("include", constraints.include, num_columns)
    need_G, left_G = np.zeros(num_groups + 1, np.int64), np.full(num_groups + 1, NO_LIMIT)
    for group in range(num_groups):
        need_G[group] = constraints.minimum(group)
        most = constraints.maximum(group)
        left_G[group] = NO_LIMIT if most is None else most
    slots = np.array([limit_of(budget, num_columns), need_G.sum()])
    _check_minima(need_G, np.bincount(group_J[open_J], minlength=num_groups + 1), int(slots[FREE]))
    money = np.array([math.inf if budget.max_cost is None else float(budget.max_cost), 0.0])
    if budget.max_cost is not None and need_G.any():
        return _with_reserve(open_J, group_J, cost_J, need_G, left_G, slots, money)
    none, no_places = np.zeros(0, np.int32), np.zeros(num_groups + 1, np.int64)
    bounded = budget.max_cost is not None or num_groups > 0
    return Admission(
        bounded,
        open_J,
        group_J,
        cost_J,
        need_G,
        left_G,
        slots,
        money,
        none,
        none,
        no_places,
        no_places,
    )


def limit_of(budget: Budget, num_columns: int) -> int:
    """Return the most picks there can be."""
    return num_columns if budget.max_count is None else min(budget.max_count, num_columns)


@compiled
def admits(admission: Admission, j: int) -> int:
    """Return ADMITTED, or why an open column may not be picked, now or ever."""
    if not admission.bounded:
        return ADMITTED
    group = admission.group_J[j]
    needed = admission.need_G[group] > 0
    if admission.left_G[group] <= 0:
        return OVER_QUOTA
    if not needed and admission.slots[FREE] <= admission.slots[RESERVED]:
        return OVER_QUOTA
    cost = admission.cost_J[j]
    if needed and len(admission.by_cost) > 0:
        # Picked for its group's minimum, it takes the place of the dearest column reserved.
        edge = admission.by_cost[admission.edge_G[group]]
        cost -= min(cost, admission.cost_J[edge])
    return TOO_DEAR if cost > admission.money[FREE] - admission.money[RESERVED] else ADMITTED


@compiled
def admits_each(admission: Admission, columns_S: I64, verdict_S: I64) -> None:
    """Write `admits` of some open columns."""
    for place in range(len(columns_S)):
        verdict_S[place] = admits(admission, columns_S[place])


@compiled
def spend(admission: Admission, j: int) -> None:
    """Take what picking an admitted column uses up."""
    admission.open_J[j] = False
    admission.slots[FREE] -= 1
    if not admission.bounded:
        return
    group = admission.group_J[j]
    admission.left_G[group] -= 1
    admission.money[FREE] -= admission.cost_J[j]
    if admission.need_G[group] == 0:
        return
    admission.need_G[group] -= 1
    admission.slots[RESERVED] -= 1
    if len(admission.by_cost) > 0:
        edge = admission.edge_G[group]
        inside = admission.place_J[j] <= edge
        freed = j if inside else np.int64(admission.by_cost[edge])
        admission.money[RESERVED] -= admission.cost_J[freed]
        if not inside:
            edge -= 1
        while edge >= admission.start_G[group] and not admission.open_J[admission.by_cost[edge]]:
            edge -= 1
        admission.edge_G[group] = max(edge, admission.start_G[group])


def _with_reserve(
    open_J: Bools, group_J: I32, cost_J: F64, need_G: I64, left_G: I64, slots: I64, money: F64
) -> Admission:
    """Reserve the cheapest columns that meet the minima."""
    needed = np.flatnonzero(open_J & (need_G[group_J] > 0))
    by_cost = needed[np.lexsort((needed, cost_J[needed], group_J[needed]))].astype(np.int32)
    place_J = np.zeros(len(group_J), np.int32)
    place_J[by_cost] = np.arange(len(by_cost), dtype=np.int32)
    sizes_G = np.bincount(group_J[by_cost], minlength=len(need_G))
    start_G = np.concatenate([[0], np.cumsum(sizes_G)[:-1]]).astype(np.int64)
    for group in np.flatnonzero(need_G):
        first = start_G[group]
        money[RESERVED] += cost_J[by_cost[first : first + need_G[group]]].sum()
    if money[RESERVED] > money[FREE]:
        msg = (
            f"min_per_group costs at least {money[RESERVED]:g} (the cheapest columns),"
            f" the budget is {money[FREE]:g}"
        )
        raise ValueError(msg)
    edge_G = np.maximum(start_G + need_G - 1, start_G)
    return Admission(
        True,
        open_J,
        group_J,
        cost_J,
        need_G,
        left_G,
        slots,
        money,
        by_cost,
        place_J,
        start_G,
        edge_G,
    )


def _check_costs(num_columns: int, budget: Budget, costs: NDArray[np.number] | None) -> F64:
    if costs is not None and costs.shape != (num_columns,):
        msg = f"costs is {costs.shape}, expected [{num_columns}] (one a column)"
        raise ShapeError(msg)
    if budget.max_cost is not None and costs is None:
        msg = "a cost budget needs the cost of every column (tokens of every example)"
        raise ValueError(msg)
    cost_J = np.zeros(num_columns) if costs is None else costs.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(cost_J) & (cost_J >= 0)))
    if len(bad):
        msg = f"cost of column {bad[0]} is {cost_J[bad[0]]}: costs are finite numbers >= 0"
        raise ValueError(msg)
    return cost_J


def _groups(num_columns: int, constraints: Constraints) -> tuple[I32, int]:
    """Return the group of each column, "no group" counted as the last, and how many there are."""
    num_groups = constraints.num_groups
    if constraints.group_J is None:
        return np.full(num_columns, num_groups, np.int32), num_groups
    if constraints.group_J.shape != (num_columns,):
        msg = f"group_J is {constraints.group_J.shape}, expected [{num_columns}] (one a column)"
        raise ShapeError(msg)
    group_J = constraints.group_J.astype(np.int32)
    return np.where(group_J < 0, np.int32(num_groups), group_J), num_groups


def _check_columns(name: str, listed: object, num_columns: int) -> I64:
    columns = np.asarray(listed, np.int64).reshape(-1)
    bad = columns[(columns < 0) | (columns >= num_columns)]
    if len(bad):
        msg = f"{name} names column {bad[0]}, there are {num_columns}"
        raise ValueError(msg)
    return columns


def _check_minima(need_G: I64, size_G: I64, limit: int) -> None:
    short = np.flatnonzero(need_G > size_G)
    if len(short):
        g = short[0]
        msg = f"group {g}: min_per_group is {need_G[g]}, it has {size_G[g]} columns to pick from"
        raise ValueError(msg)
    if need_G.sum() > limit:
        msg = f"min_per_group adds up to {need_G.sum()}, at most {limit} can be picked"
        raise ValueError(msg)


# No subset within the budget can be worth more than this.


def upper_bound(
    problem: Problem,
    order_S: I64,
    value_S: F64,
    selectable_J: NDArray[np.bool_],
    cost_J: F64,
    budget: Budget,
) -> float | None:
    """Return the least bound that the beginning, the middle and the end of a ranking give.

    It is made of the ranking alone, so an interruption does not change it.

    Args:
        problem: The set function.
        order_S: The ranking.
        value_S: Value after each pick.
        selectable_J: Columns that may be selected, those of the ranking included.
        cost_J: Cost of each column.
        budget: Of the whole selection.

    Returns:
        The bound; None for a function that is not monotone.

    Time: three passes over the entries.
    """
    if not problem.is_monotone():
        return None
    state, gain_J, left_J = (
        problem.empty_state(),
        np.empty(problem.num_columns),
        selectable_J.copy(),
    )
    bound, done = float("inf"), 0
    for place in (0, len(order_S) // 2, len(order_S)):
        add_each(problem.columns, state, order_S[done:place])
        left_J[order_S[done:place]] = False
        all_gains(problem.columns, state, gain_J)
        value = float(value_S[place - 1]) if place else 0.0
        bound = min(bound, bound_from(value, gain_J, left_J, cost_J, budget))
        done = place
    return bound


def bound_from(
    value: float, gain_J: F64, open_J: NDArray[np.bool_], cost_J: F64, budget: Budget
) -> float:
    """Return f(A) plus the largest sum of gains that the whole budget could buy.

    Args:
        value: f(A).
        gain_J: Gain of each column on top of A [J], >= 0.
        open_J: Columns that are not in A and may be selected.
        cost_J: Cost of each column.
        budget: Of the whole selection, A included: O need not contain A.

    Returns:
        The bound: over a cost budget that of the fractional knapsack.
    """
    open_gain = gain_J[open_J]
    bound = float("inf")
    if budget.max_count is not None:
        bound = value + _largest(open_gain, budget.max_count)
    if budget.max_cost is not None:
        bound = min(bound, value + _knapsack(open_gain, cost_J[open_J], budget.max_cost))
    return bound


def _largest(gain: F64, count: int) -> float:
    """Return the sum of the `count` largest gains."""
    if count >= len(gain):
        return float(gain.sum())
    if count == 0:
        return 0.0
    return float(np.partition(gain, len(gain) - count)[len(gain) - count :].sum())


def _knapsack(gain: F64, cost: F64, money: float) -> float:
    """Return the most gain that the money buys when columns may be cut."""
    free = cost <= 0
    total = float(gain[free].sum())
    gain, cost = gain[~free], cost[~free]
    order = np.argsort(-(gain / cost), kind="stable")
    spent = np.cumsum(cost[order])
    whole = int(np.searchsorted(spent, money, side="right"))
    total += float(gain[order[:whole]].sum())
    if whole < len(order):
        left = money - (spent[whole - 1] if whole else 0.0)
        total += float(gain[order[whole]] * left / cost[order[whole]])
    return total


# What every optimiser shares: the picks so far, their replay, when to stop, the upper bound.

Rule = Literal["gain", "gain_per_cost"]
RankedBy = Literal["gain", "gain_per_cost", "random"]
StoppedBy = Literal["budget", "stop_gain", "exhausted"]

PROGRESS_STEPS = 100  # calls of on_progress in a whole run
RUNS_ON, STOPS, CLOSES = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The selected columns, best first.

    Attributes:
        order: Columns [S].
        gain: What each pick added to the objective [S]. Of the free picks of a greedy search by
            gain, under a count budget without constraints, it never rises.
        objective: Value after each pick [S].
        upper_bound: No subset within the budget has a larger value (constraints left aside); None
            where none is known (objectives that are not monotone).
        stopped_by: "budget" (full, or nothing left that fits its cost), "stop_gain", or "exhausted"
            (no column left that may be picked).
        rule: What was ranked by: "gain", "gain_per_cost" or "random".
    """

    order: I64
    gain: F64
    objective: F64
    upper_bound: float | None = None
    stopped_by: StoppedBy = "budget"
    rule: RankedBy = "gain"

    @property
    def value(self) -> float:
        """Value of the whole selection."""
        return float(self.objective[-1]) if len(self.objective) else 0.0

    @property
    def share_of_best(self) -> float | None:
        """At least this share of the best possible value; None where no bound is known."""
        if self.upper_bound is None:
            return None
        return 1.0 if self.upper_bound <= 0 else min(self.value / self.upper_bound, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How far a search is: picks so far, most there may be, value, last gain, and the picks.

    `order` is what `prefix` takes to go on after an interruption; copy it to keep it.
    """

    picked: int
    limit: int
    value: float
    gain: float  # of the last pick; 0 before the first
    order: I64
    rule: Rule = "gain"


class Log(NamedTuple):
    """The picks, their gains and the values; `num` holds how many, and whether free picks ended."""

    order: I64
    gain: F64
    objective: F64
    num: I64


NUM_PICKED, CLOSED = 0, 1


class Search:
    """A selection under way: must-includes and the prefix picked, the rest open."""

    def __init__(
        self,
        objective: Objective | Problem,
        budget: Budget,
        *,
        costs: NDArray[np.number] | None = None,
        tie_rank: NDArray[np.integer] | None = None,
        constraints: Constraints | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop_gain: float | None = None,
        prefix: Sequence[int] | I64 = (),
        rule: Rule = "gain",
    ) -> None:
        """Check everything and pick what is settled; arguments and errors as in `lazy_greedy`."""
        self.problem = objective if isinstance(objective, Problem) else objective.problem()
        num_columns = self.problem.num_columns
        constraints = constraints or Constraints()
        self.admission: Admission = open_admission(num_columns, budget, costs, constraints)
        self.rule: Rule = rule
        self.budget, self._on_progress = budget, on_progress
        self.limit = limit_of(budget, num_columns)
        self.rank_J = _check_ranks(num_columns, tie_rank)
        self.stop_gain = _check_stop_gain(stop_gain)
        if rule == "gain_per_cost":
            _check_prices(costs, self.admission.cost_J)
        self.columns, self.state = self.problem.columns, self.problem.empty_state()
        self.log = Log(
            np.empty(self.limit, np.int64), np.empty(self.limit), np.empty(self.limit),
            np.zeros(2, np.int64),
        )  # fmt: skip
        self.gain_J = np.empty(num_columns)  # of the state when the search began
        all_gains(self.columns, self.state, self.gain_J)
        self._replay(np.asarray(constraints.include, np.int64), np.asarray(prefix, np.int64))

    @property
    def picked(self) -> int:
        """Picks so far."""
        return int(self.log.num[NUM_PICKED])

    def report_progress(self) -> None:
        """Tell how far the search is."""
        if self._on_progress is not None:
            value = float(self.log.objective[self.picked - 1]) if self.picked else 0.0
            gain = float(self.log.gain[self.picked - 1]) if self.picked else 0.0
            order = self.log.order[: self.picked]
            self._on_progress(Progress(self.picked, self.limit, value, gain, order, self.rule))

    def ranking(self, *, stopped: bool, rule: RankedBy | None = None) -> Ranking:
        """Return what was picked; `stopped` says that `stop_gain` ended it."""
        picked = self.picked
        stopped_by = "stop_gain" if stopped or self.log.num[CLOSED] else self._ended_by()
        order, gain = self.log.order[:picked].copy(), self.log.gain[:picked].copy()
        objective = self.log.objective[:picked].copy()
        selectable_J = self.admission.open_J.copy()
        selectable_J[order] = True
        bound = upper_bound(
            self.problem, order, objective, selectable_J, self.admission.cost_J, self.budget
        )
        return Ranking(order, gain, objective, bound, stopped_by, rule or self.rule)

    def _ended_by(self) -> StoppedBy:
        if self.picked == self.budget.max_count:
            return "budget"
        open_J = np.flatnonzero(self.admission.open_J)
        verdicts = np.empty(len(open_J), np.int64)
        admits_each(self.admission, open_J, verdicts)
        return "budget" if (verdicts == TOO_DEAR).any() else "exhausted"

    def _replay(self, include_S: I64, prefix_S: I64) -> None:
        """Pick the must-includes, then what an interrupted run had picked after them."""
        shared = min(len(include_S), len(prefix_S))
        if (include_S[:shared] != prefix_S[:shared]).any():
            at = int(np.flatnonzero(include_S[:shared] != prefix_S[:shared])[0])
            msg = f"prefix has column {prefix_S[at]} at {at}, include has {include_S[at]}"
            raise ValueError(msg)
        for name, order_S in (("include", include_S), ("prefix", prefix_S[shared:])):
            outside = order_S[(order_S < 0) | (order_S >= self.problem.num_columns)]
            if len(outside):
                msg = f"{name} names column {outside[0]}, there are {self.problem.num_columns}"
                raise ValueError(msg)
            # What must be in is picked whatever it gains, so it cannot end the free picks.
            stop_gain = math.nan if name == "include" else self.stop_gain
            done = replay(self.columns, self.state, self.admission, self.log, order_S, stop_gain)
            if done < len(order_S):
                msg = (
                    f"{name}: column {order_S[done]} cannot be pick {self.picked + 1} within the"
                    " budget and the quotas, or is listed twice or excluded"
                )
                raise ValueError(msg)
        if self.picked:
            all_gains(self.columns, self.state, self.gain_J)


@compiled
def take(
    columns: Columns, state: State, admission: Admission, log: Log, j: int, gain: float
) -> None:
    """Pick column j, whose gain is known."""
    picked = log.num[NUM_PICKED]
    value = log.objective[picked - 1] if picked > 0 else 0.0
    log.order[picked], log.gain[picked], log.objective[picked] = j, gain, value + gain
    log.num[NUM_PICKED] = picked + 1
    add(columns, state, j)
    spend(admission, j)


@compiled
def judge(admission: Admission, log: Log, gain: float, stop_gain: float) -> int:
    """Say whether the next pick may be the one of this gain: RUNS_ON, STOPS, CLOSES.

    CLOSES: the free picks end, those reserved for minima go on (with other candidates, maybe).
    """
    picked = log.num[NUM_PICKED]
    if not stop_gain >= 0 or picked == 0:  # NaN: never
        return RUNS_ON
    value = log.objective[picked - 1]
    if gain >= stop_gain * max(value, 0.0):
        return RUNS_ON
    if admission.slots[RESERVED] == 0:
        return STOPS
    return CLOSES if admission.slots[FREE] > admission.slots[RESERVED] else RUNS_ON


@compiled
def close(admission: Admission, log: Log) -> None:
    """End the free picks: only those reserved for minima are left."""
    admission.slots[FREE] = admission.slots[RESERVED]
    log.num[CLOSED] = 1


@compiled
def replay(
    columns: Columns, state: State, admission: Admission, log: Log, order_S: I64, stop_gain: float
) -> int:
    """Pick columns in order; return how many were before one that is not admitted."""
    for place in range(len(order_S)):
        j = order_S[place]
        if log.num[NUM_PICKED] >= len(log.order) or not admission.open_J[j]:
            return place
        if admits(admission, j) != ADMITTED:
            return place
        gain = gain_of(columns, state, j)
        verdict = judge(admission, log, gain, stop_gain)
        if verdict == STOPS:
            return place
        if verdict == CLOSES:
            close(admission, log)
            if admits(admission, j) != ADMITTED:
                return place
        take(columns, state, admission, log, j, gain)
    return len(order_S)


def _check_ranks(num_columns: int, tie_rank: NDArray[np.integer] | None) -> I64:
    if tie_rank is None:
        return np.arange(num_columns)
    if tie_rank.shape != (num_columns,):
        msg = f"tie_rank is {tie_rank.shape}, expected [{num_columns}] (one a column)"
        raise ShapeError(msg)
    return tie_rank.astype(np.int64)


def _check_stop_gain(stop_gain: float | None) -> float:
    if stop_gain is None:
        return math.nan
    if not 0 <= stop_gain < 1:
        msg = f"stop_gain is a share of the value so far, in [0, 1); got {stop_gain}"
        raise ValueError(msg)
    return stop_gain


def _check_prices(costs: NDArray[np.number] | None, cost_J: F64) -> None:
    if costs is None:
        msg = "ranking by gain per cost needs the cost of every column"
        raise ValueError(msg)
    free = np.flatnonzero(cost_J <= 0)
    if len(free):
        msg = f"cost of column {free[0]} is 0: gain per cost divides by it"
        raise ValueError(msg)


# Asking for memory before it is needed.

LINE = 16  # entries of 4 bytes in a cache line
MOST = 128  # entries asked for: what a core can have under way, and a usual column


@code.intrinsic
def _fetch(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = code.array(context, builder, signature, arguments, 0).data
        code.fetch(builder, data, arguments[1])
        return context.get_dummy_value()

    return code.types.void(array, index), generate


@compiled
def fetch_column(columns: Columns, j: int) -> None:
    """Ask for the entries of a column."""
    first = columns.indptr[j]
    last = min(columns.indptr[j + 1], first + MOST)
    for entry in range(first, last, LINE):
        if len(columns.rows) > 0:
            _fetch(columns.rows, entry)
        _fetch(columns.values, entry)


# Greedy maximisation: the plain oracle, the lazy search, and the one that minds costs.


__all__ = [
    "Budget",
    "Constraints",
    "Progress",
    "Ranking",
    "cost_benefit_greedy",
    "lazy_greedy",
    "naive_greedy",
]


def naive_greedy(
    objective: Objective | Problem,
    budget: Budget,
    costs: NDArray[np.number] | None = None,
    *,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
    rule: Rule = "gain",
) -> Ranking:
    """Pick greedily, computing every gain anew at every step: the oracle of `lazy_greedy`.

    Arguments, result and errors as there. Time: selected * entries.
    """
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix, rule=rule,
    )  # fmt: skip
    stopped = False
    while search.picked < search.limit and not stopped:
        candidates = _admitted(search)
        if len(candidates) == 0:
            break
        gains = np.empty(len(candidates))
        gains_of(search.columns, search.state, candidates, gains)
        key = gains / search.admission.cost_J[candidates] if rule == "gain_per_cost" else gains
        best = int(np.lexsort((candidates, search.rank_J[candidates], -key))[0])
        verdict = judge(search.admission, search.log, gains[best], search.stop_gain)
        if verdict == CLOSES:
            close(search.admission, search.log)
        elif verdict == STOPS:
            stopped = True
        else:
            j, gain = int(candidates[best]), float(gains[best])
            take(search.columns, search.state, search.admission, search.log, j, gain)
            search.report_progress()
    return search.ranking(stopped=stopped)


def _admitted(search: Search) -> I64:
    open_J = np.flatnonzero(search.admission.open_J)
    verdicts = np.empty(len(open_J), np.int64)
    admits_each(search.admission, open_J, verdicts)
    return open_J[verdicts == ADMITTED]


def lazy_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
    rule: Rule = "gain",
) -> Ranking:
    """Pick greedily, computing a gain anew only when its old value leads a heap.

    Args:
        objective: The set function.
        budget: How much may be selected. It is filled, with picks of no gain or of a negative one
            (functions that are not monotone) where there is nothing better; see `stop_gain`.
        costs: Cost of each column [J], finite and >= 0; needed by a cost budget.
        tie_rank: Rank of each column [J] among equals, smaller first (that of the example ids in
            sorted order, so that the order of the files does not matter); None takes the column
            numbers. Picks of no gain go on in this order until the budget is full.
        constraints: Musts and quotas.
        on_progress: Called with a `Progress` about 100 times.
        stop_gain: Stop before a pick whose gain is below this share, in [0, 1), of the value so
            far (or of 0 while the value is negative). The first pick and `include` are always
            made; minima are still met, by their groups' best. 0 stops before the first pick that
            would lower the value. None never stops.
        prefix: What an interrupted run of the same arguments had picked (`Progress.order`). It is
            replayed, and the ranking is that of the run without interruption, to the last bit.
        rule: What leads: the gain, or the gain per cost.

    Returns:
        The selected columns in the order of picking, with gains, values and an upper bound.

    Raises:
        ValueError: If costs are missing, negative, not finite or (by gain per cost) 0; if
            constraints or prefix cannot be met.
        ShapeError: If costs, tie_rank or groups are not [J].

    Memory: about 45 bytes a column, 4 a row, besides the problem's 8 an entry.
    """
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix, rule=rule,
    )  # fmt: skip
    per_cost = rule == "gain_per_cost"
    heap = np.flatnonzero(search.admission.open_J).astype(np.int32)
    heap_key = search.gain_J[heap]
    if per_cost:
        heap_key /= search.admission.cost_J[heap]
    # Where no term is negative a gain of 0 cannot fall further.
    floor = 0.0 if search.problem.never_falls() else -math.inf
    heapify(heap, heap_key, search.rank_J)
    heap_size, stopped = len(heap), False
    stride = max(1, math.ceil(search.limit / PROGRESS_STEPS))
    while search.picked < search.limit and heap_size > 0 and not stopped:
        heap_size, stopped = _pick(
            search.columns, search.state, search.admission, search.log, search.rank_J,
            heap, heap_key, heap_size, min(search.picked + stride, search.limit),
            search.stop_gain, per_cost, floor,
        )  # fmt: skip
        search.report_progress()
    return search.ranking(stopped=stopped)


def cost_benefit_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    costs: NDArray[np.number],
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefixes: Mapping[Rule, Sequence[int] | I64] | None = None,
) -> Ranking:
    """Search by gain per cost and by gain, lazily, and return the better one.

    Of equal ones it returns that by gain per cost.

    For monotone submodular functions under a cost budget that is at least (1 - 1/e)/2 of the best
    value, where each rule alone can be arbitrarily bad.

    Args:
        objective: As in `lazy_greedy`, like the rest.
        budget: With `max_cost`, as a rule.
        costs: Cost of each column [J], finite and > 0.
        tie_rank: Ranks among equals.
        constraints: Musts and quotas.
        on_progress: Called by both searches; `Progress.rule` says which.
        stop_gain: When to stop.
        prefixes: What an interrupted run had picked by each rule.

    Returns:
        The better ranking; `rule` names what it was ranked by. It is a prefix order of its own
        budget only: another budget may be won by the other rule.

    Source: Leskovec et al. 2007 (CELF), section 3; Khuller et al. 1999.
    """
    by_rule: list[Ranking] = []
    rules: tuple[Rule, Rule] = ("gain_per_cost", "gain")
    for rule in rules:
        ranking = lazy_greedy(
            objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
            on_progress=on_progress, stop_gain=stop_gain, prefix=(prefixes or {}).get(rule, ()),
            rule=rule,
        )  # fmt: skip
        by_rule.append(ranking)
    better = by_rule[0] if by_rule[0].value >= by_rule[1].value else by_rule[1]
    bounds = [ranking.upper_bound for ranking in by_rule if ranking.upper_bound is not None]
    return Ranking(
        better.order, better.gain, better.objective, min(bounds) if bounds else None,
        better.stopped_by, better.rule,
    )  # fmt: skip


@compiled
def precedes(key: float, column: int, other_key: float, other: int, rank_J: I64) -> bool:
    """Whether a column is picked before another at their present keys."""
    if key != other_key:
        return key > other_key
    # Ranks that are equal fall back on the column number, as a stable sort would.
    if rank_J[column] != rank_J[other]:
        return rank_J[column] < rank_J[other]
    return column < other


@compiled
def sink(heap: I32, heap_key: F64, size: int, place: int, rank_J: I64) -> None:
    """Move the column at `place` down until no child comes before it.

    Keys lie beside the columns of the heap: looked up by column, each comparison would miss the
    cache.
    """
    column, key = heap[place], heap_key[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and precedes(
            heap_key[right], heap[right], heap_key[child], heap[child], rank_J
        ):
            child = right
        if not precedes(heap_key[child], heap[child], key, column, rank_J):
            break
        heap[place], heap_key[place] = heap[child], heap_key[child]
        place = child
    heap[place], heap_key[place] = column, key


@compiled
def heapify(heap: I32, heap_key: F64, rank_J: I64) -> None:
    """Put the column to be picked first on top."""
    for place in range(len(heap) // 2 - 1, -1, -1):
        sink(heap, heap_key, len(heap), place, rank_J)


@compiled
def _pick(
    columns: Columns, state: State, admission: Admission, log: Log, rank_J: I64,
    heap: I32, heap_key: F64, heap_size: int, until: int,
    stop_gain: float, per_cost: bool, floor: float,
) -> tuple[int, bool]:  # fmt: skip
    """Pick until `until` columns are selected; return the heap's size and whether to stop."""
    while log.num[NUM_PICKED] < until and heap_size > 0:
        j = heap[0]
        if admission.slots[FREE] == 0:
            return heap_size, True
        if admits(admission, j) == ADMITTED:
            price = admission.cost_J[j] if per_cost else 1.0
            gain = heap_key[0]
            if gain > floor or per_cost:
                for near in range(1, min(3, heap_size)):
                    fetch_column(columns, heap[near])
                gain = gain_of(columns, state, j)
                key = gain / price
                if key != heap_key[0]:
                    heap_key[0] = key
                    sink(heap, heap_key, heap_size, 0, rank_J)
                    continue
            verdict = judge(admission, log, gain, stop_gain)
            if verdict == STOPS:
                return heap_size, True
            if verdict == CLOSES:
                close(admission, log)
                continue
            take(columns, state, admission, log, j, gain)
        heap_size -= 1
        heap[0], heap_key[0] = heap[heap_size], heap_key[heap_size]
        sink(heap, heap_key, heap_size, 0, rank_J)
    return heap_size, False


# Random numbers by hashing: the same for a seed and a number, in whatever order they are drawn.

U64 = NDArray[np.uint64]


@compiled
def mixed(seed: int | np.uint64, number: int) -> np.uint64:
    """Return 64 bits that look random, of a seed and a number.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014.
    """
    bits = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number)
    bits += np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@compiled
def mixed_each(seed: int, number_N: I64, bits_N: U64) -> None:
    """Write `mixed` of each number."""
    for n in range(len(number_N)):
        bits_N[n] = mixed(seed, number_N[n])


# Greedy over a random sample at every step: one pass over the entries, whatever the budget.


def stochastic_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    epsilon: float = 0.1,
    seed: int = 0,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_gain: float | None = None,
    prefix: Sequence[int] | I64 = (),
) -> Ranking:
    """Pick the best of ceil(J / B * ln(1 / epsilon)) columns drawn at every step.

    For monotone submodular functions under a count budget B the value is in expectation at least
    1 - 1/e - epsilon of the best. Columns are drawn with replacement from those not picked, by a
    hash of (seed, number of the pick, number of the draw) over the columns in tie order: neither
    the order of the files nor an interruption changes a draw. Where a whole sample is refused by
    quotas or costs, the best of all that are admitted is picked.

    Args:
        objective: As in `lazy_greedy`, like all that is not named here.
        budget: With max_count: the sample is sized by it.
        epsilon: What may be lost, in (0, 1); smaller draws more.
        seed: Seed of the draws.
        costs: Cost of each column.
        tie_rank: Rank of each column among equals, and in what draws are made from.
        constraints: Musts and quotas.
        on_progress: Called about 100 times.
        stop_gain: As in `lazy_greedy`, of the best of a sample.
        prefix: What an interrupted run had picked.

    Returns:
        The ranking: a prefix order for this budget, since the sample's size depends on it.

    Raises:
        ValueError: As `lazy_greedy`; without max_count; if epsilon is outside (0, 1).

    Source: Mirzasoleiman et al. 2015, Lazier than lazy greedy, arXiv 1409.7938.
    """
    if budget.max_count is None:
        msg = "stochastic greedy needs max_count: its samples are sized by it"
        raise ValueError(msg)
    if not 0 < epsilon < 1:
        msg = f"epsilon must lie in (0, 1), got {epsilon}"
        raise ValueError(msg)
    search = Search(
        objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints,
        on_progress=on_progress, stop_gain=stop_gain, prefix=prefix,
    )  # fmt: skip
    pool, place_J, pool_size = _pool(search)
    share = len(pool) / max(search.limit, 1)
    sample = max(1, math.ceil(share * math.log(1 / epsilon)))
    stride, stopped = max(1, math.ceil(search.limit / PROGRESS_STEPS)), False
    while search.picked < search.limit and pool_size > 0 and not stopped:
        pool_size, stopped = _pick_sampled(
            search.columns, search.state, search.admission, search.log, search.rank_J,
            pool, place_J, pool_size, sample, seed,
            min(search.picked + stride, search.limit), search.stop_gain,
        )  # fmt: skip
        search.report_progress()
    return search.ranking(stopped=stopped)


def _pool(search: Search) -> tuple[I32, I32, int]:
    """Return the columns to draw from in tie order, their places, and how many are left.

    What is picked already leaves the pool in the order of picking, as in a run that was never
    interrupted.
    """
    num_columns = search.problem.num_columns
    was_open = search.admission.open_J.copy()
    picked_S = search.log.order[: search.picked]
    was_open[picked_S] = True
    by_rank = np.lexsort((np.arange(num_columns), search.rank_J))
    pool = by_rank[was_open[by_rank]].astype(np.int32)
    place_J = np.full(num_columns, -1, np.int32)
    place_J[pool] = np.arange(len(pool), dtype=np.int32)
    return pool, place_J, _remove_all(pool, place_J, len(pool), picked_S)


@compiled
def _remove_all(pool: I32, place_J: I32, size: int, picked_S: I64) -> int:
    for j in picked_S:
        size = _remove(pool, place_J, size, j)
    return size


@compiled
def _remove(pool: I32, place_J: I32, size: int, j: int) -> int:
    """Let the last column of the pool take the place of column j; return the new size."""
    place, last = place_J[j], pool[size - 1]
    pool[place], place_J[last] = last, place
    return size - 1


@compiled
def _pick_sampled(
    columns: Columns, state: State, admission: Admission, log: Log, rank_J: I64,
    pool: I32, place_J: I32, pool_size: int, sample: int, seed: int, until: int, stop_gain: float,
) -> tuple[int, bool]:  # fmt: skip
    """Pick until `until` columns are selected; return the pool's size and whether to stop."""
    drawn = np.empty(sample, np.int32)
    while log.num[NUM_PICKED] < until and pool_size > 0:
        for draw in range(sample):
            drawn[draw] = pool[_place(mixed(mixed(seed, log.num[NUM_PICKED]), draw), pool_size)]
        best, gain = _best_of(columns, state, admission, rank_J, drawn)
        if best < 0:
            best, gain = _best_of(columns, state, admission, rank_J, pool[:pool_size])
        if best < 0:
            return 0, False
        verdict = judge(admission, log, gain, stop_gain)
        if verdict == STOPS:
            return pool_size, True
        if verdict == CLOSES:
            close(admission, log)
            continue
        take(columns, state, admission, log, best, gain)
        pool_size = _remove(pool, place_J, pool_size, best)
    return pool_size, False


@compiled
def _place(bits: np.uint64, size: int) -> int:
    return int(bits % np.uint64(size))


@compiled
def _best_of(
    columns: Columns, state: State, admission: Admission, rank_J: I64, listed: I32
) -> tuple[int, float]:
    """Return the admitted column of greatest gain, -1 if none is, and its gain."""
    best, best_gain = -1, -np.inf
    for j in listed:
        if admits(admission, j) != ADMITTED:
            continue
        gain = gain_of(columns, state, j)
        if best < 0 or precedes(gain, j, best_gain, best, rank_J):
            best, best_gain = j, gain
    return best, best_gain


# The baseline of every selection, a random one, and the value of any selection.


def random_ranking(
    objective: Objective | Problem,
    budget: Budget,
    *,
    seed: int,
    costs: NDArray[np.number] | None = None,
    tie_rank: NDArray[np.integer] | None = None,
    constraints: Constraints | None = None,
) -> Ranking:
    """Pick at random, within budget and constraints, and say what that is worth.

    The order is that of a hash of (seed, tie rank): the order of the files is no matter, and a
    larger budget begins with the picks of a smaller one.

    Args:
        objective: What the picks are valued by; it chooses nothing.
        budget: As in `lazy_greedy`, like the rest.
        seed: Seed of the order.
        costs: Cost of each column.
        tie_rank: What stands for each column in the hash, distinct; None takes the column numbers.
        constraints: Musts and quotas.

    Returns:
        The ranking; its upper bound holds for every selection, so `share_of_best` does too.
    """
    search = Search(objective, budget, costs=costs, tie_rank=tie_rank, constraints=constraints)
    key_J = np.empty(search.problem.num_columns, np.uint64)
    mixed_each(seed, search.rank_J, key_J)
    order_J = np.lexsort((search.rank_J, key_J))
    _take_in_order(search.columns, search.state, search.admission, search.log, order_J)
    return search.ranking(stopped=False, rule="random")


def evaluate(objective: Objective | Problem, order_S: I64) -> F64:
    """Return the value of the first 1, 2, ..., S of some columns: [S] float64.

    Raises:
        ValueError: If a column is listed twice or does not exist.
    """
    problem = objective if isinstance(objective, Problem) else objective.problem()
    order_S = np.asarray(order_S, np.int64)
    if len(order_S) and not 0 <= order_S.min() <= order_S.max() < problem.num_columns:
        msg = f"columns {order_S.min()}..{order_S.max()}, there are {problem.num_columns}"
        raise ValueError(msg)
    if len(np.unique(order_S)) < len(order_S):
        msg = "a selection lists a column twice"
        raise ValueError(msg)
    gain_S = np.empty(len(order_S))
    _add_in_order(problem.columns, problem.empty_state(), order_S, gain_S)
    return np.cumsum(gain_S)


@compiled
def _take_in_order(
    columns: Columns, state: State, admission: Admission, log: Log, order_J: I64
) -> None:
    for j in order_J:
        if log.num[NUM_PICKED] == len(log.order):
            return
        if not admission.open_J[j]:
            continue
        if admits(admission, j) == ADMITTED:
            take(columns, state, admission, log, j, gain_of(columns, state, j))


@compiled
def _add_in_order(columns: Columns, state: State, order_S: I64, gain_S: F64) -> None:
    for place in range(len(order_S)):
        gain_S[place] = gain_of(columns, state, order_S[place])
        add(columns, state, order_S[place])
