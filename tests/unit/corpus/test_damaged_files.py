"""Random damage to files of every format is reported, never raised, and costs no row before it."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift_ray.errors import DataError
from tests.unit.corpus.hostile import good_pair, read_file

NUM_ROWS = 30
NUM_DAMAGED = 60
_LINES = b"\n".join(good_pair(number) for number in range(NUM_ROWS))
_PIECES = [b'"', b"\\", b"\n", b"\r", b"{", b"}", b"[", b"]", b",", b"\0", b"\xff", b"\xc3", b"NaN"]


def _table() -> pa.Table:
    prompts = [f"good {number}" for number in range(NUM_ROWS)]
    turns = [[{"role": "user", "content": "x"}]] * NUM_ROWS
    return pa.table({"prompt": prompts, "response": ["r"] * NUM_ROWS, "turns": turns})


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(_table(), out, row_group_size=10)
    return out.getvalue()


def _arrow(new: object) -> bytes:
    out = pa.BufferOutputStream()
    with new(out, _table().schema) as writer:  # type: ignore[operator]
        writer.write_table(_table(), max_chunksize=10)
    return out.getvalue().to_pybytes()


FILES = {
    "lines.jsonl": _LINES,
    "array.json": b"[" + _LINES.replace(b"\n", b",\n") + b"]",
    "wrapped.json": b'{"x": 1, "data": [' + _LINES.replace(b"\n", b",") + b"]}",
    "table.csv": b"prompt,response\n" + b'"good, x",r\n' * NUM_ROWS,
    "lines.jsonl.gz": gzip.compress(_LINES, mtime=0),
    "table.parquet": _parquet(),
    "stream.arrow": _arrow(pa.ipc.new_stream),
    "file.arrow": _arrow(pa.ipc.new_file),
}


def _damage(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Change, insert or delete a few bytes; return where the first change is."""
    text = bytearray(data)
    places = sorted(rng.sample(range(len(text)), rng.choice([1, 1, 3])), reverse=True)
    for place in places:
        piece = rng.choice([*_PIECES, bytes([rng.randrange(256)])])
        text[place : place + rng.choice([0, 1, 1, 40])] = piece
    return bytes(text), places[-1]


@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_never_raised(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)  # noqa: S311  (repeatable, no secret)
    num_read = 0
    for _ in range(NUM_DAMAGED):
        data, _ = _damage(FILES[name], rng)
        (tmp_path / name).write_bytes(data)
        try:
            good, bad = read_file(tmp_path / name)
        except DataError:
            continue  # column names were hit: no layout is left to read by
        assert good or bad
        num_read += 1
    assert num_read > NUM_DAMAGED / 2


def test_damage_costs_no_line_before_it(tmp_path: Path) -> None:
    rng = random.Random(0)  # noqa: S311  (repeatable, no secret)
    path = tmp_path / "lines.jsonl"
    for _ in range(NUM_DAMAGED):
        data, first = _damage(_LINES, rng)
        path.write_bytes(data)
        num_before = data[:first].count(b"\n")
        good, _ = read_file(path)
        assert [row["line"] for row in good][:num_before] == list(range(1, num_before + 1))
