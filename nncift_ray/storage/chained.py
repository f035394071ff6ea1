"""A run that goes on from another: what the parent has, then what is new, read as one output."""

from __future__ import annotations

from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.manifest import PartRecord
from nncift_ray.storage.output import StageOutput

#: Setting of a stage that names the tables it writes whole, the parent's rows included.
WHOLE_TABLES = "whole_tables"


class ChainedOutput(StageOutput):
    """The tables of a parent's stage with the rows of another output behind them.

    Later stages read it like any output. A table that the new output wrote whole (its setting
    ``whole_tables``) is read there alone. The fingerprint is the new output's, which covers the
    parent's as one of its inputs; of the manifest only the count of bad rows is of both.
    """

    def __init__(self, parent: StageOutput, own: StageOutput) -> None:
        """Read ``parent``, which may be chained itself, and then ``own``."""
        failures = parent.manifest.num_failures + own.manifest.num_failures
        super().__init__(own.folder, own.manifest.model_copy(update={"num_failures": failures}))
        self.parent, self.own = parent, own

    def table_parts(self, table: str) -> list[tuple[Location, PartRecord]]:
        """Return where each part of a table lies, the parent's first."""
        own = self.own.table_parts(table)
        if table in self.own.manifest.settings.get(WHOLE_TABLES, ()):
            return own
        return [*self.parent.table_parts(table), *own]


def root_of(output: StageOutput) -> StageOutput:
    """Return what the first run of a chain wrote; the output itself where it is not chained."""
    while isinstance(output, ChainedOutput):
        output = output.parent
    return output
