"""Greedy maximisation: the lazy search, the one that minds costs; rows in turn; and at random.

Greedy picks, at every step, the feasible column of greatest marginal gain, equals by `ties`; once
the best gain is not above a thousandth of the mean gain so far, all that is left counts as equal.
Lazy evaluation changes nothing, to the last bit (`problem` says why a gain computed earlier is a
bound in floating point too).

Greedy reaches 1 - 1/e of the best value of a monotone submodular function under a count budget
(Nemhauser et al. 1978), half of it under quotas (Fisher et al. 1978). Lazy evaluation: Minoux 1978.
Suffixes: J columns, S selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from nncift_ray import jit as code
from nncift_ray.errors import ShapeError
from nncift_ray.jit import compiled
from nncift_ray.selection.budgets import (
    FEASIBLE,
    FREE,
    RESERVED,
    TOO_EXPENSIVE,
    Budget,
    Constraints,
    Limits,
    open_limits,
    spend,
    verdict,
    verdicts,
)
from nncift_ray.selection.problem import (
    MODULAR,
    Objective,
    Problem,
    State,
    add,
    add_each,
    all_gains,
    best_first,
    gain_of,
)
from nncift_ray.selection.ties import (
    DISTANCE,
    ID,
    INCLUDE,
    OBJECTIVE,
    OFF,
    QUALITY,
    RANDOM,
    UNIT,
    UNREAD,
    TieBreak,
    Ties,
    compare,
    open_ties,
    read_ties,
)

F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

Rule = Literal["gain", "gain_per_cost"]
RULES: tuple[Rule, Rule] = ("gain_per_cost", "gain")
RankedBy = Literal["gain", "gain_per_cost", "turns", "random"]
StoppedBy = Literal["budget", "stop_gain", "exhausted"]

PROGRESS_STEPS = 100  # calls of on_progress in a whole run
TINY_SHARE = 1e-3  # of the mean gain so far: a gain not above it decides nothing
NUM_PICKED, CLOSED, FLAT = 0, 1, 2  # places in `Log.num`
GAIN, PRICE = 0, 1  # places in `Log.total`
CONTINUE, STOP, CLOSE = 0, 1, 2
READ_TIES, FLATTEN = 3, 4
CACHE_LINE = 16  # entries of 4 bytes
MAX_PREFETCH = 128  # entries asked for: what a core can have under way, and a usual column


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The selected columns, best first.

    Attributes:
        order: Columns [S].
        gain: What each pick added to the objective [S]. Of the free picks that the objective
            decided, under a count budget without constraints, it never rises.
        objective: Value after each pick [S].
        upper_bound: No subset within the budget has a larger value (constraints left aside); None
            where none is known (objectives that are not monotone).
        stopped_by: "budget" (full, or nothing left that fits its cost), "stop_gain", or "exhausted"
            (no column left that may be picked).
        rule: What was ranked by: "gain", "gain_per_cost", "turns" or "random".
        decided: What decided each pick [S], as places of `ties.DECIDED_BY`.
    """

    order: I64
    gain: F64
    objective: F64
    decided: I8
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

    `order` and `decided` are what `prefix` takes to go on after an interruption; copy them to keep
    them.
    """

    picked: int
    limit: int
    value: float
    gain: float  # of the last pick; 0 before the first
    order: I64
    decided: I8
    rule: Rule = "gain"


class Prefix(NamedTuple):
    """What an interrupted search had picked, and by what."""

    order: Sequence[int] | I64 = ()
    decided: Sequence[int] | I8 = ()


NO_PREFIX = Prefix()


class SearchOptions(TypedDict, total=False):
    """What all searches take besides objective and budget, as far as they read it.

    Attributes:
        costs: Cost of each column [J], finite and >= 0; needed by a cost budget.
        tie_rank: Rank of each column [J] among exact equals, smaller first (that of the example ids
            in sorted order, so that the order of the files does not matter); None takes the column
            numbers.
        tie_break: Quality and directions of the columns. They decide among equal gains, and, of
            functions that never fall and have pairs, all picks after the best gain has come down to
            `TINY_SHARE` of the mean so far. None leaves both to `tie_rank`.
        constraints: Must-include and exclude lists, and quotas.
        on_progress: Called with a `Progress` about 100 times.
        stop_gain: Stop before a pick whose gain is below this share, in [0, 1), of the value so
            far (or of 0 while the value is negative). The first pick and `include` are always
            made; minima are still met, by their groups' best. 0 stops before the first pick that
            would lower the value. None never stops.
    """

    costs: NDArray[np.number] | None
    tie_rank: NDArray[np.integer] | None
    tie_break: TieBreak | None
    constraints: Constraints | None
    on_progress: Callable[[Progress], None] | None
    stop_gain: float | None


def lazy_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    prefix: Prefix = NO_PREFIX,
    rule: Rule = "gain",
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Pick greedily, computing a gain anew only when its old value leads a heap.

    Args:
        objective: The set function.
        budget: How much may be selected. It is filled, with picks of no gain or of a negative one
            (functions that are not monotone) where there is nothing better, unless `stop_gain`.
        prefix: What an interrupted run of the same arguments had picked (`Progress`). It is
            replayed, and the ranking is that of the run without interruption, to the last bit.
        rule: What leads: the gain, or the gain per cost.
        options: See `SearchOptions`.

    Returns:
        The selected columns in the order of picking, with gains, values and an upper bound.

    Raises:
        ValueError: If costs are missing, negative, not finite or (by gain per cost) 0; if
            constraints or prefix cannot be met.
        ShapeError: If costs, tie_rank or groups are not [J].

    Memory: about 65 bytes a column, 4 a row, besides the problem's 8 an entry; where ties are met,
    the directions too.
    """
    search = Search(objective, budget, prefix=prefix, rule=rule, **options)
    per_cost = rule == "gain_per_cost"
    heap = np.flatnonzero(search.limits.open_J).astype(np.int32)
    heap_key = search.gain_J[heap]
    if per_cost:
        heap_key /= search.limits.cost_J[heap]
    # Where no term is negative a gain of 0 cannot fall further.
    floor = 0.0 if search.problem.never_falls() else -math.inf
    if search.log.num[FLAT]:
        heap_key[:] = 0.0
    _heapify(heap, heap_key, search.rank_J, search.ties.key_J)
    heap_size, status = len(heap), CONTINUE
    stride = max(1, math.ceil(search.most_picks / PROGRESS_STEPS))
    while search.picked < search.most_picks and heap_size > 0 and status != STOP:
        until = min((search.picked // stride + 1) * stride, search.most_picks)
        heap_size, status = _pick(
            search.problem, search.state, search.limits, search.log, search.rank_J, search.ties,
            heap, heap_key, heap_size, until, search.stop_gain, search.tiny, per_cost, floor,
        )  # fmt: skip
        if status == READ_TIES:
            search.read_ties()
        elif status == FLATTEN:
            search.flatten()
            heap_key[:heap_size] = 0.0
        if status in (READ_TIES, FLATTEN):
            _heapify(heap[:heap_size], heap_key[:heap_size], search.rank_J, search.ties.key_J)
        else:
            search.report_progress()
    stopped = status == STOP
    return search.ranking(stopped=stopped)


def cost_benefit_greedy(
    objective: Objective | Problem,
    budget: Budget,
    *,
    prefixes: Mapping[Rule, Prefix] | None = None,
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Search by gain per cost and by gain, lazily, and return the better (the first of equals).

    For monotone submodular functions under a cost budget that is at least (1 - 1/e)/2 of the best
    value, where each rule alone can be arbitrarily bad. Arguments as in `lazy_greedy`; costs are
    > 0, and `prefixes` are what an interrupted run had picked by each rule (`Progress.rule`).

    Returns:
        The better ranking; `rule` names what it was ranked by. It is a prefix order of its own
        budget only: another budget may be won by the other rule.

    Source: Leskovec et al. 2007 (CELF), section 3; Khuller et al. 1999.
    """
    problem, prefixes = _problem(objective), prefixes or {}
    per_cost, by_gain = (
        lazy_greedy(problem, budget, prefix=prefixes.get(rule, NO_PREFIX), rule=rule, **options)
        for rule in RULES
    )
    better = per_cost if per_cost.value >= by_gain.value else by_gain
    bounds = [r.upper_bound for r in (per_cost, by_gain) if r.upper_bound is not None]
    return replace(better, upper_bound=min(bounds, default=None))


def random_ranking(
    objective: Objective | Problem,
    budget: Budget,
    *,
    seed: int,
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Pick at random, within budget and constraints, and say what that is worth.

    The order is that of a hash of (seed, tie rank): the order of the files is no matter, and a
    larger budget begins with the picks of a smaller one. Arguments as in `lazy_greedy`; tie ranks
    are distinct.

    Returns:
        The ranking; its upper bound holds for every selection, so `share_of_best` does too.
    """
    search = Search(objective, budget, **options)
    order_J = np.lexsort((search.rank_J, splitmix64(seed, search.rank_J)))
    _take_in_order(search.problem, search.state, search.limits, search.log, order_J)
    return replace(search.ranking(stopped=False), rule="random")


def spread_ranking(
    objective: Objective | Problem,
    budget: Budget,
    score_J: F64,
    directed: TieBreak,
    min_distance: float,
    **options: Unpack[SearchOptions],
) -> Ranking:
    """Pick by score, leaving out what lies nearer than a distance to a better pick.

    What was left out follows by score where the budget is not filled otherwise. The distance is
    1 - cosine of what `directed` reads. Arguments as in `lazy_greedy`.

    Source: DEITA, arXiv 2312.15685, section 2.4 (there the budget may stay unfilled).
    """
    options["tie_break"] = TieBreak(np.ones_like(directed.quality_J), directed.read)
    search = Search(objective, budget, **options)
    search.read_ties()
    order_J = np.lexsort((search.rank_J, -score_J))
    most = (1.0 - min_distance) * UNIT**2
    for limit in (most, math.inf):
        _take_apart(
            search.problem, search.state, search.limits, search.log, search.ties, order_J, limit
        )
    return search.ranking(stopped=False)


def round_robin_ranking(
    objective: Objective, budget: Budget, **options: Unpack[SearchOptions]
) -> Ranking:
    """Let each row, in turn, pick the column of its list that helps it most and is still free.

    Rows take turns in their order until the budget is filled or all lists are at their end; a
    column that budget or quotas forbid costs no turn. Equals go by tie rank. Arguments as in
    `lazy_greedy`; the objective, on lists, only says what the picks are worth.

    Time: one sort of the lists. Memory: 8 bytes an entry beside the objective's.

    Source: RDS+, arXiv 2503.01807, section 3.
    """
    search = Search(objective, budget, **options)
    indptr, column_E = best_first(objective.scores, search.rank_J)
    _take_in_turns(search.problem, search.state, search.limits, search.log, indptr, column_E)
    return replace(search.ranking(stopped=False), rule="turns")


def evaluate(objective: Objective | Problem, order_S: I64) -> F64:
    """Return the value of the first 1, 2, ..., S of some columns: [S] float64.

    Raises:
        ValueError: If a column is listed twice or does not exist.
    """
    problem = _problem(objective)
    order_S = np.asarray(order_S, np.int64)
    if len(order_S) and not 0 <= order_S.min() <= order_S.max() < problem.num_columns:
        msg = f"columns {order_S.min()}..{order_S.max()}, there are {problem.num_columns}"
        raise ValueError(msg)
    if len(np.unique(order_S)) < len(order_S):
        raise ValueError("a selection lists a column twice")
    gain_S = np.empty(len(order_S))
    _add_in_order(problem, problem.empty_state(), order_S, gain_S)
    return np.cumsum(gain_S)


def _problem(objective: Objective | Problem) -> Problem:
    return objective if isinstance(objective, Problem) else objective.problem()


def splitmix64(seed: int, number_N: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return 64 pseudo-random bits of a seed and each number, whatever their order.

    Source: SplitMix64, Steele, Lea and Flood 2014.
    """
    step = 0x9E3779B97F4A7C15
    bits_N = number_N.astype(np.uint64) + np.uint64((seed + 1) * step % 2**64)
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))


# A search: the picks so far, their replay, and when to stop.


class Log(NamedTuple):
    """The picks, their gains, the values, and what decided each.

    `num` holds how many there are, whether free picks ended, and whether gains decide no more;
    `total` the gain and the price (1, or the cost) of the picks that had one to decide by.
    """

    order: I64
    gain: F64
    objective: F64
    decided: I8
    num: I64
    total: F64


class Search:
    """A selection in progress: must-includes and the prefix picked, the rest open."""

    def __init__(
        self,
        objective: Objective | Problem,
        budget: Budget,
        *,
        costs: NDArray[np.number] | None = None,
        tie_rank: NDArray[np.integer] | None = None,
        tie_break: TieBreak | None = None,
        constraints: Constraints | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop_gain: float | None = None,
        prefix: Prefix = NO_PREFIX,
        rule: Rule = "gain",
    ) -> None:
        """Check everything and pick what is settled; arguments and errors as in `lazy_greedy`."""
        self.problem = _problem(objective)
        num_columns = self.problem.num_columns
        constraints = constraints or Constraints()
        self.limits: Limits = open_limits(num_columns, budget, costs, constraints)
        self.rule: Rule = rule
        self.budget, self._on_progress = budget, on_progress
        self.most_picks = budget.most_picks(num_columns)
        self.rank_J: I64 = np.arange(num_columns)
        if tie_rank is not None:
            self.rank_J = tie_rank.astype(np.int64)
        if self.rank_J.shape != (num_columns,):
            msg = f"tie_rank is {self.rank_J.shape}, expected [{num_columns}] (one a column)"
            raise ShapeError(msg)
        if stop_gain is not None and not 0 <= stop_gain < 1:
            msg = f"stop_gain is a share of the value so far, in [0, 1); got {stop_gain}"
            raise ValueError(msg)
        self.stop_gain = math.nan if stop_gain is None else stop_gain
        if rule == "gain_per_cost":
            _check_prices(costs, self.limits.cost_J)
        self.state = self.problem.empty_state()
        self.log = Log(
            np.empty(self.most_picks, np.int64), np.empty(self.most_picks),
            np.empty(self.most_picks), np.empty(self.most_picks, np.int8), np.zeros(3, np.int64),
            np.zeros(2),
        )  # fmt: skip
        # A sort by score is decided by scores, however small; and what can fall below 0 goes on.
        covers = self.problem.never_falls() and self.problem.kind != MODULAR
        self.tiny = TINY_SHARE if covers else math.nan
        self._tie_break, self.ties = tie_break, open_ties(num_columns, tie_break)
        self.gain_J = np.empty(num_columns)  # of the state when the search began
        all_gains(self.problem, self.state, self.gain_J)
        self._replay(np.asarray(constraints.include, np.int64), prefix)

    @property
    def picked(self) -> int:
        """Picks so far."""
        return int(self.log.num[NUM_PICKED])

    def read_ties(self) -> None:
        """Read what decides among equals, and compare the open columns with the picks."""
        if self._tie_break is None or self.ties.status != UNREAD:
            return
        open_J, picks_S = np.flatnonzero(self.limits.open_J), self.log.order[: self.picked]
        self.ties = read_ties(self.ties, self._tie_break, open_J, picks_S)

    def flatten(self) -> None:
        """From here on gains decide nothing."""
        self.log.num[FLAT] = 1
        self.read_ties()

    def report_progress(self) -> None:
        """Tell how far the search is."""
        if self._on_progress is not None:
            picked = self.picked
            value = float(self.log.objective[picked - 1]) if picked else 0.0
            gain = float(self.log.gain[picked - 1]) if picked else 0.0
            order, decided = self.log.order[:picked], self.log.decided[:picked]
            self._on_progress(
                Progress(picked, self.most_picks, value, gain, order, decided, self.rule)
            )

    def ranking(self, *, stopped: bool) -> Ranking:
        """Return what was picked; `stopped` says that `stop_gain` ended it."""
        stopped_by = "stop_gain" if stopped or self.log.num[CLOSED] else self._ended_by()
        picked, log = self.picked, self.log
        order, gain, objective = log.order[:picked], log.gain[:picked], log.objective[:picked]
        selectable_J = self.limits.open_J.copy()
        selectable_J[order] = True
        bound = upper_bound(
            self.problem, order, objective, selectable_J, self.limits.cost_J, self.budget
        )
        done, decided = (order.copy(), gain.copy(), objective.copy()), log.decided[:picked].copy()
        return Ranking(*done, decided, bound, stopped_by, self.rule)

    def _ended_by(self) -> StoppedBy:
        if self.picked == self.budget.max_count:
            return "budget"
        open_J = np.flatnonzero(self.limits.open_J)
        found = np.empty(len(open_J), np.int64)
        verdicts(self.limits, open_J, found)
        return "budget" if (found == TOO_EXPENSIVE).any() else "exhausted"

    def _replay(self, include_S: I64, prefix: Prefix) -> None:
        """Pick the must-includes, then what an interrupted run had picked after them."""
        prefix_S = np.asarray(prefix.order, np.int64)
        decided_S = np.asarray(prefix.decided, np.int8)
        if len(decided_S) != len(prefix_S):
            msg = f"prefix has {len(prefix_S)} picks and says of {len(decided_S)} what decided them"
            raise ShapeError(msg)
        shared = min(len(include_S), len(prefix_S))
        differ = np.flatnonzero(include_S[:shared] != prefix_S[:shared])
        if len(differ):
            at = int(differ[0])
            msg = f"prefix has column {prefix_S[at]} at {at}, include has {include_S[at]}"
            raise ValueError(msg)
        must_S = np.full(len(include_S), INCLUDE, np.int8)
        for name, order_S, reason_S in (
            ("include", include_S, must_S), ("prefix", prefix_S[shared:], decided_S[shared:]),
        ):  # fmt: skip
            outside = order_S[(order_S < 0) | (order_S >= self.problem.num_columns)]
            if len(outside):
                msg = f"{name} names column {outside[0]}, there are {self.problem.num_columns}"
                raise ValueError(msg)
            # What must be in is picked whatever it gains, so it cannot end the free picks.
            must = name == "include"
            stop_gain, tiny = (math.nan, math.nan) if must else (self.stop_gain, self.tiny)
            done = _take_all(
                self.problem, self.state, self.limits, self.log, order_S, reason_S, stop_gain,
                math.nan if self._tie_break is None else tiny, self.rule == "gain_per_cost",
            )  # fmt: skip
            if done < len(order_S):
                msg = (
                    f"{name}: column {order_S[done]} cannot be pick {self.picked + 1} within the"
                    " budget and the quotas, or is listed twice or excluded"
                )
                raise ValueError(msg)
        if self.picked:
            all_gains(self.problem, self.state, self.gain_J)
        if self.log.num[FLAT]:
            self.read_ties()


def _check_prices(costs: NDArray[np.number] | None, cost_J: F64) -> None:
    if costs is None:
        raise ValueError("ranking by gain per cost needs the cost of every column")
    free = np.flatnonzero(cost_J <= 0)
    if len(free):
        raise ValueError(f"cost of column {free[0]} is 0: gain per cost divides by it")


@compiled
def take(
    problem: Problem, state: State, limits: Limits, log: Log, j: int, gain: float, decided: int,
    per_cost: bool,
) -> None:  # fmt: skip
    """Pick column j, whose gain is known."""
    picked = log.num[NUM_PICKED]
    value = log.objective[picked - 1] if picked > 0 else 0.0
    log.order[picked], log.gain[picked], log.objective[picked] = j, gain, value + gain
    log.decided[picked] = decided
    log.num[NUM_PICKED] = picked + 1
    if log.num[FLAT] == 0:
        log.total[GAIN] += gain
        log.total[PRICE] += limits.cost_J[j] if per_cost else 1.0
    add(problem, state, j)
    spend(limits, j)


@compiled
def is_tiny(log: Log, key: float, tiny: float) -> bool:
    """Whether a gain (per cost) is not above a share of the mean so far; never of NaN."""
    return key <= tiny * (log.total[GAIN] / max(log.total[PRICE], 1e-300))


@compiled
def judge(limits: Limits, log: Log, gain: float, stop_gain: float) -> int:
    """Say whether the next pick may be the one of this gain: CONTINUE, STOP, CLOSE.

    CLOSE: the free picks end, those reserved for minima go on (with other candidates, maybe).
    """
    picked = log.num[NUM_PICKED]
    if not stop_gain >= 0 or picked == 0:  # NaN: never
        return CONTINUE
    if gain >= stop_gain * max(log.objective[picked - 1], 0.0):
        return CONTINUE
    if limits.slots[RESERVED] == 0:
        return STOP
    return CLOSE if limits.slots[FREE] > limits.slots[RESERVED] else CONTINUE


@compiled
def close(limits: Limits, log: Log) -> None:
    """End the free picks: only those reserved for minima are left."""
    limits.slots[FREE] = limits.slots[RESERVED]
    log.num[CLOSED] = 1


@compiled
def _take_all(
    problem: Problem, state: State, limits: Limits, log: Log, order_S: I64, decided_S: I8,
    stop_gain: float, tiny: float, per_cost: bool,
) -> int:  # fmt: skip
    """Pick columns in order; return how many were before one that is not feasible."""
    for place in range(len(order_S)):
        j = order_S[place]
        if log.num[NUM_PICKED] >= len(log.order) or not limits.open_J[j]:
            return place
        gain = gain_of(problem, state, j)
        judged = judge(limits, log, gain, stop_gain) if verdict(limits, j) == FEASIBLE else STOP
        if judged == CLOSE:
            close(limits, log)
        if judged == STOP or verdict(limits, j) != FEASIBLE:
            return place
        if is_tiny(log, float(gain / limits.cost_J[j]) if per_cost else gain, tiny):
            log.num[FLAT] = 1
        take(problem, state, limits, log, j, gain, decided_S[place], per_cost)
    return len(order_S)


@compiled
def _take_in_order(problem: Problem, state: State, limits: Limits, log: Log, order_J: I64) -> None:
    """Pick columns in order, leaving out those that are not feasible."""
    for j in order_J:
        if log.num[NUM_PICKED] == len(log.order):
            return
        if limits.open_J[j] and verdict(limits, j) == FEASIBLE:
            take(problem, state, limits, log, j, gain_of(problem, state, j), RANDOM, False)


@compiled
def _take_apart(
    problem: Problem, state: State, limits: Limits, log: Log, ties: Ties, order_J: I64, most: float
) -> None:
    """Pick columns in order whose largest product with a pick is at most `most`."""
    for j in order_J:
        picked = log.num[NUM_PICKED]
        if picked == len(log.order):
            return
        if limits.open_J[j] and verdict(limits, j) == FEASIBLE:
            compare(ties, log.order, picked, j)
            if picked == 0 or ties.level_J[j] - ties.key_J[j] <= most:
                gain = gain_of(problem, state, j)
                take(problem, state, limits, log, j, gain, OBJECTIVE, False)


@compiled
def _take_in_turns(
    problem: Problem, state: State, limits: Limits, log: Log, indptr: I64, column_E: I32
) -> None:
    """Let each row pick the first feasible column that is left in its list, in turn."""
    next_I, is_left = indptr[:-1].copy(), True
    while is_left:
        is_left = False
        for i in range(len(next_I)):
            picked = log.num[NUM_PICKED]
            if picked == len(log.order):
                return
            while next_I[i] < indptr[i + 1] and log.num[NUM_PICKED] == picked:
                j = int(column_E[next_I[i]])
                next_I[i] += 1
                if limits.open_J[j] and verdict(limits, j) == FEASIBLE:
                    gain = gain_of(problem, state, j)
                    take(problem, state, limits, log, j, gain, OBJECTIVE, False)
                    is_left = True


@compiled
def _add_in_order(problem: Problem, state: State, order_S: I64, gain_S: F64) -> None:
    for place in range(len(order_S)):
        gain_S[place] = gain_of(problem, state, order_S[place])
        add(problem, state, order_S[place])


@compiled
def _pick(
    problem: Problem, state: State, limits: Limits, log: Log, rank_J: I64, ties: Ties,
    heap: I32, heap_key: F64, heap_size: int, until: int,
    stop_gain: float, tiny: float, per_cost: bool, floor: float,
) -> tuple[int, int]:  # fmt: skip
    """Pick until `until` columns are selected; return the heap's size and what is to be done."""
    while log.num[NUM_PICKED] < until and heap_size > 0:
        j, flat = heap[0], log.num[FLAT] == 1
        if limits.slots[FREE] == 0:
            return heap_size, STOP
        if verdict(limits, j) == FEASIBLE:
            gain = heap_key[0]
            if not flat and (gain > floor or per_cost):
                for near in range(1, min(3, heap_size)):
                    _prefetch_column(problem, heap[near])
                gain = gain_of(problem, state, j)
                key = _key(limits, j, gain, per_cost)
                if key != heap_key[0]:
                    heap_key[0] = key
                    _sink(heap, heap_key, heap_size, 0, rank_J, ties.key_J)
                    continue
            is_small = is_tiny(log, heap_key[0], tiny)
            if is_small and not flat and ties.status != OFF:
                return heap_size, FLATTEN
            decided = DISTANCE if flat else OBJECTIVE
            if ties.status == OFF:
                decided = ID if is_small else OBJECTIVE
            elif _has_equal(heap_key, heap_size):
                if ties.status == UNREAD:
                    return heap_size, READ_TIES
                decided = _settle(
                    problem, state, limits, log, rank_J, ties, heap, heap_key, heap_size, per_cost
                )
                if decided < 0:
                    continue
            if flat:
                gain = gain_of(problem, state, j)
            judged = judge(limits, log, gain, stop_gain)
            if judged == STOP:
                return heap_size, STOP
            if judged == CLOSE:
                close(limits, log)
                continue
            take(problem, state, limits, log, j, gain, decided, per_cost)
        heap_size -= 1
        heap[0], heap_key[0] = heap[heap_size], heap_key[heap_size]
        _sink(heap, heap_key, heap_size, 0, rank_J, ties.key_J)
    return heap_size, CONTINUE


@compiled
def _key(limits: Limits, j: int, gain: float, per_cost: bool) -> float:
    return gain / limits.cost_J[j] if per_cost else gain


@compiled
def _has_equal(heap_key: F64, heap_size: int) -> bool:
    """Whether another column of the heap has the key of the first."""
    one = heap_size > 1 and heap_key[1] == heap_key[0]
    return one or (heap_size > 2 and heap_key[2] == heap_key[0])


@compiled
def _settle(
    problem: Problem, state: State, limits: Limits, log: Log, rank_J: I64, ties: Ties,
    heap: I32, heap_key: F64, heap_size: int, per_cost: bool,
) -> int:  # fmt: skip
    """Return what sets the first column apart from its equals; -1 if a bound had to be renewed."""
    picked, j, flat = log.num[NUM_PICKED], heap[0], log.num[FLAT] == 1
    if compare(ties, log.order, picked, j):
        _sink(heap, heap_key, heap_size, 0, rank_J, ties.key_J)
        return -1
    closest = OBJECTIVE
    for place in range(1, min(3, heap_size)):
        other, key = heap[place], -np.inf
        if heap_key[place] != heap_key[0]:
            continue
        if verdict(limits, other) == FEASIBLE:
            gain = 0.0 if flat else gain_of(problem, state, other)
            key = gain if flat else _key(limits, other, gain, per_cost)
        stale = key != heap_key[0]
        heap_key[place] = key
        if not stale and ties.key_J[other] == ties.key_J[j]:
            stale = compare(ties, log.order, picked, other)
        if stale:
            _sink(heap, heap_key, heap_size, place, rank_J, ties.key_J)
            return -1
        apart = QUALITY if ties.level_J[other] < ties.level_J[j] else DISTANCE
        closest = max(closest, ID if ties.key_J[other] == ties.key_J[j] else apart)
    return DISTANCE if flat and closest == OBJECTIVE else closest


@compiled
def _heapify(heap: I32, heap_key: F64, rank_J: I64, tie_J: F64) -> None:
    """Put the column to be picked first on top."""
    for place in range(len(heap) // 2 - 1, -1, -1):
        _sink(heap, heap_key, len(heap), place, rank_J, tie_J)


@compiled
def _sink(heap: I32, heap_key: F64, size: int, place: int, rank_J: I64, tie_J: F64) -> None:
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
        if right < size and _precedes(
            heap_key[right], heap[right], heap_key[child], heap[child], rank_J, tie_J
        ):
            child = right
        if not _precedes(heap_key[child], heap[child], key, column, rank_J, tie_J):
            break
        heap[place], heap_key[place] = heap[child], heap_key[child]
        place = child
    heap[place], heap_key[place] = column, key


@compiled
def _precedes(
    key: float, column: int, other_key: float, other: int, rank_J: I64, tie_J: F64
) -> bool:
    """Whether a column is picked before another at their present keys."""
    if key != other_key:
        return key > other_key
    if tie_J[column] != tie_J[other]:
        return tie_J[column] > tie_J[other]
    # Ranks that are equal fall back on the column number, as a stable sort would.
    if rank_J[column] != rank_J[other]:
        return rank_J[column] < rank_J[other]
    return column < other


@code.intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = code.array(context, builder, signature, arguments, 0).data
        code.fetch(builder, data, arguments[1])
        return context.get_dummy_value()

    return code.types.void(array, index), generate


@compiled
def _prefetch_column(problem: Problem, j: int) -> None:
    """Ask for the entries of a column before they are needed."""
    first = problem.indptr[j]
    for entry in range(first, min(problem.indptr[j + 1], first + MAX_PREFETCH), CACHE_LINE):
        if len(problem.rows) > 0:
            _prefetch(problem.rows, entry)
        _prefetch(problem.values, entry)


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

    None for a function that is not monotone. It is made of the ranking alone, with the value after
    each pick, so an interruption does not change it. ``selectable_J`` holds the ranking's columns
    too. Time: three passes over the entries.
    """
    if not problem.is_monotone():
        return None
    state, gain_J = problem.empty_state(), np.empty(problem.num_columns)
    left_J, bound, done = selectable_J.copy(), math.inf, 0
    for place in (0, len(order_S) // 2, len(order_S)):
        add_each(problem, state, order_S[done:place])
        left_J[order_S[done:place]] = False
        all_gains(problem, state, gain_J)
        value = float(value_S[place - 1]) if place else 0.0
        bound = min(bound, bound_from(value, gain_J[left_J], cost_J[left_J], budget))
        done = place
    return bound


def bound_from(value: float, gain_R: F64, cost_R: F64, budget: Budget) -> float:
    """Return f(A) plus the largest sum of gains that the whole budget could buy.

    ``gain_R`` are gains on top of A (>= 0) of the columns that are not in A and may be selected,
    ``cost_R`` their costs. The budget counts A too: the best subset need not contain A. Over a cost
    budget the bound is that of the fractional knapsack.
    """
    bound = math.inf
    if budget.max_count is not None:
        bound = value + _largest(gain_R, budget.max_count)
    if budget.max_cost is not None:
        bound = min(bound, value + _knapsack(gain_R, cost_R, budget.max_cost))
    return bound


def _largest(gain: F64, count: int) -> float:
    """Return the sum of the `count` largest gains."""
    left_out = len(gain) - count
    if left_out > 0:
        gain = np.partition(gain, min(left_out, len(gain) - 1))[left_out:]
    return float(gain.sum())


def _knapsack(gain: F64, cost: F64, max_cost: float) -> float:
    """Return the most gain that the cost buys when columns may be cut."""
    free = cost <= 0
    total = float(gain[free].sum())
    gain, cost = gain[~free], cost[~free]
    order = np.argsort(-(gain / cost), kind="stable")
    spent = np.cumsum(cost[order])
    whole = int(np.searchsorted(spent, max_cost, side="right"))
    total += float(gain[order[:whole]].sum())
    if whole < len(order):
        left = max_cost - (spent[whole - 1] if whole else 0.0)
        total += float(gain[order[whole]] * left / cost[order[whole]])
    return total
