"""A run in an object store, gone on from in the object store, as on a disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from nncift_ray.runs import Run
from tests.s3 import s3_server
from tests.unit.extend.grown import NUM_OLD, grow, make_extension, make_parent, write_new


def test_a_run_in_a_bucket_is_gone_on_from_as_one_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = write_new(tmp_path / "new.jsonl", NUM_OLD, 20)
    local = grow(make_parent(tmp_path / "disk"), new, str(tmp_path / "grown"))
    with s3_server(monkeypatch, "runs") as query:
        parent = make_parent(tmp_path / "bucket", run_dir=f"s3://runs/mine{query}")
        home = f"s3://runs/more{query}"
        remote = grow(parent, new, home)
        assert remote["select"].read("ranking").equals(local["select"].read("ranking"))
        again = Run.open(home).outputs
        assert again["embed"].num_rows("candidates") == NUM_OLD + 20
        assert again["fit"].folder.uri.startswith("s3://runs/mine/")


def test_stages_of_an_extension_can_be_sent_to_workers(tmp_path: Path) -> None:
    parent = make_parent(tmp_path)
    new = write_new(tmp_path / "new.jsonl", NUM_OLD, 20)
    grown = grow(parent, new, str(tmp_path / "grown"))
    extension = make_extension(parent, new, str(tmp_path / "grown"))
    for name in ("embed", "project", "drift", "score_pairs", "select"):
        stage = extension.steps[name](grown)
        assert pickle.loads(pickle.dumps(stage)).num_items() == stage.num_items()  # noqa: S301
