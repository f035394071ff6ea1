"""Items made of rows."""

from __future__ import annotations

import pytest

from nncift_ray.runtime.step import RowAtoms, RowSpan, merge_spans


def test_spans_cover_every_row_once() -> None:
    atoms = RowAtoms((("a", 10), ("b", 0), ("c", 7)), 4)
    spans = list(atoms.spans(0, atoms.num_items))
    assert merge_spans(spans) == [RowSpan("a", 0, 10), RowSpan("c", 0, 7)]
    assert [span.stop - span.start for span in spans] == [4, 4, 2, 4, 3]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_shards_of_any_size_see_the_same_atoms(cut: int) -> None:
    atoms = RowAtoms((("a", 10), ("c", 7)), 4)
    pieces = [atoms.spans(at, min(at + cut, 5)) for at in range(0, 5, cut)]
    assert [span for piece in pieces for span in piece] == list(atoms.spans(0, 5))


def test_weights_add_up_to_the_rows() -> None:
    atoms = RowAtoms((("a", 10), ("c", 7)), 4)
    assert sum(atoms.num_rows(item, item + 1) for item in range(atoms.num_items)) == 17


def test_a_shard_is_at_least_one_atom() -> None:
    assert RowAtoms((("a", 10),), 4).items_per_shard(1) == 1
