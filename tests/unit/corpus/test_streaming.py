"""Memory stays flat however long the file is, and batches match the declared schemas."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift_ray.corpus.ingest import MAX_BATCH_CHARS, batch_tables, expand_sources, read_examples
from nncift_ray.runtime import schemas
from tests.unit.corpus.hostile import good_pair

NUM_ROWS = 10_000
MIB = 1 << 20
#: Python and Arrow memory that reading may take; each file below is 20 MB as text.
MAX_PEAK_BYTES = 8 * MIB
FILLER = "x" * 2_000


def _rows() -> list[bytes]:
    return [
        json.dumps({"prompt": f"good {number}", "response": FILLER}).encode()
        for number in range(NUM_ROWS)
    ]


def _jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(_rows()))
    return path


def _gzipped(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(_rows()), 1))
    return path


def _array(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_bytes(b"[" + b",".join(_rows()) + b"]")
    return path


def _csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    rows = (f'good {number},"{FILLER}"\n' for number in range(NUM_ROWS))
    path.write_text("prompt,response\n" + "".join(rows))
    return path


def _parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    columns = {
        "prompt": [f"good {number}" for number in range(NUM_ROWS)],
        "response": [f"{number} {FILLER}" for number in range(NUM_ROWS)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=1_000)
    return path


@pytest.mark.parametrize("write", [_jsonl, _gzipped, _array, _csv, _parquet])
def test_a_long_file_streams_in_flat_memory(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    (source,) = expand_sources([str(write(tmp_path))])
    arrow_before = pa.total_allocated_bytes()
    most_arrow = num_rows = 0
    tracemalloc.start(1)
    try:
        for row in read_examples(source, "candidate"):
            assert "reason" not in row
            num_rows += 1
            if num_rows % 500 == 0:
                most_arrow = max(most_arrow, pa.total_allocated_bytes() - arrow_before)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_rows == NUM_ROWS
    assert peak < MAX_PEAK_BYTES
    assert most_arrow < MAX_PEAK_BYTES


MEASURE = """
import resource, sys
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.corpus.ingest import batch_tables, read_examples

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

(source,) = expand_sources(sys.argv[1:])
rows = read_examples(source, "candidate")
batches = batch_tables(rows, batch_size=1_000)
num_rows = next(batches)[0].num_rows
before = peak_kib()
num_rows += sum(good.num_rows for good, _ in batches)
print(num_rows, (peak_kib() - before) // 1024)
"""
MAX_GROWTH_MIB = 25


def test_a_hundred_thousand_rows_do_not_grow_the_process(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as out:
        for number in range(100_000):
            out.write(good_pair(number).replace(b'"r"', b'"%s"' % (b"r" * 1_100)) + b"\n")
    assert path.stat().st_size > 4 * MAX_GROWTH_MIB * MIB
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    num_rows, growth_mib = map(int, done.stdout.split())
    assert num_rows == 100_000
    assert growth_mib < MAX_GROWTH_MIB


def test_one_endless_line_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    endless = gzip.compress(b"x" * (100 * MIB), 1)
    path.write_bytes(
        gzip.compress(good_pair(0) + b"\n") + endless + gzip.compress(b"\n" + good_pair(1))
    )
    (source,) = expand_sources([str(path)])
    tracemalloc.start(1)
    try:
        rows = list(read_examples(source, "candidate"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row.get("reason") for row in rows] == [None, "too_long", None]
    assert peak < 12 * MIB  # the limit of a record is 4 MiB, held once and joined once


def test_batches_follow_the_schemas_and_keep_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good_pair(0), b"bad", good_pair(1), good_pair(2), b"bad"]))
    (source,) = expand_sources([str(path)])
    batches = list(batch_tables(read_examples(source, "target"), batch_size=2))
    assert [(good.num_rows, bad.num_rows) for good, bad in batches] == [(1, 1), (2, 0), (0, 1)]
    for good, bad in batches:
        assert good.schema.equals(schemas.RECORDS)
        assert bad.schema.equals(schemas.ERRORS)
    assert pa.concat_tables([good for good, _ in batches]).column("role").unique().to_pylist() == [
        "target"
    ]


def test_long_rows_fill_a_batch_early(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    long = good_pair(0).replace(b"good", b"g" * 190_000)
    path.write_bytes(b"\n".join([long] * 100))
    (source,) = expand_sources([str(path)])
    sizes = [good.num_rows for good, _ in batch_tables(read_examples(source, "candidate"))]
    assert sum(sizes) == 100
    assert max(sizes) <= MAX_BATCH_CHARS // (2 * 190_000) + 1
