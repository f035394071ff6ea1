"""Corpora in an object store, served on this machine by moto."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest
from pyarrow import fs as pafs

from nncift_ray.corpus.ingest import expand_sources, read_examples
from nncift_ray.errors import DataError
from tests.s3 import s3_server

ROW = b'{"prompt": "p", "response": "r"}\n'


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch, "corpus") as query:
        fs, _ = pafs.FileSystem.from_uri(f"s3://corpus/x{query}")
        for name, data in (
            ("a.jsonl", ROW),
            ("b.jsonl", ROW * 2),
            ("s/c.jsonl.gz", gzip.compress(ROW)),
        ):
            with fs.open_output_stream(f"corpus/d/{name}", compression=None) as out:
                out.write(data)
        yield query


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/b.jsonl", {"d/b.jsonl": 2}),
        ("d/*.jsonl", {"d/a.jsonl": 1, "d/b.jsonl": 2}),
        ("d", {"d/a.jsonl": 1, "d/b.jsonl": 2, "d/s/c.jsonl.gz": 1}),
    ],
)
def test_objects_are_found_and_read_as_files_are(
    options: str, pattern: str, expected: dict[str, int]
) -> None:
    sources = expand_sources([f"s3://corpus/{pattern}{options}"])
    assert [source.uri for source in sources] == [
        f"s3://corpus/{path}{options}" for path in expected
    ]
    counts = [len(list(read_examples(source, "candidate"))) for source in sources]
    assert counts == list(expected.values())


def test_an_absent_object_names_the_nearest_folder(options: str) -> None:
    with pytest.raises(DataError, match=r"nearest folder that exists is 'corpus/d'"):
        expand_sources([f"s3://corpus/d/no/x.jsonl{options}"])
