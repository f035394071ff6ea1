"""The stage contract: what a stage says of itself, and what the driver does for it.

A stage numbers its work as items 0..num_items. An item is also the atom of numeric work: whatever
a result could depend on by rounding (the texts of one padded batch, the pairs of one engine call)
lies inside one item. Shards are runs of whole items, so their size and the number of actors never
show in the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from nncift_ray.errors import NnciftError, StageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ERRORS_TABLE, Sink, StageOutput

#: Seconds; the recipe's ``cluster.placement_timeout`` where a run sizes the pools.
PLACEMENT_TIMEOUT = 1800.0
#: Seconds; the recipe's ``cluster.row_timeout``.
ROW_TIMEOUT = 3600.0
#: Seconds that the longest shard may take which is not made of rows, such as a training.
LONGEST_SHARD = 7 * 24 * 3600.0
#: Times that a shard may be silent for ``ROW_TIMEOUT`` while the rows that hang are looked for.
SILENCES = 24

#: Share of a GPU that Ray gave an actor, where several share one.
GPU_SHARE_VARIABLE = "NNCIFT_GPU_SHARE"

#: What a stage may read to be run by the driver, which is to stay below 2 GB.
DRIVER_INPUT_BYTES = 256 << 20

#: Reason in the errors table of a row that killed the process that worked on it.
KILLED_WORKER = "killed_worker"


@dataclass(frozen=True, slots=True)
class Shard:
    """The items [start, stop) of a stage.

    ``rows`` and ``skip`` are set only for a stage that is ``divisible``, after deaths.
    """

    start: int
    stop: int
    #: Do these row numbers only; None: all rows of the items.
    rows: range | None = None
    #: Row numbers to leave out, each with the message of its error row.
    skip: Mapping[int, str] = field(default_factory=dict[int, str])

    def wanted(self, rows: range) -> range:
        """Return those of some neighbouring rows that are to be done."""
        if self.rows is None:
            return rows
        return range(max(rows.start, self.rows.start), min(rows.stop, self.rows.stop))


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor holds and how many there may be."""

    num_cpus: float = 1
    num_gpus: float = 0
    min_actors: int = 1
    max_actors: int = 1
    custom: Mapping[str, float] = field(default_factory=dict[str, float])
    #: Labels of the nodes that an actor may run on: a selector of Ray's.
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    #: How long there may be no node that could hold one, before the stage stops.
    placement_timeout: float = PLACEMENT_TIMEOUT
    #: In which a worker must finish a row, where the stage is divisible; else it is ended.
    row_timeout: float = ROW_TIMEOUT


Worker = Callable[[Shard, Sink], None]


def present(**outputs: StageOutput | None) -> dict[str, StageOutput]:
    """Return the outputs that are there, by name: a stage's ``inputs``."""
    return {name: output for name, output in outputs.items() if output is not None}


