"""The stages of tests: one that writes row numbers, one that leaves given tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker

ROWS = pa.schema([pa.field("row", pa.int64())])


class RowsStage(Stage):
    """Reads nothing and writes a table "rows"; subclasses say how, and what befalls them."""

    produces: ClassVar[Mapping[str, pa.Schema]] = {"rows": ROWS}
    inputs: ClassVar[Mapping[str, StageOutput]] = {}
    items: int = 1

    def settings(self) -> dict[str, Any]:
        return {}

    def num_items(self) -> int:
        return self.items

    def make_worker(self) -> Worker:
        return self.work

    def work(self, shard: Shard, sink: Sink) -> None:
        raise NotImplementedError


class GivenStage(RowsStage):
    """Leaves tables and facts under a stage's name; ``settings`` tell it from others."""

    def __init__(self, name: str, tables: Mapping[str, pa.Table], **settings: Any) -> None:
        self.name = name
        self.tables, self.facts = tables, {}
        self.produces = {name: table.schema for name, table in tables.items()}
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        return self._settings or {n: str(table.to_pydict()) for n, table in self.tables.items()}

    def work(self, shard: Shard, sink: Sink) -> None:
        sink.facts.update(self.facts)
        for name, table in self.tables.items():
            sink.write(name, table)
