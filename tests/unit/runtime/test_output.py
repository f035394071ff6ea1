"""Sinks, outputs and files written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.errors import StorageError
from nncift_ray.runtime.files import Location, delete_temporaries
from nncift_ray.runtime.output import (
    Sink,
    StageManifest,
    StageOutput,
    describe_environment,
    fingerprint,
)

NUMBERS = pa.schema([pa.field("n", pa.int64())])


def accept(table: str, schema: pa.Schema) -> None:
    """Let every schema pass."""


def make_output(folder: Path, sizes: list[int]) -> StageOutput:
    """Write one shard for each size, counting on through the rows."""
    location = Location.of(str(folder))
    records, start = [], 0
    for item, size in enumerate(sizes):
        sink = Sink(location, "numbers", item, item + 1, accept)
        sink.write("n", pa.table({"n": np.arange(start, start + size)}, schema=NUMBERS))
        records.append(sink.finish(0.0))
        start += size
    manifest = StageManifest(
        stage="numbers", version=1, fingerprint="f", settings={}, inputs={}, seed=0,
        num_items=len(sizes), num_failures=0, wall_seconds=0, worker_seconds=0, num_cpus=1,
        num_gpus=0, finished_at="", environment={}, shards=tuple(records),
    )  # fmt: skip
    return StageOutput(location, manifest)


def test_tables_are_read_in_item_order(tmp_path: Path) -> None:
    output = make_output(tmp_path, [3, 0, 2])
    assert output.read("n")["n"].to_pylist() == [0, 1, 2, 3, 4]
    assert output.num_rows("n") == 5


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 4), (0, 5), (4, 5)])
def test_ranges_cross_parts(tmp_path: Path, start: int, stop: int) -> None:
    output = make_output(tmp_path, [3, 2])
    assert output.read_range("n", start, stop)["n"].to_pylist() == list(range(start, stop))


def test_rows_are_taken_in_the_order_asked(tmp_path: Path) -> None:
    output = make_output(tmp_path, [3, 2])
    assert output.take_rows("n", np.array([4, 0, 3, 0]))["n"].to_pylist() == [4, 0, 3, 0]


def test_a_row_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no row 9"):
        make_output(tmp_path, [3]).take_rows("n", np.array([9]))


def test_a_damaged_part_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    output = make_output(tmp_path, [3])
    (tmp_path / output.manifest.table_parts("n")[0].name).write_bytes(b"not parquet")
    with pytest.raises(StorageError, match=r"parquet: .*Delete the folder"):
        output.read("n")


def test_an_aborted_sink_leaves_no_file(tmp_path: Path) -> None:
    sink = Sink(Location.of(str(tmp_path)), "numbers", 0, 1, accept)
    sink.write("n", pa.table({"n": [1]}, schema=NUMBERS))
    sink.open_file("model.bin").write(b"half")
    sink.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_recorded_digest_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    import hashlib

    part = make_output(tmp_path, [1000]).manifest.table_parts("n")[0]
    data = (tmp_path / part.name).read_bytes()
    assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    digests = {make_output(tmp_path / name, [500]).manifest.table_parts("n")[0].sha256
               for name in ("a", "b")}  # fmt: skip
    assert len(digests) == 1


def write_and_fail(location: Location) -> None:
    with location.open_whole() as out:
        out.write(b"new")
        raise RuntimeError


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    location = Location.of(str(tmp_path / "file"))
    location.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_and_fail(location)
    assert location.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_are_deleted_and_files_kept(tmp_path: Path) -> None:
    (tmp_path / "part.tmp-12345678").write_bytes(b"x")
    (tmp_path / "part").write_bytes(b"x")
    assert delete_temporaries(Location.of(str(tmp_path))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_run_folders_are_private(tmp_path: Path) -> None:
    Location.of(str(tmp_path / "run")).make_folder()
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_unknown_scheme_is_refused_with_a_remedy() -> None:
    with pytest.raises(StorageError, match="no file system for 'nosuch://'"):
        Location.of("nosuch://bucket/run")


def test_fingerprint_changes_with_all_that_shapes_rows() -> None:
    base = fingerprint("embed", 1, {"model": "m"}, {"a": "1"})
    others = [
        fingerprint("project", 1, {"model": "m"}, {"a": "1"}),
        fingerprint("embed", 2, {"model": "m"}, {"a": "1"}),
        fingerprint("embed", 1, {"model": "n"}, {"a": "1"}),
        fingerprint("embed", 1, {"model": "m"}, {"a": "2"}),
    ]
    assert len({base, *others}) == 5


def test_a_record_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Delete its stage's folder"):
        StageManifest.read(b'{"stage": "embed"}', "run/embed/manifest.json")


def test_environment_holds_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value")
    environment = describe_environment()
    assert "pyarrow" in environment
    assert "s3cr3t-value" not in str(environment)
