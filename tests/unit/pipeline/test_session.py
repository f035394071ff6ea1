"""Where a run is done: in its process or on Ray; what a process that was killed leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nncift_ray import pipeline
from nncift_ray.errors import ConfigError
from nncift_ray.pipeline import Blueprint, run, session_of, why_on_ray
from nncift_ray.recipe.loading import make_config
from nncift_ray.runtime import session
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import LineReporter, SilentReporter


def blueprint(folder: Path, num_rows: int = 40, **sections: Any) -> Blueprint:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(num_rows)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Blueprint(
        make_config(
            {
                "run_dir": str(folder / "run"),
                "data": {"candidates": [str(folder / "corpus.jsonl")]},
                "teacher": {"kind": "delift_se"},
                "selection": {"objective": "facility_location", "budget": 0.1},
                **sections,
            }
        )
    )


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(pipeline, "ray_running", lambda: False)


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({}, ""),
        ({"cluster": "ray"}, "cluster.mode"),
        ({"cluster": {"address": "10.0.0.1:6379"}}, "cluster"),
        ({"cluster": {"mode": "local", "address": "10.0.0.1:6379"}}, ""),
        ({"network": {"kind": "paper", "num_workers": 2}}, "workers"),
        ({"embedder": {"pool": {"num_actors": 2}}}, "actors"),
    ],
)
def test_a_small_run_is_done_in_the_process_unless_something_needs_ray(
    tmp_path: Path, sections: dict[str, Any], word: str
) -> None:
    reason = why_on_ray(blueprint(tmp_path, **sections), Location.of(str(tmp_path)))
    assert (word in reason) if word else not reason


def test_a_large_corpus_goes_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blueprint(tmp_path)
    monkeypatch.setattr(pipeline, "IN_PROCESS_BYTES", 100)
    assert "the corpus has" in why_on_ray(found, Location.of(str(tmp_path)))
    monkeypatch.setattr(pipeline, "ray_installed", lambda: False)
    assert not why_on_ray(found, Location.of(str(tmp_path)))


def test_a_run_whose_process_was_killed_goes_on_with_ray(tmp_path: Path) -> None:
    found, run_dir = blueprint(tmp_path), Location.of(str(tmp_path / "run"))
    run_dir.make_folder()
    told: list[str] = []

    def interrupted() -> None:
        with session_of(found, run_dir, LineReporter(told.append)):
            assert "killed" in why_on_ray(found, run_dir)  # as a second process would see it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "in this process" in told[0]
    assert not why_on_ray(found, run_dir)  # Ctrl-C is no death


def test_without_ray_installed_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ray_installed", lambda: False)
    config = blueprint(tmp_path, cluster="ray").config
    with pytest.raises(ConfigError, match=r"nncift_ray\[ray\]"):
        run(config, reporter=SilentReporter(), until="ingest")
