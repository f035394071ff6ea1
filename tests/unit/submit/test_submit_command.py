"""``nncift submit`` and ``nncift jobs`` around a job server that a fake client plays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import ray.exceptions
import yaml
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from nncift_ray import submit as server
from nncift_ray.cli import app

TOKEN = "planted-0123456789abcdef"
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


class FakeClient:
    """A job server with one job, which writes its log in pieces and then ends."""

    status: ClassVar[JobStatus] = JobStatus.SUCCEEDED
    exit_code: ClassVar[int | None] = 0
    message: ClassVar[str] = ""
    pieces: ClassVar[tuple[str, ...]] = ("one\n", "two\n", "three\n")
    #: After so many pieces the connection breaks, once.
    breaks_after: ClassVar[int | None] = None
    interrupted: ClassVar[bool] = False
    #: So many times the cluster has nothing yet that could run a job.
    not_ready: ClassVar[int] = 0
    sent: ClassVar[dict[str, Any]] = {}

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        self.sent.update(address=address, headers=headers or {})

    def submit_job(self, **job: Any) -> str:
        if self.not_ready:
            FakeClient.not_ready -= 1
            raise RuntimeError("Request failed with status code 500: No available agent to ...")
        with zipfile.ZipFile(job["runtime_env"]["working_dir"]) as opened:
            files = {name: opened.read(name) for name in opened.namelist()}
        FakeClient.sent.update(job=job, files=files)
        return job["submission_id"]

    def get_job_info(self, job_id: str) -> Any:
        if job_id == "unknown":
            raise RuntimeError("Request failed with status code 404: Job unknown does not exist.")
        return SimpleNamespace(
            submission_id=job_id,
            status=self.status,
            entrypoint="python",
            message=self.message,
            start_time=1_700_000_000_000,
            end_time=1_700_000_090_000,
            driver_exit_code=self.exit_code,
            metadata={"nncift_run_dir": "s3://b/r"},
        )

    def list_jobs(self) -> list[Any]:
        return [self.get_job_info("a"), self.get_job_info("b"), self.get_job_info("")]

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.pieces)

    def stop_job(self, job_id: str) -> bool:
        return self.status == JobStatus.STOPPED

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for number, piece in enumerate(self.pieces):
            if number == self.breaks_after:
                FakeClient.breaks_after = None
                raise RuntimeError("WebSocket connection closed unexpectedly")
            if self.interrupted:
                raise KeyboardInterrupt
            yield piece


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr(server, "JobSubmissionClient", FakeClient)
    monkeypatch.setattr(server, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(FakeClient, "sent", {})
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    return FakeClient


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {
        "run_dir": "s3://bucket/runs/mine",
        "data": {"candidates": ["s3://bucket/a.jsonl"]},
        "teacher": {"kind": "delift_se"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300", "TERM": "dumb"})
    assert TOKEN not in result.output
    return result.exit_code, result.output


def test_a_job_is_sent_followed_and_its_end_returned(recipe: Path, fake: type[FakeClient]) -> None:
    code, output = invoke("submit", str(recipe), "-s", "selection.budget=7")
    assert code == 0
    assert "one\ntwo\nthree\n" in output
    assert "SUCCEEDED" in output
    job = fake.sent["job"]
    assert job["entrypoint"] == "python -m nncift_ray.cli run nncift_job/recipe.yaml"
    assert job["submission_id"].startswith("nncift-mine-")
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    sent = yaml.safe_load(fake.sent["files"]["nncift_job/recipe.yaml"])
    assert sent["selection"]["budget"] == 7
    assert fake.sent["address"] == "http://127.0.0.1:8265"


def test_the_token_is_in_the_header_and_in_nothing_that_is_sent(
    recipe: Path, fake: type[FakeClient]
) -> None:
    invoke("submit", str(recipe), "--no-wait")
    assert fake.sent["headers"] == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(fake.sent["job"])
    assert not [name for name, data in fake.sent["files"].items() if TOKEN.encode() in data]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-s", "selection.budgett=7"), 2, "did you mean 'budget'"),
        (("-s", "run_dir=runs/mine"), 2, "would lie in the job's own folder"),
        (("-s", "data.candidates=[a.jsonl]"), 2, "path on this machine"),
        (("--command", "doctor"), 2, "a job can run"),
        (("--wheel", "absent.whl"), 7, "absent.whl"),
        (("--working-dir", "/no/such/folder"), 7, "no such folder"),
        (("--address", "ray://127.0.0.1:10001"), 7, "no address of a job server"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    recipe: Path, fake: type[FakeClient], arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, output = invoke("submit", str(recipe), *arguments)
    assert (found, words in output) == (code, True), output
    assert "job" not in fake.sent


def test_a_cluster_that_has_just_come_up_is_waited_for(
    recipe: Path, fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "not_ready", 2)
    assert invoke("submit", str(recipe))[0] == 0
    assert fake.not_ready == 0
    monkeypatch.setattr(FakeClient, "not_ready", 2)
    monkeypatch.setattr(server, "READY_SECONDS", 0.0)
    code, output = invoke("submit", str(recipe))
    assert (code, "No available agent" in output) == (7, True), output
    assert "--dashboard-agent-listen-port" in output


def test_a_dry_run_lists_what_would_go_and_asks_no_server(
    recipe: Path, fake: type[FakeClient], tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.py").write_text("")
    options = ("--dry-run", "--working-dir", str(tmp_path / "tree"))
    code, output = invoke("submit", str(recipe), *options)
    assert code == 0
    assert {"mine.py", "nncift_job/recipe.yaml", "Nothing was sent."} <= set(output.splitlines())
    assert fake.sent == {}


def test_a_file_with_a_secret_of_the_environment_is_not_sent(
    recipe: Path, fake: type[FakeClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKlMnOp")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "notes.txt").write_text("use hf_AbCdEfGhIjKlMnOp")
    code, output = invoke("submit", str(recipe), "--working-dir", str(tmp_path / "tree"))
    assert code != 0
    assert "notes.txt: holds" in output
    assert "hf_AbCdEfGhIjKlMnOp" not in output
    assert "job" not in fake.sent


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.FAILED, 5, 5),
        (JobStatus.FAILED, None, 1),  # its environment could not be made
        (JobStatus.STOPPED, None, 143),
        (JobStatus.SUCCEEDED, 0, 0),
    ],
)
def test_the_exit_code_is_the_job_s(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: JobStatus,
    driver: int | None,
    code: int,
) -> None:
    monkeypatch.setattr(FakeClient, "status", status)
    monkeypatch.setattr(FakeClient, "exit_code", driver)
    monkeypatch.setattr(FakeClient, "message", "the reason")
    assert invoke("submit", str(recipe))[0] == code
    found, output = invoke("submit", str(recipe), "--no-follow")
    assert found == code
    assert ("the reason" in output) == (code != 0)


def test_a_log_goes_on_where_a_connection_broke(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "breaks_after", 2)
    code, output = invoke("submit", str(recipe))
    assert code == 0
    assert "one\ntwo\nthree\n" in output
    assert output.count("one") == 1


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "interrupted", True)
    code, output = invoke("submit", str(recipe), "--address", "https://ray.example.org")
    assert code == 130
    assert "goes on; stop it with: nncift jobs stop nncift-mine-" in output
    assert "--address https://ray.example.org" in output
    assert "unencrypted" not in output


def test_a_token_on_an_open_road_is_warned_of(recipe: Path) -> None:
    _, output = invoke("submit", str(recipe), "--no-wait", "--address", "http://10.0.0.7:8265")
    assert "unencrypted" in output
    assert "nncift jobs stop nncift-mine-" in output


def test_jobs_are_listed_shown_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = invoke("jobs", "list", "--json")
    assert code == 0
    assert [job["job_id"] for job in json.loads(output)] == ["a", "b"]
    assert "1.5" in invoke("jobs", "list")[1]
    assert invoke("jobs", "logs", "a") == (0, "one\ntwo\nthree\n")
    assert "has ended already: SUCCEEDED" in invoke("jobs", "stop", "a")[1]
    monkeypatch.setattr(FakeClient, "status", JobStatus.STOPPED)
    assert "finished shards are kept" in invoke("jobs", "stop", "a")[1]


def test_an_unknown_job_is_said_to_be_unknown() -> None:
    code, output = invoke("jobs", "logs", "unknown", "--follow")
    assert (code, "knows no job unknown" in output) == (7, True), output


@pytest.mark.parametrize(
    ("token", "words"), [("", "there is none here"), (TOKEN, "refuses the token")]
)
def test_a_refused_token_is_said_with_the_remedy(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, words: str
) -> None:
    def refuse(self: FakeClient, address: str, headers: object = None) -> None:
        raise ray.exceptions.AuthenticationError("Authentication required")

    monkeypatch.setattr(FakeClient, "__init__", refuse)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    code, output = invoke("submit", str(recipe))
    assert (code, words in output, "ray get-auth-token" in output) == (7, True, True), output


def test_where_nobody_listens_the_ways_to_a_server_are_named(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobSubmissionClient

    monkeypatch.setattr(server, "JobSubmissionClient", JobSubmissionClient)
    code, output = invoke("submit", str(recipe), "--address", CLOSED)
    assert (code, "no Ray job server answers" in output) == (7, True), output
    assert "kubectl port-forward" in output
