"""Drift: how far new data lie from what the network was trained on, and whether labels are due.

The measures and the rule are in ``core.network.drift``. The reference is the corpus of the run that
was labelled, however many runs have gone on from it since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.network import drift
from nncift_ray.core.network.drift import RangeShare, Verdict
from nncift_ray.core.network.sampling import TRAIN, VALIDATION
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CANDIDATE, POINTS, helped_role

# Examples of each group whose distances are measured, and labelled ones they are measured from.
MAX_MEASURED, MAX_LABELLED = 4096, 16_384
BATCH_ROWS = 16_384
NEW, REFERENCE = "new", "reference"
SAMPLE_SEED = 0


class DriftStage(Stage):
    """Write ``distances`` and ``activation_ranges``; the verdict is among the manifest's facts."""

    name: ClassVar[str] = "drift"
    unit: ClassVar[str] = "comparisons"
    seed = SAMPLE_SEED

    def __init__(
        self,
        sample: StageOutput,
        embeddings: StageOutput,
        activations: StageOutput,
        num_labelled_corpus: int,
        first_new: int,
    ) -> None:
        """Compare new candidates with the labelled corpus.

        Args:
            sample: The label sample.
            embeddings: Of the union.
            activations: Of the union.
            num_labelled_corpus: Candidates of the run that was labelled; they come first.
            first_new: Number of the first new candidate.
        """
        self._sample, self._embeddings, self._activations = sample, embeddings, activations
        self._num_reference, self._first_new = num_labelled_corpus, first_new

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Distances and ranges."""
        return {"distances": schemas.DRIFT_DISTANCES, "activation_ranges": schemas.DRIFT_RANGES}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Sample, embeddings and activations."""
        return {
            "sample": self._sample,
            "embeddings": self._embeddings,
            "activations": self._activations,
        }

    def settings(self) -> dict[str, Any]:
        """Which rows are compared, and the rule."""
        return {
            "num_labelled_corpus": self._num_reference,
            "first_new": self._first_new,
            "max_farther": drift.MAX_FARTHER,
            "min_sigmas": drift.MIN_SIGMAS,
            "max_range_ratio": drift.MAX_RANGE_RATIO,
            "min_range_excess": drift.MIN_RANGE_EXCESS,
            "min_examples": drift.MIN_EXAMPLES,
        }

    def num_items(self) -> int:
        """One comparison."""
        return 1

    def make_worker(self) -> Worker:
        """Return the comparison."""

        def compare(shard: Shard, sink: Sink) -> None:
            num_new = self._embeddings.num_rows("candidates") - self._first_new
            labelled = read_labelled(self._sample)
            shift = self._compare_distances(labelled, sink) if num_new else None
            ranges = self._compare_ranges(labelled, sink) if num_new else []
            verdict = drift.judge(shift, ranges, num_new)
            sink.facts.update(describe(num_new, shift, ranges, verdict))

        return compare

    def _compare_distances(
        self, labelled: Mapping[tuple[str, str], np.ndarray], sink: Sink
    ) -> drift.DistanceShift | None:
        """Measure a sample of either group; None where every reference example is labelled."""
        rng = np.random.default_rng(SAMPLE_SEED)
        rows = np.unique(np.concatenate([rows for rows in labelled.values()]))
        labelled_LD = self._vectors(_draw(rng, rows, MAX_LABELLED))
        reference = np.setdiff1d(np.arange(self._num_reference), rows)
        new = np.arange(self._first_new, self._embeddings.num_rows("candidates"))
        groups = {NEW: new, REFERENCE: reference}
        distances: dict[str, np.ndarray] = {}
        for group, members in groups.items():
            drawn = _draw(rng, members, MAX_MEASURED)
            if not len(drawn):
                return None
            distances[group] = drift.nearest_distances(self._vectors(drawn), labelled_LD)
            sink.write("distances", _distance_table(group, drawn, distances[group]))
        sink.facts["median_distance"] = {
            group: float(np.median(values)) for group, values in distances.items()
        }
        return drift.compare_distances(distances[NEW], distances[REFERENCE])

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        found = self._embeddings.take_rows("candidates", rows, ["embedding"])
        return column_matrix(found["embedding"])

    def _compare_ranges(
        self, labelled: Mapping[tuple[str, str], np.ndarray], sink: Sink
    ) -> list[RangeShare]:
        """Count what lies outside the labelled range, on each side that candidates are on."""
        shares: list[RangeShare] = []
        for (block, side), rows in labelled.items():
            table = f"{block}_{side}"
            seen = column_matrix(
                self._activations.take_rows(table, rows, ["activation"])["activation"]
            )
            low_H, high_H = seen.min(axis=0), seen.max(axis=0)
            counts = self._count_outside(table, rows, low_H, high_H)
            sink.write("activation_ranges", _range_table(block, side, low_H, high_H, counts))
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
                sums[group] += drift.count_outside(activation[mask], low_H, high_H)
                numbers[group] += int(mask.sum())
            start += len(activation)
        return {group: sums[group] / max(1, numbers[group]) for group in sums}


def read_labelled(sample: StageOutput) -> dict[tuple[str, str], np.ndarray]:
    """Return the candidates whose labels the networks were trained with, by (block, side).

    Held-out pairs are no part of it: their rows and columns were left out on purpose.
    """
    columns = ["block", "helped_index", "helper_index", "split"]
    pairs = sample.read("pairs", columns, schemas.PAIRS)
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


def describe(
    num_new: int,
    shift: drift.DistanceShift | None,
    ranges: list[RangeShare],
    verdict: Verdict,
) -> dict[str, Any]:
    """Write what was found as plain values."""
    return {
        "num_new": num_new,
        "distance": None if shift is None else asdict(shift),
        "ranges": [asdict(share) for share in ranges],
        "due": verdict.due,
        "reasons": list(verdict.reasons),
    }


def _draw(rng: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _distance_table(group: str, rows: np.ndarray, distances: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "group": pa.array([group] * len(rows), pa.string()),
            "row_index": pa.array(rows, pa.int64()),
            "distance": pa.array(distances, pa.float32()),
        },
        schema=schemas.DRIFT_DISTANCES,
    )


def _range_table(
    block: str,
    side: str,
    low_H: np.ndarray,
    high_H: np.ndarray,
    counts: Mapping[str, np.ndarray],
) -> pa.Table:
    count = len(low_H)
    return pa.table(
        {
            "block": pa.array([block] * count, pa.string()),
            "side": pa.array([side] * count, pa.string()),
            "unit": pa.array(np.arange(count), pa.int32()),
            "low": pa.array(low_H, pa.float32()),
            "high": pa.array(high_H, pa.float32()),
            "new_below": pa.array(counts[NEW][0], pa.float64()),
            "new_above": pa.array(counts[NEW][1], pa.float64()),
            "reference_below": pa.array(counts[REFERENCE][0], pa.float64()),
            "reference_above": pa.array(counts[REFERENCE][1], pa.float64()),
        },
        schema=schemas.DRIFT_RANGES,
    )
