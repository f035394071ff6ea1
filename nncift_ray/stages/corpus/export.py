"""Export: the ranked subset as files that other tools read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pyarrow as pa

from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.exports import EXPORT_FORMATS, write_exports
from nncift_ray.storage.output import Sink, StageOutput

BATCH_ROWS = 20_000


class ExportStage(Stage):
    """Write ``subset.jsonl``, ``subset.parquet`` and training files for other tools."""

    version: ClassVar[int] = 2
    name: ClassVar[str] = "export"
    unit: ClassVar[str] = "sets"

    def __init__(
        self,
        ranking: StageOutput,
        examples: StageOutput,
        formats: Sequence[str] = EXPORT_FORMATS,
    ) -> None:
        """Export the picks of a ranking, in these formats beside the subset itself."""
        self._ranking, self._examples, self._formats = ranking, examples, tuple(formats)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Files only."""
        return {}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The ranking and the texts."""
        return {"ranking": self._ranking, "examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """The formats; the inputs say the rest."""
        return {"formats": list(self._formats)}

    def num_items(self) -> int:
        """One set of files."""
        return 1

    def make_worker(self) -> Worker:
        """Return the writer."""

        def export(shard: Shard, sink: Sink) -> None:
            counts = write_exports(
                self._ranked_rows(),
                lambda name: cast(BinaryIO, sink.open_file(name)),
                self._formats,
            )
            sink.facts.update({f"rows_{name}": rows for name, rows in counts.items()})

        return export

    def _ranked_rows(self) -> Iterator[pa.Table]:
        """Yield the picks in rank order: EXAMPLES columns, rank and gain."""
        ranking = self._ranking.read("ranking", schema=schemas.RANKING)
        rows = np.asarray(ranking["row_index"].to_numpy())
        for start in range(0, max(1, len(rows)), BATCH_ROWS):
            part = ranking.slice(start, BATCH_ROWS)
            if not part.num_rows:
                return
            texts = self._examples.take_rows("candidates", rows[start : start + BATCH_ROWS])
            yield texts.append_column("rank", part["rank"]).append_column("gain", part["gain"])