class Stage(ABC):
    """One step of the pipeline.

    Subclasses are small and picklable: they hold configuration and the outputs they read, never
    models or tables. ``make_worker`` runs inside an actor and returns a plain callable, which a
    unit test calls with no Ray at all.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    #: Whether its work may take its process along: it loads a language model, or runs a user's own
    #: code. It then always has an actor of its own.
    isolated: ClassVar[bool] = False
    #: Whether it hands its one item to another Ray library itself, from the driver's process.
    hands_over: bool = False
    #: What the items are called in progress lines.
    unit: ClassVar[str] = "rows"
    #: What the step does, for progress lines, plans and the report, e.g. "score all pairs".
    title: ClassVar[str] = ""
    #: Whether its workers use a GPU where the cluster has one.
    can_use_gpu: bool = False
    #: Whether a worker keeps to one thread; others use the CPUs that the pool gives them.
    single_threaded: bool = True
    #: Most actors that are of use; None: as many as the pool allows.
    max_actors: int | None = None

    #: Seed recorded in the manifest; stages that draw set it.
    seed: int = 0
    resources: Resources = Resources()
    max_failed_fraction: float = 1.0
    #: The recipe's key for it, for messages.
    max_failed_key: ClassVar[str] = "max_failed_fraction"
    #: What is raised when more rows fail.
    failed_rows_error: ClassVar[type[NnciftError]] = StageError
    #: Whether the worker can do some rows of an item and leave others out (``Shard.rows``,
    #: ``Shard.skip``), so that a row that kills it becomes an error row.
    divisible: ClassVar[bool] = False
    #: What to do when a worker has not enough memory, for messages.
    memory_advice: ClassVar[str] = (
        "give its actors more of it (pool.num_cpus), or run fewer of them (pool.num_actors)"
    )

    #: The tables it writes, ``errors`` aside.
    produces: Mapping[str, pa.Schema]
    #: The finished stages it reads.
    inputs: dict[str, StageOutput]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What shapes the rows, as JSON: enters the fingerprint with the inputs' fingerprints."""

    def num_items(self) -> int:
        """How many items there are."""
        return 1

    @abstractmethod
    def make_worker(self) -> Worker:
        """Build what turns a shard into rows; loads models, so only actors call it."""

    @property
    def shard_items(self) -> int:
        """Items a shard; a shard is the most that a lost worker can cost."""
        return 1

    def item_weight(self, start: int, stop: int) -> int:
        """How many ``unit`` the items [start, stop) stand for in progress lines."""
        return stop - start

    def row_numbers(self, start: int, stop: int) -> range:
        """Number the rows of the items [start, stop), in one count over the whole stage.

        A stage that is not ``divisible`` counts items.
        """
        return range(start, stop)

    def progress(self, folder: Location) -> str:
        """Say in one line how far a long item is, from what its worker left in the folder, or "".

        The driver asks now and then while workers work.
        """
        return ""

    def finish(self, output: StageOutput, sink: Sink) -> None:  # noqa: B027
        """Write what is made of all shards together; runs in the driver once they are finished."""

    def notices(self, output: StageOutput) -> list[str]:
        """Return what a user should hear of the finished step, a line each."""
        return []

    def rows_to_quarantine(self, poison: Sequence[int], rows: range) -> Mapping[int, str]:
        """Return which of some rows are not worth trying once others have killed, and why."""
        return {}

    def input_bytes(self) -> int:
        """Size of all that it may read."""
        return sum(output.num_bytes for output in self.inputs.values())

    def runs_in_driver(self) -> bool:
        """Whether the driver does its one item itself: an actor costs seconds to start.

        Not where the item may take the driver along or asks for a GPU or certain nodes, nor where
        so much is read that the driver would grow.
        """
        wanted = self.resources
        return not (
            self.isolated
            or self.divisible
            or wanted.num_gpus
            or wanted.custom
            or wanted.labels
            or self.num_items() > 1
            or self.input_bytes() > DRIVER_INPUT_BYTES
        )

    def longest_silence(self) -> float:
        """Return the seconds after which a stage of which nothing is heard can only hang.

        A place may be missing for a while, rows that kill or hang are looked for one by one, and
        what is not made of rows takes its time.
        """
        wanted = self.resources
        work = SILENCES * wanted.row_timeout if self.divisible else LONGEST_SHARD
        return wanted.placement_timeout + work

    def check_schema(self, table: str, schema: pa.Schema) -> None:
        """Refuse a table that is not as declared.

        Raises:
            StageError: With both schemas.
        """
        expected = schemas.ERRORS if table == ERRORS_TABLE else self.produces.get(table)
        if expected is None:
            raise StageError(f"stage '{self.name}' wrote an undeclared table '{table}'")
        if not schema.equals(expected):
            raise StageError(
                f"stage '{self.name}', table '{table}': wrote\n{schema}\nbut declares\n{expected}"
            )


# Items made of rows: fixed atoms of one or more row ranges, numbered one after another.


@dataclass(frozen=True, slots=True)
class RowSpan:
    """The rows [start, stop) of a named range."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowAtoms:
    """Ranges of rows cut into atoms of ``atom_rows``, each range's last one shorter."""

    ranges: tuple[tuple[str, int], ...]  # (name, number of rows)
    atom_rows: int
    #: Number of the first row of a range; ranges that are not named begin with row 0.
    first_rows: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def num_items(self) -> int:
        """Number of atoms."""
        return sum(-(-rows // self.atom_rows) for _, rows in self.ranges)

    def spans(self, start: int, stop: int) -> Iterator[RowSpan]:
        """Yield the atoms [start, stop)."""
        first = 0
        for name, rows in self.ranges:
            count = -(-rows // self.atom_rows)
            first_row = self.first_rows.get(name, 0)
            for item in range(max(start, first), min(stop, first + count)):
                low = (item - first) * self.atom_rows
                high = min(low + self.atom_rows, rows)
                yield RowSpan(name, first_row + low, first_row + high)
            first += count

    def num_rows(self, start: int, stop: int) -> int:
        """Return the rows of the atoms [start, stop)."""
        return sum(span.stop - span.start for span in self.spans(start, stop))

    def items_per_shard(self, shard_rows: int) -> int:
        """Return how many whole atoms make a shard of about ``shard_rows`` rows."""
        return max(1, shard_rows // self.atom_rows)


def merge_spans(spans: Sequence[RowSpan]) -> list[RowSpan]:
    """Join neighbouring spans of the same range."""
    merged: list[RowSpan] = []
    for span in spans:
        if merged and merged[-1].name == span.name and merged[-1].stop == span.start:
            merged[-1] = RowSpan(span.name, merged[-1].start, span.stop)
        else:
            merged.append(span)
    return merged


class RowStage(Stage):
    """A stage whose items are atoms of rows; subclasses set ``_atoms`` and ``_shard_rows``."""

    _atoms: RowAtoms
    _shard_rows: int

    def num_items(self) -> int:
        """Atoms of rows."""
        return self._atoms.num_items

    @property
    def shard_items(self) -> int:
        """Whole atoms a shard."""
        return self._atoms.items_per_shard(self._shard_rows)

    def item_weight(self, start: int, stop: int) -> int:
        """Rows of some atoms."""
        return self._atoms.num_rows(start, stop)
