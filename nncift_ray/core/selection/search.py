"""What every optimiser shares: the picks so far, their replay, when to stop, the upper bound.

Suffixes: J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.jit import compiled
from nncift_ray.core.selection.admission import (
    ADMITTED,
    FREE,
    RESERVED,
    TOO_DEAR,
    Admission,
    admits,
    admits_each,
    limit_of,
    open_admission,
    spend,
)
from nncift_ray.core.selection.budget import Budget, Constraints
from nncift_ray.core.selection.problem import (
    Columns,
    Objective,
    Problem,
    State,
    add,
    all_gains,
    gain_of,
)
from nncift_ray.core.selection.upper_bound import upper_bound
from nncift_ray.errors import ShapeError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
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
