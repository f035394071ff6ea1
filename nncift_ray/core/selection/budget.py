"""How much may be selected, and which columns may be: budget, quotas, musts.

Suffixes: J columns, G groups (sources).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


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
