"""An object store that turns one request in twenty away: a run on it ends as one on a disk."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.runtime.files import Location
from tests.chain import run_chain
from tests.s3 import Flaky, s3_server

#: Some hundred requests; every refusal costs the client's own pause.
SMALL: dict[str, Any] = {"num_candidates": 40, "num_targets": 6, "budget": 5, "by_teacher": True}


def test_a_run_on_a_store_that_refuses_one_request_in_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky: list[Flaky] = []
    with s3_server(monkeypatch, "runs", flaky, share=0.05) as query:
        remote = run_chain(tmp_path, run_dir=f"s3://runs/a{query}", **SMALL)
        subset = remote["export"].read_file("subset.jsonl")
        ranking = remote["select"].read("ranking")
    assert flaky[0].num_refused > 10
    local = run_chain(tmp_path, **SMALL)
    assert subset == local["export"].read_file("subset.jsonl")
    assert ranking.equals(local["select"].read("ranking"))


def test_what_travels_to_a_worker_is_as_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    flaky: list[Flaky] = []
    with s3_server(monkeypatch, "runs", flaky, share=0.15) as query:
        there = pickle.loads(pickle.dumps(Location.of(f"s3://runs/a{query}")))  # noqa: S301
        for number in range(25):
            (there / f"{number}").write_bytes(b"x" * number)
        assert [len((there / f"{number}").read_bytes()) for number in range(25)] == list(range(25))
    assert flaky[0].num_refused > 10
