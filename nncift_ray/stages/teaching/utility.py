"""Utility: measurements to labels, each against the baseline of its helped example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.errors import StageError
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import ROW_GROUP_ROWS, Sink, StageOutput

#: Labels written at a time: a row group, however small the parts that they are read from.
LABELS_HELD = ROW_GROUP_ROWS

UtilityFunction = Callable[[float | None, float], float]


class UtilityStage(Stage):
    """Write ``labels``: raw signed utilities, in the order of the pairs.

    Memory: one baseline a helped example, and some tens of thousands of labels at a time.
    """

    name: ClassVar[str] = "utility"
    unit: ClassVar[str] = "passes"

    def __init__(
        self,
        measurements: StageOutput,
        utility: UtilityFunction,
        teacher: str,
        *,
        needs_baseline: bool,
    ) -> None:
        """Use the teacher's own utility function."""
        self._measurements, self._utility, self._teacher = measurements, utility, teacher
        self._needs_baseline = needs_baseline

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Labels."""
        return {"labels": schemas.LABELS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The measurements."""
        return {"measurements": self._measurements}

    def settings(self) -> dict[str, Any]:
        """Whose utility, and whether it is taken against a baseline."""
        return {"teacher": self._teacher, "needs_baseline": self._needs_baseline}

    def num_items(self) -> int:
        """One pass."""
        return 1

    def make_worker(self) -> Worker:
        """Return the join."""

        def join(shard: Shard, sink: Sink) -> None:
            baselines = self._read_baselines()
            held: list[dict[str, Any]] = []
            for row in self._rows():
                label = None if row["split"] is None else self._label(row, baselines, sink)
                if label is not None:
                    held.append(label)
                if len(held) == LABELS_HELD:
                    sink.write_rows("labels", held, schemas.LABELS)
                    held = []
            sink.write_rows("labels", held, schemas.LABELS)

        return join

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the measurements one by one, in the order of the pairs."""
        for batch in self._measurements.iter_batches("measurements"):
            yield from batch.to_pylist()

    def _read_baselines(self) -> dict[tuple[str, int], float]:
        """Return what each helped example measured alone, by block and row."""
        found: dict[tuple[str, int], float] = {}
        columns = ["block", "helped_index", "split", "value"]
        for batch in self._measurements.iter_batches("measurements", columns):
            for row in batch.filter(pc.is_null(batch.column("split"))).to_pylist():
                found[row["block"], row["helped_index"]] = row["value"]
        return found

    def _label(
        self, row: Mapping[str, Any], baselines: Mapping[tuple[str, int], float], sink: Sink
    ) -> dict[str, Any] | None:
        """Return the label of a measurement, or None after an error row for a lost baseline."""
        baseline = baselines.get((row["block"], row["helped_index"]))
        if self._needs_baseline and baseline is None:
            sink.error(
                "no_baseline",
                f"{row['block']} row {row['helped_index']}: the measurement without an example "
                "failed, so its pairs have no utility",
            )
            return None
        utility = self._utility(baseline, row["value"])
        if not np.isfinite(utility):
            raise StageError(
                f"teacher {self._teacher}: utility {utility} is not finite: {dict(row)}"
            )
        kept = {name: row[name] for name in ("block", "helped_index", "helper_index", "split")}
        return kept | {"utility": utility}
