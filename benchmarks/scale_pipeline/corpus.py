"""A corpus of any size in several formats: one huge file, many small ones, compressed, columnar."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_TOPICS = 200
WORDS_OF_A_TOPIC = 40
ROWS_AT_ONCE = 10_000
SMALL_FILE_ROWS = 500
#: Share of the rows by format; the rest is one plain JSONL file.
SHARES = {"parquet": 0.25, "gzip": 0.15, "csv": 0.1}

Row = tuple[str, str]


def write_corpus(folder: Path, num_rows: int, words: list[str]) -> list[str]:
    """Write the candidates; the same bytes every time. Returns the patterns of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: int(share * num_rows) for name, share in SHARES.items()}
    rows = draw_rows(num_rows, words)
    with pq.ParquetWriter(folder / "part.parquet", _SCHEMA) as writer:
        for chunk in _chunks(rows, sizes["parquet"], ROWS_AT_ONCE):
            writer.write_table(pa.table(list(zip(*chunk, strict=True)), schema=_SCHEMA))
    with gzip.open(folder / "part.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
        for chunk in _chunks(rows, sizes["gzip"], ROWS_AT_ONCE):
            file.writelines(_line(row) for row in chunk)
    (folder / "small").mkdir(exist_ok=True)
    for number, chunk in enumerate(_chunks(rows, sizes["csv"], SMALL_FILE_ROWS)):
        with (folder / "small" / f"{number:05d}.csv").open(
            "w", newline="", encoding="utf-8"
        ) as out:
            csv.writer(out).writerows([("prompt", "completion"), *chunk])
    with (folder / "huge.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)
    patterns = ["part.parquet", "part.jsonl.gz", "small/*.csv", "huge.jsonl"]
    return [str(folder / pattern) for pattern in patterns]


def draw_rows(num_rows: int, words: list[str]) -> Iterator[Row]:
    """Yield distinct rows, each of the words of one of NUM_TOPICS topics."""
    topics = np.random.default_rng(0).integers(len(words), size=(NUM_TOPICS, WORDS_OF_A_TOPIC))
    generator = np.random.default_rng([0, num_rows])
    for start in range(0, num_rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, num_rows - start)
        topic_N = generator.integers(NUM_TOPICS, size=count)
        word_NW = generator.integers(WORDS_OF_A_TOPIC, size=(count, 16))
        for n in range(count):
            drawn = [words[topics[topic_N[n], w]] for w in word_NW[n]]
            prompt = f"Task {start + n}: {' '.join(drawn[:10])}?"
            yield prompt, " ".join(drawn[10:])


def _chunks(rows: Iterator[Row], num_rows: int, size: int) -> Iterator[list[Row]]:
    for start in range(0, num_rows, size):
        yield [next(rows) for _ in range(min(size, num_rows - start))]


def _line(row: Row) -> str:
    return json.dumps({"prompt": row[0], "completion": row[1]}) + "\n"


_SCHEMA = pa.schema([pa.field("prompt", pa.string()), pa.field("completion", pa.string())])
