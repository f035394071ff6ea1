"""Utility: measurements to labels, each against the baseline of its helped example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.errors import StageError
from nncift_ray.stages.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput

UtilityFunction = Callable[[float | None, float], float]


class UtilityStage(Stage):
    """Write ``labels``: raw signed utilities, in the order of the pairs."""

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
            table = self._measurements.read("measurements", schema=schemas.MEASUREMENTS)
            rows = table.to_pylist()
            baselines = {
                (row["block"], row["helped_index"]): row["value"]
                for row in rows
                if row["split"] is None
            }
            labels = [self._label(row, baselines, sink) for row in rows if row["split"] is not None]
            sink.write_rows("labels", [label for label in labels if label], schemas.LABELS)

        return join

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
