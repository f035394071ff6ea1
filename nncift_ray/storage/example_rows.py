"""From a corpus file to rows: every record becomes an example or an error, none is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast

import pyarrow as pa

from nncift_ray.core.examples import make_example_id
from nncift_ray.errors import DataError
from nncift_ray.storage import schemas
from nncift_ray.storage.corpora import SourceFile
from nncift_ray.storage.layouts import Layout, Record, detect_layout, resolve_layout, to_example
from nncift_ray.storage.raw_records import read_raw_records
from nncift_ray.storage.rows import (
    BadRow,
    ErrorRow,
    ExampleRow,
    RawRecord,
    ReadLimits,
    make_excerpt,
)

INGEST_STAGE = "ingest"
DEFAULT_BATCH_ROWS = 4_096
#: A batch is also full at this many characters, so that long rows do not add up.
MAX_BATCH_CHARS = 16 << 20


def find_layout(
    source: SourceFile,
    *,
    layout_override: str | None = None,
    columns: Mapping[str, str] | None = None,
    limits: ReadLimits | None = None,
) -> Layout | None:
    """Return the layout of a file, decided on its first good records; None if it has none.

    Raises:
        DataError: If the records fit no known layout.
    """
    limits = limits or ReadLimits()
    layout = resolve_layout(layout_override, columns)
    if layout is not None:
        return layout
    good = (cast(Record, raw.value) for raw in read_raw_records(source, limits) if not raw.error)
    try:
        return detect_layout(islice(good, limits.sample_rows))
    except DataError as error:
        raise DataError(f"{source.uri}: {error}") from error


def read_examples(
    source: SourceFile,
    role: str,
    *,
    layout_override: str | None = None,
    columns: Mapping[str, str] | None = None,
    limits: ReadLimits | None = None,
) -> Iterator[ExampleRow | ErrorRow]:
    """Yield every record of a file as an example or as an error, in the order of the file.

    The file's first records are read twice: once to decide the layout, once to be used.

    Args:
        source: The file.
        role: ``schemas.CANDIDATE`` or ``schemas.TARGET``.
        layout_override: A name of ``layouts.LAYOUTS``; None or "auto" to find it.
        columns: An explicit mapping, see ``layouts.columns_layout``.
        limits: Bounds on a record.

    Raises:
        DataError: If the file cannot be opened, or its records fit no known layout.
    """
    limits = limits or ReadLimits()
    layout = find_layout(source, layout_override=layout_override, columns=columns, limits=limits)
    for raw in read_raw_records(source, limits):
        yield _to_row(raw, source, role, layout, limits)


def is_error(row: ExampleRow | ErrorRow) -> bool:
    """Whether a row of ``read_examples`` is an error."""
    return "reason" in row


def batch_tables(
    rows: Iterable[ExampleRow | ErrorRow], batch_size: int = DEFAULT_BATCH_ROWS
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Gather rows into (records, errors) tables of ``schemas.RECORDS`` and ``schemas.ERRORS``.

    Together the two hold at most ``batch_size`` rows and about ``MAX_BATCH_CHARS`` characters.
    """
    good: list[ExampleRow] = []
    bad: list[ErrorRow] = []
    num_chars = 0
    for row in rows:
        if "reason" in row:
            bad.append(row)
        else:
            good.append(row)
            num_chars += len(row["record"]) + len(row["prompt"]) + len(row["response"])
        if len(good) + len(bad) >= batch_size or num_chars >= MAX_BATCH_CHARS:
            yield _to_tables(good, bad)
            good, bad, num_chars = [], [], 0
    if good or bad:
        yield _to_tables(good, bad)


def count_layouts(tables: Iterable[pa.Table]) -> Counter[str]:
    """Count the rows of each layout in tables of ``schemas.RECORDS``."""
    counts: Counter[str] = Counter()
    for table in tables:
        counts.update(cast("list[str]", table.column("layout").to_pylist()))
    return counts


def _to_tables(good: list[ExampleRow], bad: list[ErrorRow]) -> tuple[pa.Table, pa.Table]:
    return (
        pa.Table.from_pylist(cast("list[dict[str, object]]", good), schema=schemas.RECORDS),
        pa.Table.from_pylist(cast("list[dict[str, object]]", bad), schema=schemas.ERRORS),
    )


def _to_row(
    raw: RawRecord, source: SourceFile, role: str, layout: Layout | None, limits: ReadLimits
) -> ExampleRow | ErrorRow:
    if raw.error is not None:
        return _error_row(raw.error, source, raw.line, raw.excerpt)
    example = to_example(cast(Record, raw.value), layout, limits.max_chars)
    if isinstance(example, BadRow):
        return _error_row(example, source, raw.line, make_excerpt(raw.record))
    return {
        "role": role,
        "example_id": make_example_id(example.prompt, example.response),
        "prompt": example.prompt,
        "response": example.response,
        "record": raw.record,
        "source": source.uri,
        "line": raw.line,
        "layout": example.layout,
    }


def _error_row(problem: BadRow, source: SourceFile, line: int, excerpt: str) -> ErrorRow:
    return {
        "stage": INGEST_STAGE,
        "source": source.uri,
        "line": line,
        "example_id": None,
        "reason": problem.reason,
        "message": problem.message,
        "excerpt": excerpt,
    }
