"""A recipe as a job of a real Ray head: stopped half-way, sent again, equal to the local run.

The user's own teacher, which goes along with the job, decides how far the labels come: it measures
the first shard, and each further one once a file permits it. So the job is stopped where the test
wants it stopped, however slow the machine is.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import MANIFEST_NAME, SHARD_FOLDER
from nncift_ray.runtime.progress import SilentReporter
from tests.e2e.job_server import MARKET, Head, ray_head

TOKEN = "planted-5b1e7d0c9f3a4b6e8d2c"
NUM_ROWS, SHARD_PAIRS = 24, 96
OTHER_BUDGET = "selection.budget=0.5"
WAIT_SECONDS = 400
RUN, LOCAL, PERMITS = "run", "local", "permits"
TEACHER = '''"""Measures the difference in length of two answers, as far as it is permitted."""

import time
from pathlib import Path

from nncift_ray.teachers import Measurement

PERMITS = Path({permits!r})


class PermittedTeacher:
    kind = "pairwise"
    needs_baseline = needs_embeddings = needs_engine = False
    version = 1
    num_measured = 0

    @classmethod
    def from_context(cls, context):
        return cls()

    def measure(self, requests):
        """The first shard is free, each further one needs a permit while there is their folder."""
        while PERMITS.exists() and self.num_measured > len(list(PERMITS.iterdir())):
            time.sleep(0.05)
        self.num_measured += 1
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
    """What goes along: a user's own teacher, a small corpus, and a recipe without a network."""
    root = head.folder / "tree"
    (root / "corpus").mkdir(parents=True)
    teacher = TEACHER.format(permits=str(head.folder / PERMITS))
    (root / "permitted_teachers.py").write_text(teacher)
    rows = [
        json.dumps({"prompt": f"Add {i} and {i % 9}.", "completion": "Yes. " * (1 + i % 7)})
        for i in range(NUM_ROWS)
    ]
    (root / "corpus" / "a.jsonl").write_text("\n".join(rows) + "\n")
    one_actor = {"num_actors": 1, "num_cpus": 1}
    recipe: dict[str, Any] = {
        "run_dir": str(head.folder / RUN),
        "data": {"candidates": ["corpus/*.jsonl"]},
        "teacher": {"kind": "permitted_teachers:PermittedTeacher"},
        "embedder": {
            "model": "embedded:all-minilm-l6-v2",
            "pool": {**one_actor, "labels": {MARKET: "!spot"}},
        },
        "labels": {
            "group_pairs": SHARD_PAIRS,
            "pool": {**one_actor, "shard_rows": SHARD_PAIRS},
        },
        "pair_scores": {"by": "teacher", "top_k": 5},
        "selection": {"objective": "facility_location", "budget": 0.25},
        "cluster": {"labels": {MARKET: "in(on-demand, reserved)"}},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def submit_options(head: Head, tree: Path) -> list[str]:
    return ["submit", "tree/recipe.yaml", "--address", head.address, "--working-dir", str(tree)]


def finished_labels(head: Head) -> dict[str, int]:
    """Return when each finished shard of the labels was recorded."""
    records = (head.folder / RUN).glob(f"label/*/{SHARD_FOLDER}/*.json")
    return {record.name: record.stat().st_mtime_ns for record in records}


def heard_of_labels(head: Head) -> bool:
    """Whether a driver has heard of a finished shard of the labels."""
    events = [json.loads(line) for line in run_log(head)]
    return any(e["event"] == "shard_finished" and e["stage"] == "label" for e in events)


def run_log(head: Head) -> list[str]:
    """Return the whole lines of the run's logs."""
    logs = [log.read_text() for log in (head.folder / RUN / "logs").glob("*.jsonl")]
    return [line for log in logs for line in log.splitlines(keepends=True) if line.endswith("\n")]


def job_log(head: Head, job_id: str) -> str:
    """Return what a job has written, without asking the server."""
    logs = head.sessions.glob(f"session_2*/logs/job-driver-{job_id}.log")
    return "".join(log.read_text() for log in logs)


def wait_for(happened: Callable[[], object], head: Head, job_id: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, job_log(head, job_id)
        time.sleep(0.1)


def stop_in_the_middle(head: Head, tree: Path) -> str:
    """Send the recipe and stop it while it measures the second shard; return the job's id."""
    permits = head.folder / PERMITS
    permits.mkdir()
    sent = head.nncift(*submit_options(head, tree), "--no-wait", "--stop-wait", str(WAIT_SECONDS))
    assert sent.returncode == 0, sent.stdout + sent.stderr
    job_id = sent.stdout.split()[1].rstrip(":")
    wait_for(lambda: heard_of_labels(head), head, job_id)
    stop = head.start("jobs", "stop", job_id, "--address", head.address)
    wait_for(lambda: "asked to stop" in job_log(head, job_id), head, job_id)
    assert len(finished_labels(head)) == 1, "the second shard was not waited for"
    (permits / "second").touch()
    output, _ = stop.communicate(timeout=WAIT_SECONDS)
    assert stop.returncode == 0, output
    assert f"{job_id} STOPPED; finished shards are kept" in output
    return job_id


@pytest.mark.timeout(1500)
def test_a_job_stopped_half_way_and_sent_again_ends_as_a_local_run(
    head: Head, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_id = stop_in_the_middle(head, tree)
    log = head.nncift("jobs", "logs", stopped_id, "--address", head.address).stdout
    assert "ends with the next finished shard" in log
    assert "stopped; finished shards are kept" in log
    kept = finished_labels(head)
    assert len(kept) == 2, "the shard under way was lost, or another was begun"
    assert not list((head.folder / RUN).glob(f"label/*/{MANIFEST_NAME}"))

    (head.folder / PERMITS).rename(head.folder / "all-permitted")
    # Another setting makes another package, and that another folder of the job.
    done = head.nncift(*submit_options(head, tree), "-s", OTHER_BUDGET, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout
    for words in ("[embed] already done", "finished by an earlier run"):
        assert words in done.stdout
    finished = finished_labels(head)
    assert len(kept) < len(finished)
    assert kept.items() <= finished.items(), "finished shards were done again"

    monkeypatch.syspath_prepend(tree)
    monkeypatch.chdir(tree)
    here = [f"run_dir={head.folder / LOCAL}", "cluster.labels={}", "embedder.pool.labels={}"]
    config = load_config(Path("recipe.yaml"), [*here, OTHER_BUDGET])
    run(config, reporter=SilentReporter(), execute=execute_here)
    for name in ("subset.jsonl", "alpaca.json"):
        first, second = (head.folder / folder / "export" / name for folder in (RUN, LOCAL))
        assert first.read_bytes() == second.read_bytes()
    check_jobs(head, stopped_id)
    check_no_token(head)


def check_jobs(head: Head, stopped_id: str) -> None:
    """Look at the list of jobs, as it is shown and as the server gives it."""
    listed = head.nncift("jobs", "list", "--json", "--address", head.address).stdout
    status = {job["job_id"]: job["status"] for job in json.loads(listed)}
    assert status[stopped_id] == "STOPPED"
    assert "SUCCEEDED" in status.values()
    request = urllib.request.Request(f"{head.address}/api/jobs/")  # noqa: S310
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        raw = answer.read().decode()
    assert stopped_id in raw
    assert TOKEN not in listed + raw


def check_no_token(head: Head) -> None:
    """Look for the token in all logs and in all that the jobs left."""
    secret = head.folder / ".ray" / "auth_token"
    found = (path for place in (head.folder, head.sessions) for path in place.rglob("*"))
    files = [path for path in found if path.is_file() and path != secret]
    assert any(path.name.startswith("job-driver-") for path in files)
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # Ray is at work and deletes its own
            assert TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.timeout(900)
def test_without_the_token_nothing_is_done_and_the_remedy_is_said(
    head: Head, tmp_path: Path
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.address}/api/version", timeout=60)  # noqa: S310
    assert refused.value.code == 401
    stranger = {k: v for k, v in head.environment.items() if k != "RAY_AUTH_MODE"}
    for token, words in (("", "there is none here"), ("wrong", "refuses the token")):
        environment = {**stranger, "HOME": str(tmp_path), "RAY_AUTH_TOKEN": token}
        other = replace(head, environment=environment, token=token)
        found = other.nncift("jobs", "list", "--address", head.address)
        assert found.returncode == 7, found.stdout + found.stderr
        assert words in found.stderr
        assert "ray get-auth-token" in " ".join(found.stderr.split())


@pytest.mark.timeout(900)
def test_a_job_that_fails_returns_its_exit_code(head: Head, tree: Path) -> None:
    absent = "teacher.kind=permitted_teachers:AbsentTeacher"
    done = head.nncift(*submit_options(head, tree), "-s", absent)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "AbsentTeacher" in done.stdout
    assert "FAILED" in done.stdout
