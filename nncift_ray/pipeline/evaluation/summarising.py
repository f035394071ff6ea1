"""Every value of an evaluation to one row a method: its mean, and how it compares with random.

Suffixes: N rows of a test set, S seeds (random subsets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nncift_ray.core.evaluation.comparison import LOWER_IS_BETTER, Comparison, compare_methods
from nncift_ray.core.evaluation.statistics import (
    DEFAULT_CONFIDENCE,
    DEFAULT_SAMPLES,
    MeanEstimate,
    estimate_mean,
)
from nncift_ray.errors import DataError
from nncift_ray.storage.evaluation_schemas import SUMMARY

RANDOM = "random"
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: What names a cell, seeds aside.
NAMING = ("test", "metric", "mode", "method", "budget")


@dataclass(frozen=True, slots=True)
class SummarySettings:
    """How sure is sure enough."""

    confidence: float = DEFAULT_CONFIDENCE
    num_samples: int = DEFAULT_SAMPLES  # resamplings
    seed: int = 0


class Group(NamedTuple):
    """What is read side by side: the methods of one such group are compared with each other."""

    test: str
    metric: str
    mode: str


class Line(NamedTuple):
    """A method at one of its sizes."""

    method: str
    budget: float


def summarise(scores: pa.Table, settings: SummarySettings | None = None) -> pa.Table:
    """Take the means of all values, with intervals, and compare every method with random.

    All cells of a test set, metric and mode answer the same rows. So a row that one of them has
    and another lacks is missing there, and counted, as are values that are null or not finite.
    Random's seeds become one row: of every test row the mean over the random subsets.

    Args:
        scores: SCORES.
        settings: Level of the intervals, resamplings and their seed.

    Returns:
        SUMMARY: a row a method, budget, mode, test set and metric, in the order they first occur.

    Raises:
        DataError: If a cell has two values of one row, or a method other than random has seeds.
    """
    settings = settings or SummarySettings()
    rows: list[dict[str, Any]] = []
    for group, values in _Scores.read(scores).split(Group._fields):
        rows += _summarise_group(Group(*group), values, settings)
    return pa.Table.from_pylist(rows, SUMMARY)


@dataclass(frozen=True, slots=True)
class _Scores:
    """SCORES as arrays [R]; of the columns that name a cell, numbers of their names."""

    names: Mapping[str, Sequence[Any]]
    codes: Mapping[str, I64]
    seed: I64
    row_index: I64
    num_examples: I64
    value: F64  # NaN: none

    @classmethod
    def read(cls, table: pa.Table) -> _Scores:
        keys = {name: table[name].combine_chunks().dictionary_encode() for name in NAMING}
        numbers = {
            name: np.asarray(table[name].cast(pa.int64()).to_numpy(), np.int64)
            for name in ("seed", "row_index", "num_examples")
        }
        value_R = np.asarray(table["value"].to_numpy(), np.float64)
        return cls(
            {name: key.dictionary.to_pylist() for name, key in keys.items()},
            {name: np.asarray(key.indices.to_numpy(), np.int64) for name, key in keys.items()},
            **numbers,
            value=np.where(np.isfinite(value_R), value_R, np.nan),
        )

    def take(self, places: I64) -> _Scores:
        return _Scores(
            self.names,
            {name: codes_R[places] for name, codes_R in self.codes.items()},
            self.seed[places], self.row_index[places], self.num_examples[places],
            self.value[places],
        )  # fmt: skip

    def split(self, names: Sequence[str]) -> list[tuple[list[Any], _Scores]]:
        """Part the values by what some columns name, in the order of the first of each part."""
        shape = [max(1, len(self.names[name])) for name in names]
        number_R = np.ravel_multi_index([self.codes[name] for name in names], shape)
        _, first, inverse = np.unique(number_R, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(first)))[:-1])
        found: list[tuple[list[Any], _Scores]] = []
        for part in (int(at) for at in np.argsort(first)):
            key = [self.names[name][int(self.codes[name][first[part]])] for name in names]
            found.append((key, self.take(parts[part])))
        return found


def _summarise_group(
    group: Group, scores: _Scores, settings: SummarySettings
) -> list[dict[str, Any]]:
    """Summarise the cells of one test set, metric and mode."""
    rows_N = np.unique(scores.row_index)
    values: dict[Line, F64] = {}
    sizes: dict[Line, int] = {}
    for key, cells in scores.split(Line._fields):
        line = Line(*key)
        values[line] = _cell_values(group, line, cells, rows_N)
        sizes[line] = int(cells.num_examples[0])
    compared = _compare(group, values, settings)
    options: dict[str, Any] = {
        "confidence": settings.confidence, "num_samples": settings.num_samples,
        "seed": settings.seed,
    }  # fmt: skip
    return [
        _row(group, line, sizes[line], values_NS, estimate_mean(values_NS, **options),
             compared.get(line))
        for line, values_NS in values.items()
    ]  # fmt: skip


def _cell_values(group: Group, line: Line, cells: _Scores, rows_N: I64) -> F64:
    """Return the values [N, S] of a method on all rows of its group, NaN where there is none."""
    seeds_S, seed_place = np.unique(cells.seed, return_inverse=True)
    if len(seeds_S) > 1 and line.method != RANDOM:
        raise DataError(
            f"scores of {line.method} ({group.mode}, {group.test}, {group.metric}) have seeds "
            f"{seeds_S[0]} and {seeds_S[-1]}: only random subsets are drawn more than once"
        )
    row_place = np.searchsorted(rows_N, cells.row_index)
    cell = row_place * len(seeds_S) + seed_place
    taken = np.bincount(cell)
    if taken.max(initial=0) > 1:
        row = rows_N[int(taken.argmax()) // len(seeds_S)]
        raise DataError(
            f"scores of {line.method} ({group.mode}, {group.test}, {group.metric}) have row {row} "
            "twice"
        )
    values_NS = np.full((len(rows_N), len(seeds_S)), np.nan)
    values_NS[row_place, seed_place] = cells.value
    return values_NS


def _compare(
    group: Group, values: Mapping[Line, F64], settings: SummarySettings
) -> dict[Line, Comparison]:
    """Compare the methods of each size with random subsets of that size."""
    found: dict[Line, Comparison] = {}
    for random, random_NS in values.items():
        if random.method != RANDOM:
            continue
        methods = {
            line.method: values_NS[:, 0] for line, values_NS in values.items()
            if line.budget == random.budget and line.method != RANDOM
        }  # fmt: skip
        comparisons = compare_methods(
            methods, random_NS, lower_is_better=group.metric in LOWER_IS_BETTER,
            confidence=settings.confidence, num_samples=settings.num_samples, seed=settings.seed,
        )  # fmt: skip
        found |= {Line(name, random.budget): each for name, each in comparisons.items()}
    return found


def _row(
    group: Group,
    line: Line,
    num_examples: int,
    values_NS: F64,
    estimate: MeanEstimate,
    comparison: Comparison | None,
) -> dict[str, Any]:
    return {
        **group._asdict(),
        **line._asdict(),
        "num_examples": num_examples,
        "num_seeds": values_NS.shape[1],
        "num_rows": estimate.num_rows,
        "num_missing": estimate.num_missing,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "seed_deviation": estimate.seed_deviation,
        "difference": comparison and comparison.difference,
        "difference_low": comparison and comparison.low,
        "difference_high": comparison and comparison.high,
        "p_value": comparison and comparison.p_value,
        "adjusted_p_value": comparison and comparison.adjusted_p_value,
        "verdict": comparison and comparison.verdict,
    }
