"""Patterns of a recipe: which files they mean, in which order, and what is said if none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from nncift_ray.corpus.ingest import KINDS, SourceFile, content_digest, expand_sources, kind_of
from nncift_ray.errors import DataError


def _make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"prompt": "a", "response": "b"}\n')


def _names(folder: Path, *patterns: str) -> list[str]:
    sources = expand_sources([str(folder / pattern) for pattern in patterns])
    return [str(Path(source.path).relative_to(folder)) for source in sources]


def _save_split(folder: Path, *files: str, **state: object) -> None:
    _make(folder, *files)
    entries = [{"filename": name} for name in files]
    (folder / "state.json").write_text(json.dumps({"_data_files": entries, **state}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"a{suffix}", kind) for suffix, kind in KINDS.items()),
        ("A.JSONL.GZ", "jsonl"),
        ("a.b.json.zst", "json"),
        ("a.csv.gz", "csv"),
    ],
)
def test_the_kind_follows_from_the_suffix(name: str, kind: str) -> None:
    assert kind_of(f"/some.where/{name}") == kind


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.txt.gz", ".jsonl", "a.json.lz4"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(DataError, match=r"\.jsonl.*\.parquet"):
        kind_of(name)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.jsonl.bz2", "a.7z"])
def test_an_archive_is_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(DataError, match="unpack it"):
        kind_of(name)


def test_files_come_in_the_order_of_patterns_then_paths_each_once(tmp_path: Path) -> None:
    _make(tmp_path, "b.jsonl", "a.jsonl", "c.csv", "sub/d.jsonl")
    assert _names(tmp_path, "c.csv", "*.jsonl", "a.jsonl") == ["c.csv", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a1.jsonl", "a2.jsonl"]),
        ("a?.jsonl", ["a1.jsonl", "a2.jsonl"]),
        ("a[1].jsonl", ["a1.jsonl"]),
        ("a[!1].jsonl", ["a2.jsonl"]),
        ("*/*.jsonl", ["s/b.jsonl"]),
        ("s*/t/*", ["s/t/c.jsonl"]),
        ("**/*.jsonl", ["a1.jsonl", "a2.jsonl", "s/b.jsonl", "s/t/c.jsonl"]),
        ("s/**", ["s/b.jsonl", "s/t/c.jsonl"]),
    ],
)
def test_globs_match_as_in_a_shell(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    _make(tmp_path, "a1.jsonl", "a2.jsonl", "s/b.jsonl", "s/t/c.jsonl")
    assert _names(tmp_path, pattern) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    _make(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert _names(tmp_path, "a[1].jsonl") == ["a[1].jsonl"]


def test_a_folder_gives_its_corpus_files_and_nothing_else(tmp_path: Path) -> None:
    _make(tmp_path, "b.csv", "a.jsonl.gz", "s/c.parquet", "README.md", "dataset_info.json")
    _make(tmp_path, ".hidden.jsonl", "_tmp/d.jsonl", "old.zip")
    assert _names(tmp_path, ".") == ["a.jsonl.gz", "b.csv", "s/c.parquet"]


def test_a_saved_dataset_gives_its_files_in_its_own_order(tmp_path: Path) -> None:
    _save_split(tmp_path / "ds", "data-2.arrow", "data-10.arrow")
    _make(tmp_path, "ds/cache-1.arrow")
    assert _names(tmp_path, "ds") == ["ds/data-2.arrow", "ds/data-10.arrow"]


def test_a_dataset_with_one_split_is_that_split(tmp_path: Path) -> None:
    _save_split(tmp_path / "ds/train", "data.arrow")
    (tmp_path / "ds/dataset_dict.json").write_text('{"splits": ["train"]}')
    assert _names(tmp_path, "ds") == ["ds/train/data.arrow"]


def test_a_dataset_with_several_splits_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _save_split(tmp_path / "ds" / split, "data.arrow")
    (tmp_path / "ds/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"test, train.*name one.*ds/test"):
        expand_sources([str(tmp_path / "ds")])


def test_a_dataset_behind_an_index_or_without_a_file_is_refused(tmp_path: Path) -> None:
    _save_split(tmp_path / "a", "data.arrow", _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        expand_sources([str(tmp_path / "a")])
    _save_split(tmp_path / "b", "data.arrow")
    (tmp_path / "b/data.arrow").unlink()
    with pytest.raises(DataError, match=r"without its file data\.arrow"):
        expand_sources([str(tmp_path / "b")])


@pytest.mark.parametrize("pattern", ["no/such/a.jsonl", "no/*.jsonl", "*.csv", "x.jsonl"])
def test_nothing_matched_names_the_pattern_and_the_nearest_folder(
    tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(DataError) as caught:
        expand_sources([str(tmp_path / pattern)])
    assert str(tmp_path / pattern) in str(caught.value)
    assert f"is '{tmp_path}'" in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no corpus file"):
        expand_sources([str(tmp_path)])


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(DataError, match="environment") as caught:
        expand_sources(["s3://KEY:hidden@bucket/a.jsonl"])
    assert "hidden" not in str(caught.value)


def test_sources_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    _make(tmp_path, "a.jsonl")
    (source,) = expand_sources([str(tmp_path / "a.jsonl")])
    copy: SourceFile = pickle.loads(pickle.dumps(source))  # noqa: S301  (our own bytes)
    assert copy == source
    assert copy.fs.get_file_info(copy.path).size == source.size


def test_a_file_uri_may_be_a_glob(tmp_path: Path) -> None:
    _make(tmp_path, "a.jsonl", "s/b.jsonl")
    sources = expand_sources([f"file://{tmp_path}/**/*.jsonl"])
    assert [Path(source.path).name for source in sources] == ["a.jsonl", "b.jsonl"]


def test_the_digest_follows_the_content_not_the_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    digests: list[str] = []
    for text in ("one", "two", "one"):
        path.write_text(text)
        digests.append(content_digest(expand_sources([str(path)])[0]))
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("data/a.jsonl", "data/a.jsonl"),
        ("./data/*.jsonl", "data/a.jsonl"),
        ("**/*.jsonl", "data/a.jsonl"),
        ("data", "data/a.jsonl"),
        (".", "./data/a.jsonl"),
        ("../there/data/*.jsonl", "../there/data/a.jsonl"),
    ],
)
def test_a_relative_path_is_a_name_wherever_its_folder_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, name: str
) -> None:
    (tmp_path / "there" / "data").mkdir(parents=True)
    (tmp_path / "there" / "data" / "a.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path / "there")
    (source,) = expand_sources([pattern, str(tmp_path / "there" / "data" / "a.jsonl")])
    assert (source.uri, Path(source.path)) == (name, tmp_path / "there" / "data" / "a.jsonl")


@pytest.mark.parametrize(
    ("files", "splits", "one"),
    [
        (["train.jsonl", "test.jsonl"], "test, train", "train.jsonl"),
        (["my_train_1.csv", "b/my-dev.csv"], "train, validation", "my_train_1.csv"),
        (["train/a.jsonl", "validation/a.jsonl"], "train, validation", "train/a.jsonl"),
        (
            ["data/train_sft-00000-of-00002.parquet", "data/test_gen-00000-of-00001.parquet"],
            "test_gen, train_sft",
            "data/train_sft-*.parquet",
        ),
        (["dataset_info.json", "json-train.arrow", "json-test.arrow"], "test, train", "json-tr"),
    ],
)
def test_splits_of_a_folder_are_never_mixed(
    tmp_path: Path, files: list[str], splits: str, one: str
) -> None:
    _make(tmp_path, *files)
    for pattern in ("", "**/*"):
        with pytest.raises(DataError, match=rf"several splits \({splits}\): name one") as told:
            _names(tmp_path, pattern)
        assert f"'{tmp_path}/{one}" in str(told.value)
    data = [name for name in files if name != "dataset_info.json"]
    assert _names(tmp_path, *data) == data
    assert _names(tmp_path, one.replace("json-tr", "json-tr*")) == [
        name for name in data if name.startswith(one.split("*")[0])
    ]


def test_parts_of_one_split_and_other_files_are_read_together(tmp_path: Path) -> None:
    names = ["en/train.jsonl", "fr/train-2.jsonl", "more.jsonl"]
    _make(tmp_path, *names, "training/cache-12ab.arrow")
    assert _names(tmp_path, "") == names
    _make(tmp_path / "c", "dataset_info.json", "json-train.arrow", "cache-1f.arrow", "tmp8x.arrow")
    assert _names(tmp_path, "c", "c/*.arrow") == ["c/json-train.arrow"]


def test_brackets_in_a_name_are_taken_as_they_are(tmp_path: Path) -> None:
    _make(tmp_path, "v[2]/a[1].jsonl", "v[2]/b.jsonl", "c1.jsonl", "c[1].jsonl")
    assert _names(tmp_path, "v[2]/a[1].jsonl") == ["v[2]/a[1].jsonl"]
    assert _names(tmp_path, "v[2]/*.jsonl") == ["v[2]/a[1].jsonl", "v[2]/b.jsonl"]
    assert _names(tmp_path, "v[2]/a[1].*") == ["v[2]/a[1].jsonl"]
    assert _names(tmp_path, "v[2]") == ["v[2]/a[1].jsonl", "v[2]/b.jsonl"]
    assert _names(tmp_path, "c[1].*") == ["c1.jsonl"]
