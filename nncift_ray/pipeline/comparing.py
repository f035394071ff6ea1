"""How two selections differ: of two runs, or of files with their subsets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nncift_ray.errors import DataError
from nncift_ray.pipeline.opening import open_run
from nncift_ray.storage import schemas
from nncift_ray.storage.exports import ADDED_KEY
from nncift_ray.storage.filesystem import Location

DEPTHS = (0.01, 0.05, 0.10, 0.30)  # of the candidates
FILE_ENDINGS = (".jsonl", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Picks:
    """A ranking: ids and their sources, best first."""

    name: str
    ids: tuple[str, ...]
    sources: tuple[str, ...]  # "" where not known
    num_candidates: int | None  # None where not known


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the heads of two rankings share."""

    share: float | None  # of the candidates; None: both whole
    num_a: int
    num_b: int
    shared: int
    jaccard: float  # shared / either
    contained: float  # shared / the smaller of the two


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Picks of one source."""

    source: str
    num_a: int
    num_b: int
    shared: int


@dataclass(frozen=True, slots=True)
class OnlyPick:
    """A pick of one ranking that the other lacks."""

    rank: int
    example_id: str
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rankings side by side."""

    a: str
    b: str
    num_a: int
    num_b: int
    measured_by: str  # what the depths are shares of
    overlaps: tuple[Overlap, ...]
    rank_correlation: float | None  # Spearman over shared picks; None below two
    sources: tuple[SourceRow, ...]
    num_only_a: int
    num_only_b: int
    only_a: tuple[OnlyPick, ...]
    only_b: tuple[OnlyPick, ...]


def compare(first: str, second: str, top: int = 10) -> Comparison:
    """Compare two selections.

    Args:
        first: A run directory, or a file: subset.jsonl, subset.parquet or ids.txt of an export.
        second: Another.
        top: Examples of each side to name.

    Raises:
        DataError: If a file is no such export.
        StageError: If a run has no finished selection.
        StorageError: If there is nothing.
    """
    a, b = read_picks(first), read_picks(second)
    sizes = [picks.num_candidates for picks in (a, b) if picks.num_candidates]
    pool = max(sizes, default=max(len(a.ids), len(b.ids)))
    shared = set(a.ids) & set(b.ids)
    return Comparison(
        a=a.name,
        b=b.name,
        num_a=len(a.ids),
        num_b=len(b.ids),
        measured_by="candidates" if sizes else "the longer ranking",
        overlaps=tuple(_overlaps(a, b, pool)),
        rank_correlation=_rank_correlation(a, b, shared),
        sources=tuple(_by_source(a, b, shared)),
        num_only_a=len(a.ids) - len(shared),
        num_only_b=len(b.ids) - len(shared),
        only_a=tuple(_only(a, shared, top)),
        only_b=tuple(_only(b, shared, top)),
    )


def read_picks(place: str) -> Picks:
    """Read a ranking from a run directory or from an exported file.

    Raises:
        DataError: If a file is no export, or names an example twice.
    """
    picks = _of_file(place) if place.endswith(FILE_ENDINGS) else _of_run(place)
    twice = [name for name, count in Counter(picks.ids).items() if count > 1]
    if twice:
        raise DataError(f"{place}: the example {twice[0]} is listed twice ({len(twice)} such)")
    return picks


def _of_run(place: str) -> Picks:
    run = open_run(place)
    run.need("deduplicate", "select")
    examples, ranking = (
        run.outputs["deduplicate"],
        run.outputs["select"].read("ranking", ["row_index", "example_id"], schemas.RANKING),
    )
    rows = np.asarray(ranking["row_index"].to_numpy())
    sources = examples.take_rows("candidates", rows, ["source"])["source"] if len(rows) else []
    return Picks(
        place,
        tuple(cast("list[str]", ranking["example_id"].to_pylist())),
        tuple(str(source).rsplit("/", 1)[-1] for source in sources),
        examples.num_rows("candidates"),
    )


def _of_file(place: str) -> Picks:
    location = Location.of(place)
    data = location.read_bytes()
    try:
        if place.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data), columns=["example_id", "source"])
            rows = cast("list[dict[str, Any]]", table.to_pylist())
        elif place.endswith(".jsonl"):
            rows = [json.loads(line)[ADDED_KEY] for line in data.decode().splitlines() if line]
        else:
            rows = [{"example_id": line.strip()} for line in data.decode().split() if line.strip()]
        ids = tuple(str(row["example_id"]) for row in rows)
        sources = tuple(str(row.get("source", "")).rsplit("/", 1)[-1] for row in rows)
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{place}: not the subset of a run ({type(error).__name__}: {error}); give a run "
            "directory, or subset.jsonl, subset.parquet or ids.txt of its export folder"
        ) from error
    return Picks(place, ids, sources, None)


def _overlaps(a: Picks, b: Picks, pool: int) -> list[Overlap]:
    """Compare the heads of both at each depth that one of them reaches, then the whole."""
    found: list[Overlap] = []
    for share in DEPTHS:
        depth = max(1, round(share * pool))
        if depth <= max(len(a.ids), len(b.ids)):
            found.append(_overlap(share, a.ids[:depth], b.ids[:depth]))
    return [*found, _overlap(None, a.ids, b.ids)]


def _overlap(share: float | None, a: Sequence[str], b: Sequence[str]) -> Overlap:
    both, either = len(set(a) & set(b)), len(set(a) | set(b))
    smaller = min(len(a), len(b))
    return Overlap(
        share,
        len(a),
        len(b),
        both,
        both / either if either else 0.0,
        both / smaller if smaller else 0.0,
    )


def _rank_correlation(a: Picks, b: Picks, shared: set[str]) -> float | None:
    """Return Spearman's correlation of the order in which both have what they share."""
    if len(shared) < 2:
        return None
    place_a = {name: at for at, name in enumerate(name for name in a.ids if name in shared)}
    order = np.array([place_a[name] for name in b.ids if name in shared], np.float64)
    return float(np.corrcoef(order, np.arange(len(order)))[0, 1])


def _by_source(a: Picks, b: Picks, shared: set[str]) -> list[SourceRow]:
    source = dict(zip(b.ids, b.sources, strict=True)) | dict(zip(a.ids, a.sources, strict=True))
    in_a, in_b = (Counter(source[name] for name in picks.ids) for picks in (a, b))
    in_both = Counter(source[name] for name in shared)
    names = sorted({*in_a, *in_b}, key=lambda name: (-in_a[name] - in_b[name], name))
    return [
        SourceRow(name or "(not known)", in_a[name], in_b[name], in_both[name]) for name in names
    ]


def _only(picks: Picks, shared: set[str], top: int) -> list[OnlyPick]:
    rows = zip(picks.ids, picks.sources, strict=True)
    mine = [
        OnlyPick(rank, name, source)
        for rank, (name, source) in enumerate(rows, start=1)
        if name not in shared
    ]
    return mine[:top]
