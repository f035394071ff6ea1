"""Folders and compressed files made to read what was not named, or more than there is room for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from nncift_ray.corpus import formats
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.errors import DataError
from tests.unit.corpus.hostile import good_pair, read_file

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
NUM_COPIES = 200_000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with one good file, and beside it a file that is nobody's business."""
    (tmp_path / "secret.jsonl").write_text(SECRET)
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(good_pair(1) + b"\n")
    return folder


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/**/*.jsonl"])
def test_a_link_out_of_a_folder_is_refused_with_where_it_leads(corpus: Path, pattern: str) -> None:
    (corpus / "more.jsonl").symlink_to("../secret.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl' is a link .* to '.*secret\.jsonl'.*Name"):
        expand_sources([f"{corpus}{pattern}"])


def test_a_linked_folder_is_refused_like_a_file(corpus: Path) -> None:
    outside = corpus.parent / "outside"
    outside.mkdir()
    (outside / "rows.jsonl").write_bytes(good_pair(2) + b"\n")
    (corpus / "part").symlink_to(outside)
    for pattern in (f"{corpus}/part*", f"{corpus}/*/rows.jsonl"):
        with pytest.raises(DataError, match="leads out of its folder"):
            expand_sources([pattern])


def test_a_link_that_is_named_itself_is_meant(corpus: Path) -> None:
    (corpus / "more.jsonl").symlink_to("../secret.jsonl")
    assert [source.path for source in expand_sources([str(corpus / "more.jsonl")])]


def test_links_within_a_folder_are_followed(corpus: Path) -> None:
    (corpus / "again.jsonl").symlink_to("good.jsonl")
    assert len(expand_sources([str(corpus)])) == 2


def test_a_folder_reached_by_a_link_is_that_folder(corpus: Path) -> None:
    (corpus.parent / "short").symlink_to(corpus)
    assert len(expand_sources([str(corpus.parent / "short")])) == 1


def test_a_snapshot_of_the_hub_has_its_files_in_blobs_beside_it(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--owner--name"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "0a1b").write_bytes(good_pair(1) + b"\n")
    snapshot = repo / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/0a1b")
    assert len(expand_sources([str(snapshot)])) == 1
    (tmp_path / "secret.jsonl").write_text(SECRET)
    (snapshot / "more.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match="leads out"):
        expand_sources([str(snapshot)])


def test_a_folder_that_links_to_itself_ends(corpus: Path) -> None:
    (corpus / "loop").symlink_to(corpus)
    sources = expand_sources([str(corpus)])
    assert {Path(source.path).resolve() for source in sources} == {corpus / "good.jsonl"}


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "sub/../../secret.arrow"])
def test_a_saved_data_set_lists_no_file_outside_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.arrow").write_text(SECRET)
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="without its file"):
        expand_sources([str(folder)])


@pytest.mark.parametrize("name", ["rows.tar", "rows.tar.gz", "rows.zip", "rows.jsonl.tar.zst"])
def test_archives_are_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match="is an archive: unpack it"):
        expand_sources([str(tmp_path / name)])


def pack(suffix: str, data: bytes) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def test_a_bomb_is_read_no_further_than_its_size_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "FREE_BYTES", 1 << 20)
    packed = pack(".zst", (good_pair(1) + b"\n") * NUM_COPIES)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(packed)
    good, bad = read_file(path)
    assert [row["reason"] for row in bad] == ["expands_too_far"]
    assert bad[0]["line"] == len(good) + 1
    most = max(1 << 20, formats.MAX_EXPANSION * len(packed))
    read = len(good) * (len(good_pair(1)) + 1)
    assert most - formats.CHUNK_BYTES < read <= most + formats.CHUNK_BYTES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_small_file_may_pack_as_well_as_it_likes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(pack(suffix, (good_pair(1) + b"\n") * 20_000))
    good, bad = read_file(path)
    assert (len(good), bad) == (20_000, [])
