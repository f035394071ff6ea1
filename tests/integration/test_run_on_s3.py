"""A run directory in an object store, over the real protocol, served on this machine by moto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nncift_ray.errors import StorageError
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import MANIFEST_NAME
from tests.chain import run_chain
from tests.s3 import s3_server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch, "runs") as query:
        yield f"s3://runs/mine{query}"


def test_a_run_in_a_bucket_ends_as_one_on_disk(bucket: str, tmp_path: Path) -> None:
    remote = run_chain(tmp_path, num_candidates=80, num_targets=8, budget=9, run_dir=bucket)
    local = run_chain(tmp_path, num_candidates=80, num_targets=8, budget=9)
    assert remote["select"].read("ranking").equals(local["select"].read("ranking"))
    assert remote["export"].read_file("subset.jsonl") == local["export"].read_file("subset.jsonl")


def test_a_run_in_a_bucket_is_found_finished(bucket: str, tmp_path: Path) -> None:
    first = run_chain(tmp_path, num_candidates=80, num_targets=8, budget=9, run_dir=bucket)
    manifest = first["fit"].folder / MANIFEST_NAME
    written = manifest.fs.get_file_info(manifest.path).mtime_ns
    run_chain(tmp_path, num_candidates=80, num_targets=8, budget=9, run_dir=bucket)
    assert manifest.fs.get_file_info(manifest.path).mtime_ns == written


def test_an_address_below_a_bucket_keeps_its_query(bucket: str) -> None:
    part = Location.of(bucket) / "embed" / "part.parquet"
    assert part.path == "runs/mine/embed/part.parquet"
    assert part.uri.startswith("s3://runs/mine/embed/part.parquet?endpoint_override=")


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError) as caught:
        Location.of("s3://key:s3cr3t@bucket/run")
    assert "s3cr3t" not in str(caught.value)
