"""Items made of rows: fixed atoms of one or more row ranges, numbered one after another.

What is computed together (a padded batch, one matrix product) may differ in the last bit with its
size, so it must not depend on where shards are cut: an atom is computed as a whole, always alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nncift_ray.stages.driving.stage import Stage


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
