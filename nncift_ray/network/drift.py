"""Drift: how far new data lie from what the network was trained on, and whether labels are due.

The reference is the corpus of the run that was labelled, however many runs have gone on from it.
Suffixes: N examples, L labelled ones, D embedding, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import ks_2samp, mannwhitneyu

from nncift_ray.errors import ShapeError
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CANDIDATE, POINTS, helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Sides = Mapping[tuple[str, str], NDArray[np.int64]]  # candidates by block and side of a pair

#: Chance that a new example lies farther from the labelled ones than a reference example, from
#: which new labels are due. 0.5 says that the two are alike; 0.65 is a shift of half a standard
#: deviation, where both are normal.
MAX_FARTHER = 0.65
#: ... and so many standard errors above 0.5, so that a handful of examples raises no alarm.
MIN_SIGMAS = 3.0
#: Share of a side's activations outside the labelled range, as a multiple of the reference's share,
#: from which new labels are due ...
MAX_RANGE_RATIO = 2.0
#: ... provided that it is also so much above it.
MIN_RANGE_EXCESS = 0.01
#: Fewer new examples than this are never enough to ask for new labels.
MIN_EXAMPLES = 20
#: Examples of each group whose distances are measured, and labelled ones they are measured from.
MAX_MEASURED, MAX_LABELLED = 4096, 16_384
BLOCK_ROWS, BATCH_ROWS = 1024, 16_384
NEW, REFERENCE = "new", "reference"
SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class DistanceShift:
    """How much farther from the labelled sample new examples lie than the reference."""

    farther: float  # chance that a new one lies farther than a reference one, ties half
    sigmas: float  # of (farther - 0.5), under the hypothesis that they are alike
    ks: float  # largest distance of the two distribution functions


@dataclass(frozen=True, slots=True)
class RangeShare:
    """Share of activations of one side of a block outside the range of the labelled examples."""

    block: str
    side: str  # rows | columns
    new: float
    reference: float


def nearest_distances(e_ND: F32, labelled_LD: F32) -> F64:
    """Return the cosine distance of unit vectors [N], from 0 to 2, to the nearest labelled one.

    Memory: 4 * 1024 * L bytes.

    Raises:
        ShapeError: If D differs, or there is no labelled example.
    """
    if labelled_LD.ndim != 2 or e_ND.ndim != 2 or e_ND.shape[1] != labelled_LD.shape[1]:
        raise ShapeError(
            f"embeddings [N, D] and [L, D] of one D; got {e_ND.shape} and {labelled_LD.shape}"
        )
    if len(labelled_LD) == 0:
        raise ShapeError("no labelled example to measure distances from")
    nearest_N = np.empty(len(e_ND), np.float64)
    for start in range(0, len(e_ND), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        nearest_N[part] = (e_ND[part] @ labelled_LD.T).max(axis=1)
    return np.clip(1.0 - nearest_N, 0.0, 2.0)


def compare_distances(new_N: F64, reference_R: F64) -> DistanceShift:
    """Compare two samples of distances by ranks (Mann and Whitney) and by Kolmogorov and Smirnov.

    Raises:
        ValueError: If one is empty.
    """
    num_new, num_reference = len(new_N), len(reference_R)
    if num_new == 0 or num_reference == 0:
        raise ValueError(f"{num_new} new and {num_reference} reference distances: none to compare")
    pairs = mannwhitneyu(new_N, reference_R, method="asymptotic").statistic
    farther = float(pairs / (num_new * num_reference))
    error = math.sqrt((num_new + num_reference + 1) / (12 * num_new * num_reference))
    statistic = float(ks_2samp(new_N, reference_R, method="asymp").statistic)
    return DistanceShift(farther, (farther - 0.5) / error, statistic)


def count_outside(a_NH: F32, low_H: F32, high_H: F32) -> NDArray[np.int64]:
    """Count, by hidden unit, the examples below a range and those above it: [2, H].

    Raises:
        ShapeError: If H differs.
    """
    if a_NH.ndim != 2 or not a_NH.shape[1:] == low_H.shape == high_H.shape:
        raise ShapeError(f"activations {a_NH.shape}, ranges {low_H.shape} and {high_H.shape}")
    return np.stack([(a_NH < low_H).sum(axis=0), (a_NH > high_H).sum(axis=0)])


def find_reasons(
    shift: DistanceShift | None, ranges: Sequence[RangeShare], num_new: int = MIN_EXAMPLES
) -> list[str]:
    """Return why new labels are due, a sentence each: where either measure passes its two bounds.

    Args:
        shift: None where there is nothing new, or nothing to compare it with.
        ranges: One for each side of each block that the new examples have a part in.
        num_new: New examples; below ``MIN_EXAMPLES`` nothing is due.
    """
    reasons: list[str] = []
    if num_new < MIN_EXAMPLES:
        return reasons
    if shift is not None and shift.farther >= MAX_FARTHER and shift.sigmas >= MIN_SIGMAS:
        reasons.append(
            f"a new example lies farther from the labelled sample than an unlabelled one of the "
            f"labelled corpus with chance {shift.farther:.2f} (due from {MAX_FARTHER:g}; 0.5 would "
            f"be alike)"
        )
    for share in ranges:
        bound = max(MAX_RANGE_RATIO * share.reference, share.reference + MIN_RANGE_EXCESS)
        if share.new >= bound:
            reasons.append(
                f"{share.new:.1%} of the {share.block} {share.side} activations of new examples "
                f"lie outside what the labelled sample spans, {share.reference:.1%} of the "
                f"labelled corpus's own (due from {bound:.1%})"
            )
    return reasons


class DriftStage(Stage):
    """Write ``distances`` and ``activation_ranges``; the verdict is among the manifest's facts."""

    name: ClassVar[str] = "drift"
    title: ClassVar[str] = "compare new data with the labelled corpus"
    produces = {"distances": schemas.DRIFT_DISTANCES, "activation_ranges": schemas.DRIFT_RANGES}
    unit: ClassVar[str] = "comparisons"
    seed = SAMPLE_SEED

    def __init__(
        self,
        labels: StageOutput,
        embeddings: StageOutput,
        activations: StageOutput,
        num_labelled_corpus: int,
        first_new: int,
    ) -> None:
        """Compare the candidates from ``first_new`` on with the labelled corpus, the first ones.

        Labels are those of the run that was labelled, embeddings and activations of the union.
        """
        self._labels, self._embeddings, self._activations = labels, embeddings, activations
        self._num_reference, self._first_new = num_labelled_corpus, first_new
        self.inputs = {"labels": labels, "embeddings": embeddings, "activations": activations}

    def settings(self) -> dict[str, Any]:
        """Which rows are compared, and the rule."""
        return {
            "num_labelled_corpus": self._num_reference,
            "first_new": self._first_new,
            "max_farther": MAX_FARTHER,
            "min_sigmas": MIN_SIGMAS,
            "max_range_ratio": MAX_RANGE_RATIO,
            "min_range_excess": MIN_RANGE_EXCESS,
            "min_examples": MIN_EXAMPLES,
        }

    def make_worker(self) -> Worker:
        """Return the comparison."""
        return self._compare

    def _compare(self, shard: Shard, sink: Sink) -> None:
        num_new, labelled = self._num_rows() - self._first_new, read_labelled(self._labels)
        shift = self._compare_distances(labelled, sink) if num_new else None
        ranges = self._compare_ranges(labelled, sink) if num_new else []
        reasons = find_reasons(shift, ranges, num_new)
        sink.facts.update(
            num_new=num_new,
            distance=None if shift is None else asdict(shift),
            ranges=[asdict(share) for share in ranges],
            due=bool(reasons),
            reasons=reasons,
        )

    def _num_rows(self) -> int:
        return self._embeddings.num_rows("candidates")

    def _compare_distances(self, labelled: Sides, sink: Sink) -> DistanceShift | None:
        """Measure a sample of either group; None where every reference example is labelled."""
        rng = np.random.default_rng(SAMPLE_SEED)
        rows = np.unique(np.concatenate(list(labelled.values())))
        labelled_LD = self._vectors(_draw(rng, rows, MAX_LABELLED))
        groups = {
            NEW: np.arange(self._first_new, self._num_rows()),
            REFERENCE: np.setdiff1d(np.arange(self._num_reference), rows),
        }
        found: dict[str, np.ndarray] = {}
        for group, members in groups.items():
            drawn = _draw(rng, members, MAX_MEASURED)
            if not len(drawn):
                return None
            found[group] = nearest_distances(self._vectors(drawn), labelled_LD)
            columns = {"group": [group] * len(drawn), "row_index": drawn, "distance": found[group]}
            sink.write("distances", pa.table(columns).cast(schemas.DRIFT_DISTANCES))
        sink.facts["median_distance"] = {name: float(np.median(x)) for name, x in found.items()}
        return compare_distances(found[NEW], found[REFERENCE])

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        found = self._embeddings.take_rows("candidates", rows, ["embedding"])
        return column_matrix(found["embedding"])

    def _compare_ranges(self, labelled: Sides, sink: Sink) -> list[RangeShare]:
        """Count what lies outside the labelled range, on each side that candidates are on."""
        shares: list[RangeShare] = []
        for (block, side), rows in labelled.items():
            name = f"{block}_{side}"
            seen = self._activations.take_rows(name, rows, ["activation"])
            seen_NH = column_matrix(seen["activation"])
            low_H, high_H = seen_NH.min(axis=0), seen_NH.max(axis=0)
            counts = self._count_outside(name, rows, low_H, high_H)
            columns = {
                "block": [block] * len(low_H),
                "side": [side] * len(low_H),
                "unit": np.arange(len(low_H)),
                "low": low_H,
                "high": high_H,
            }
            for group, (below_H, above_H) in counts.items():
                columns |= {f"{group}_below": below_H, f"{group}_above": above_H}
            sink.write("activation_ranges", pa.table(columns).cast(schemas.DRIFT_RANGES))
            new, reference = (float(counts[group].sum(axis=0).mean()) for group in (NEW, REFERENCE))
            shares.append(RangeShare(block, side, new, reference))
        return shares

    def _count_outside(
        self, table: str, labelled: np.ndarray, low_H: np.ndarray, high_H: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the shares below and above [2, H] of new and of unlabelled reference examples."""
        sums = {group: np.zeros((2, len(low_H))) for group in (NEW, REFERENCE)}
        numbers = dict.fromkeys(sums, 0)
        start = 0
        for batch in self._activations.iter_batches(table, ["activation"], BATCH_ROWS):
            activation = column_matrix(pa.Table.from_batches([batch])["activation"])
            rows = np.arange(start, start + len(activation))
            unlabelled = ~np.isin(rows, labelled)
            members = {
                NEW: rows >= self._first_new,
                REFERENCE: (rows < self._num_reference) & unlabelled,
            }
            for group, mask in members.items():
                sums[group] += count_outside(activation[mask], low_H, high_H)
                numbers[group] += int(mask.sum())
            start += len(activation)
        return {group: sums[group] / max(1, numbers[group]) for group in sums}


def read_labelled(labels: StageOutput) -> dict[tuple[str, str], np.ndarray]:
    """Return the candidates whose labels the networks were trained with, by (block, side).

    Held-out pairs are no part of it: their rows and columns were left out on purpose.
    """
    columns = ["block", "helped_index", "helper_index", "split"]
    pairs = labels.read("labels", columns, schemas.LABELS)
    block = np.asarray(pairs["block"].to_pylist())
    trained = np.isin(np.asarray(pairs["split"].to_pylist(), dtype=object), [TRAIN, VALIDATION])
    helped, helper = (
        pairs[name].fill_null(pa.scalar(-1, pa.int64())).to_numpy()
        for name in ("helped_index", "helper_index")
    )
    labelled: dict[tuple[str, str], np.ndarray] = {}
    for name in dict.fromkeys(block.tolist()):
        at = trained & (block == name)
        if helped_role(name) == CANDIDATE:
            labelled[name, "rows"] = np.unique(helped[at])
        if name != POINTS:
            labelled[name, "columns"] = np.unique(helper[at])
    return labelled


def _draw(rng: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
