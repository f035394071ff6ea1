"""A recipe as a job of a real Ray head: stopped half-way, sent again, equal to the local run."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift_ray.storage.output import MANIFEST_NAME, SHARD_FOLDER
from tests.e2e.job_server import MARKET, Head, ray_head

TOKEN = "planted-5b1e7d0c9f3a4b6e8d2c"
NUM_ROWS, NUM_PAIRS, SHARD_PAIRS = 300, 120, 12
TEACHER = '''"""Measures the difference in length of two answers, slowly."""

import time

from nncift_ray.models.teachers import Measurement


class SlowTeacher:
    kind = "pairwise"
    needs_baseline = needs_embeddings = needs_engine = False
    version = 1

    @classmethod
    def from_context(cls, context):
        return cls()

    def measure(self, requests):
        time.sleep(0.08 * len(requests))
        return [
            Measurement(float(len(r.helper.response) - len(r.helped.response))) for r in requests
        ]

    @staticmethod
    def utility(baseline, value):
        return value

    def close(self):
        pass
'''


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head"), TOKEN) as started:
        yield started


@pytest.fixture(scope="module")
def tree(head: Head) -> Path:
    """What goes along: a user's own teacher and a small corpus; and the recipe beside it."""
    root = head.folder / "tree"
    (root / "corpus").mkdir(parents=True)
    (root / "slow_teachers.py").write_text(TEACHER)
    rows = [
        json.dumps({"prompt": f"Add {i} and {i % 9}.", "completion": "Yes. " * (1 + i % 7)})
        for i in range(NUM_ROWS)
    ]
    (root / "corpus" / "a.jsonl").write_text("\n".join(rows) + "\n")
    recipe: dict[str, Any] = {
        "run_dir": str(head.folder / "run"),
        "data": {"candidates": ["corpus/*.jsonl"]},
        "teacher": {"kind": "slow_teachers:SlowTeacher"},
        "embedder": {
            "model": "embedded:all-minilm-l6-v2",
            "pool": {"num_actors": 1, "num_cpus": 1, "labels": {MARKET: "!spot"}},
        },
        "labels": {
            "label_pairs": NUM_PAIRS,
            "pool": {"num_actors": 1, "num_cpus": 1, "shard_rows": SHARD_PAIRS},
        },
        "network": {"num_epochs": 2, "min_steps": 0},
        "pair_scores": {"pool": {"num_actors": 1, "num_cpus": 1}},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "cluster": {"labels": {MARKET: "in(on-demand, reserved)"}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def finished_labels(run_dir: Path) -> dict[str, int]:
    """Return when each finished shard of the labels was recorded."""
    records = run_dir.glob(f"label/*/{SHARD_FOLDER}/*.json")
    return {record.name: record.stat().st_mtime_ns for record in records}


def submit_options(head: Head, tree: Path) -> list[str]:
    return ["submit", "tree/recipe.yaml", "--address", head.address, "--working-dir", str(tree)]


def stop_in_the_middle(head: Head, tree: Path, run_dir: Path) -> tuple[str, dict[str, int]]:
    """Send the recipe, stop it while it labels; return its log and the shards it finished."""
    sent = head.nncift(*submit_options(head, tree), "--no-wait")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    job_id = sent.stdout.split()[1].rstrip(":")
    deadline = time.monotonic() + 200
    while not finished_labels(run_dir):
        assert time.monotonic() < deadline, head.nncift("jobs", "logs", job_id).stdout
        time.sleep(0.1)
    stopped = head.nncift("jobs", "stop", job_id, "--address", head.address)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "STOPPED; finished shards are kept" in stopped.stdout
    log = head.nncift("jobs", "logs", job_id, "--address", head.address)
    return log.stdout, finished_labels(run_dir)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_stopped_half_way_and_sent_again_ends_as_a_local_run(head: Head, tree: Path) -> None:
    run_dir = head.folder / "run"
    log, kept = stop_in_the_middle(head, tree, run_dir)
    assert "ends with the next finished shard" in log
    assert "stopped; finished shards are kept" in log
    assert 1 <= len(kept) < NUM_PAIRS // SHARD_PAIRS
    assert not list(run_dir.glob(f"label/*/{MANIFEST_NAME}"))
    done = head.nncift(*submit_options(head, tree))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout
    assert "finished by an earlier run" in done.stdout
    assert kept.items() <= finished_labels(run_dir).items(), "finished shards were done again"

    here = {**head.environment, "PYTHONPATH": f"{head.environment['PYTHONPATH']}:{tree}"}
    local = Head(head.address, here, tree, TOKEN)
    overrides = ["-s", f"run_dir={head.folder / 'local'}", "-s", "cluster.labels={}"]
    run = local.nncift("run", "recipe.yaml", *overrides, "-s", "embedder.pool.labels={}")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("subset.jsonl", "alpaca.json"):
        first, second = (head.folder / folder / "export" / name for folder in ("run", "local"))
        assert first.read_bytes() == second.read_bytes()
    check_no_token(head)


def check_no_token(head: Head) -> None:
    """Look for the token in the jobs' metadata, in all logs and in all that the runs left."""
    jobs = json.loads(head.nncift("jobs", "list", "--json", "--address", head.address).stdout)
    assert [job["status"] for job in jobs] == ["SUCCEEDED", "STOPPED"]
    request = urllib.request.Request(f"{head.address}/api/jobs/")  # noqa: S310
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        raw = answer.read().decode()
    assert jobs[0]["job_id"] in raw
    assert TOKEN not in raw
    secret = head.folder / ".ray" / "auth_token"
    files = [path for path in head.folder.rglob("*") if path.is_file() and path != secret]
    assert any(path.name.startswith("job-driver-") for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_the_token_nothing_is_done_and_the_remedy_is_said(
    head: Head, tree: Path, tmp_path: Path
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/version", timeout=30)  # noqa: S310
    assert refused.value.code == 401
    stranger = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_MODE"}
    for token, words in (("", "there is none here"), ("wrong", "refuses the token")):
        environment = {**stranger, "HOME": str(tmp_path), "RAY_AUTH_TOKEN": token}
        found = Head(head.address, environment, head.folder, token).nncift(
            "jobs", "list", "--address", head.address
        )
        assert found.returncode == 7, found.stdout + found.stderr
        assert words in found.stderr
        assert "ray get-auth-token" in " ".join(found.stderr.split())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_fails_returns_its_exit_code(head: Head, tree: Path) -> None:
    done = head.nncift(
        *submit_options(head, tree), "-s", "teacher.kind=slow_teachers:AbsentTeacher"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "AbsentTeacher" in done.stdout
    assert "FAILED" in done.stdout
