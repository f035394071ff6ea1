"""Quotas and must-lists of a selection plan as constraints on candidates by number.

Suffixes: J candidates, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nncift_ray.core.selection.budget import Constraints
from nncift_ray.errors import DataError
from nncift_ray.stages.selection.selection_plan import Quotas, SelectionPlan
from nncift_ray.storage.groups import iter_groups
from nncift_ray.storage.output import StageOutput

NAMED = 3  # ids or groups in a message
SHARE_ROUNDING = 1e-9  # 0.3 of 10 is 3


def read_constraints(
    plan: SelectionPlan,
    ids_J: np.ndarray,
    examples: StageOutput | None,
    unranked: np.ndarray | None = None,
) -> Constraints | None:
    """Look up what limits the picks; None where nothing does.

    Args:
        plan: What to select.
        ids_J: Id of each candidate.
        examples: Of the deduplicate stage; read for quotas only.
        unranked: Candidates without a score, which are not picked either.

    Raises:
        DataError: If an id is of no candidate or of one without a score, a quota of no group, or a
            group is too small.
    """
    unranked = np.zeros(0, np.int64) if unranked is None else unranked
    if not (plan.quotas.given or plan.include or plan.exclude or len(unranked)):
        return None
    include = find_rows(ids_J, plan.include, "selection.include")
    exclude = find_rows(ids_J, plan.exclude, "selection.exclude")
    both = np.intersect1d(include, exclude)
    if len(both):
        raise DataError(f"selection.include and exclude both name {_some(ids_J[both].tolist())}")
    without = np.intersect1d(include, unranked)
    if len(without):
        raise DataError(
            f"selection.include names {_some(ids_J[without].tolist())}, which the teacher gave no "
            "label, so nothing says what it is worth; the errors of the label stage say why"
        )
    exclude = np.union1d(exclude, unranked)
    if not plan.quotas.given or examples is None:
        return Constraints(include=include.tolist(), exclude=exclude.tolist())
    names, group_J = read_groups(examples, plan.quotas.field)
    least, most = count_quotas(plan.quotas, names, plan.budget(len(ids_J)).max_count)
    _check_sizes(names, least, np.bincount(np.delete(group_J, exclude), minlength=len(names)))
    return Constraints(
        group_J=group_J,
        min_per_group=least,
        max_per_group=most,
        include=include.tolist(),
        exclude=exclude.tolist(),
    )


def describe_quotas(
    plan: SelectionPlan, num_candidates: int, examples: StageOutput | None
) -> dict[str, dict[str, int | None]]:
    """Return least and most picks of each group that has a quota."""
    if not plan.quotas.given or examples is None:
        return {}
    names, _ = read_groups(examples, plan.quotas.field)
    least, most = count_quotas(plan.quotas, names, plan.budget(num_candidates).max_count)
    return {
        name: {"least": low, "most": high}
        for name, low, high in zip(names, least, most, strict=True)
        if low or high is not None
    }


def find_rows(ids_J: np.ndarray, wanted: Sequence[str], key: str) -> np.ndarray:
    """Return the row of each wanted id, in the order given.

    Raises:
        DataError: Naming the first ids that are of no candidate.
    """
    if not wanted:
        return np.zeros(0, np.int64)
    unique = np.asarray(list(dict.fromkeys(wanted)))
    order_J = np.argsort(ids_J, kind="stable")
    place = np.minimum(np.searchsorted(ids_J, unique, sorter=order_J), len(ids_J) - 1)
    row = order_J[place]
    missing = unique[ids_J[row] != unique].tolist()
    if missing:
        raise DataError(
            f"{key}: {len(missing):,} of {len(unique):,} ids are of no candidate of this run, the "
            f"first: {_some(missing)}. Ids are in export/ids.txt and in the tables of deduplicate."
        )
    return row


def read_groups(examples: StageOutput, field: str | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the groups, sorted, and the group of every candidate [J] int32."""
    code: dict[str, int] = {}
    group_J = np.fromiter(
        (code.setdefault(name, len(code)) for name in iter_groups(examples, field)), np.int32
    )
    names = sorted(code)
    new_code = np.empty(len(code), np.int32)
    new_code[[code[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return names, new_code[group_J]


def count_quotas(
    quotas: Quotas, names: Sequence[str], max_count: int | None
) -> tuple[list[int], list[int | None]]:
    """Return least and most picks of each group [G]; shares of the budget become counts.

    Raises:
        DataError: If a quota names a group that no candidate is of.
    """
    least = quotas.least or {}
    most: Mapping[str, float | int] = quotas.most if isinstance(quotas.most, Mapping) else {}
    unknown = sorted({*least, *most} - set(names))
    if unknown:
        field = "source file" if quotas.field is None else f"field '{quotas.field}'"
        raise DataError(
            f"selection.quotas: no candidate is of the group {_some(unknown)} ({field}). Groups "
            f"here: {_some(names, 10)}"
        )
    for_all = None if isinstance(quotas.most, Mapping) else quotas.most
    lows = [_count(least.get(name, 0), max_count, math.ceil, -SHARE_ROUNDING) for name in names]
    highs: list[int | None] = []
    for name in names:
        quota = most.get(name, for_all)
        highs.append(
            None if quota is None else _count(quota, max_count, math.floor, SHARE_ROUNDING)
        )
    return lows, highs


def _count(
    quota: float | int, max_count: int | None, whole: Callable[[float], int], slack: float
) -> int:
    if isinstance(quota, int) or max_count is None:
        return int(quota)
    return whole(quota * max_count + slack)


def _check_sizes(names: Sequence[str], least: Sequence[int], size_G: np.ndarray) -> None:
    for name, need, size in zip(names, least, size_G.tolist(), strict=True):
        if need > size:
            raise DataError(
                f"selection.quotas.min: group '{name}' is to have {need:,} picks, and has {size:,} "
                "candidates that may be picked"
            )


def _some(names: Sequence[str], most: int = NAMED) -> str:
    more = ", ..." if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
