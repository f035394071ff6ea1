"""Ray's job server: send a job, follow it, stop it, with errors a user can mend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from nncift_ray.errors import JobError
from nncift_ray.submission.packing import Package
from nncift_ray.submission.request import JobRequest
from nncift_ray.submission.tokens import REMEDY, find_token

POLL_SECONDS = 1.0
MAX_RECONNECTS = 20
#: What a job server says whose cluster is not ready, and how long that is waited for.
NOT_READY, READY_SECONDS = "No available agent", 180.0
NOT_READY_REMEDY = (
    "The head node's agent, which starts jobs, has not come up; dashboard_agent.log among Ray's "
    "logs there says why. Most often another Ray of that machine has its port: start the head with "
    "a --dashboard-agent-listen-port of its own."
)
#: Exit code for a job that was stopped: what a shell says of a process ended by SIGTERM.
STOPPED_CODE = 143
#: Seconds that a stopped driver has to end at a shard's edge before it is killed; Ray's own are 3.
STOP_WAIT_SECONDS = 60
STOP_WAIT_KEY = "nncift_stop_wait_seconds"
STOP_WAIT_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
#: Ray lets these win over an address that is given, which nobody who gives one expects.
ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Job:
    """A job of the server."""

    job_id: str
    status: str
    entrypoint: str = ""
    message: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    exit_code: int | None = None  # of the driver, once it has ended by itself
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return JobStatus(self.status).is_terminal()

    @property
    def stop_wait_seconds(self) -> int:
        """How long it may take to end once it is asked to."""
        return int(self.metadata.get(STOP_WAIT_KEY, STOP_WAIT_SECONDS))

    @property
    def return_code(self) -> int:
        """The exit code to pass on: 0 only for a job that succeeded."""
        if self.status == JobStatus.SUCCEEDED:
            return 0
        if self.status == JobStatus.STOPPED:
            return STOPPED_CODE
        return self.exit_code or 1


class JobServer:
    """A client of one cluster's job server."""

    def __init__(self, address: str) -> None:
        """Connect; the token is the one that Ray would find on this machine.

        Raises:
            JobError: If nobody answers at the address, or the token is missing or wrong.
        """
        self.address = check_address(address)
        self.token = find_token(os.environ, Path.home())
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
        # It tells of every upload; the command line does so itself.
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        with self._explained(), _without_addresses():
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, request: JobRequest, package: Package, stop_wait_seconds: int) -> str:
        """Send a job and return its id.

        A cluster that has just come up has a job server before anything can run a job; that is
        waited for.
        """
        job = {
            "entrypoint": request.entrypoint,
            "submission_id": request.new_id(),
            "metadata": {**request.metadata, STOP_WAIT_KEY: str(stop_wait_seconds)},
            "runtime_env": {
                "working_dir": str(package.path),
                "env_vars": {STOP_WAIT_VARIABLE: str(stop_wait_seconds)},
            },
        }
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                with self._explained():
                    return self._client.submit_job(**job)
            except JobError as error:
                if NOT_READY not in str(error):
                    raise
                if time.monotonic() >= deadline:
                    raise JobError(f"{error} {NOT_READY_REMEDY}") from None
                time.sleep(POLL_SECONDS)

    def jobs(self) -> list[Job]:
        """Return all jobs that were submitted, the newest first."""
        with self._explained():
            found = [_job(item) for item in self._client.list_jobs() if item.submission_id]
        never = datetime.min.replace(tzinfo=UTC)
        return sorted(found, key=lambda job: job.started or never, reverse=True)

    def job(self, job_id: str) -> Job:
        """Return a job."""
        with self._explained(job_id):
            return _job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """Return what a job has written so far."""
        with self._explained(job_id):
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Pass on what a job writes until it ends, and return it as it ended."""
        written = 0
        for attempt in range(MAX_RECONNECTS + 1):
            tail = _Tail(write, written)
            try:
                with self._explained(job_id):
                    asyncio.run(tail.run(self._client, job_id))
                break
            except (_Interrupted, JobError):
                # A tunnel that broke, most often; the job knows nothing of it.
                if attempt == MAX_RECONNECTS or not tail.num_chars:
                    raise
                written = max(written, tail.num_chars)
                time.sleep(POLL_SECONDS)
        return self.wait(job_id)

    def wait(self, job_id: str, timeout: float = float("inf")) -> Job:
        """Wait until a job is over, or the time is, and return it as it is then."""
        deadline = time.monotonic() + timeout
        while True:
            job = self.job(job_id)
            if job.is_over or time.monotonic() >= deadline:
                return job
            time.sleep(POLL_SECONDS)

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; False if it has ended already."""
        with self._explained(job_id):
            return self._client.stop_job(job_id)

    @contextlib.contextmanager
    def _explained(self, job_id: str = "") -> Generator[None]:
        """Turn what the client raises into what to do about it."""
        try:
            yield
        except ray.exceptions.AuthenticationError:
            # Its own text speaks of Ray's settings on this machine, which are not used.
            what = "refuses the token" if self.token else "asks for a token, and there is none here"
            raise JobError(f"{self.address} {what}. {REMEDY}.") from None
        except (ConnectionError, requests.ConnectionError, aiohttp.ClientError) as error:
            raise JobError(
                f"{self.address}: no Ray job server answers. Is the cluster up? The server listens "
                "on the head node's loopback (port 8265): reach it through a tunnel: `ray "
                "dashboard FILE` for a launcher's cluster, `kubectl port-forward` on Kubernetes, "
                "ssh -L elsewhere (docs/cluster.md)."
            ) from error
        except requests.RequestException as error:
            raise JobError(f"{self.address}: {error}") from error
        except RuntimeError as error:
            if job_id and "404" in str(error):
                raise JobError(
                    f"{self.address} knows no job {job_id}; `nncift jobs list` shows which it knows"
                ) from None
            raise JobError(f"{self.address}: {error}") from error


class _Interrupted(Exception):
    """The connection broke while a log was read."""


class _Tail:
    """Reads a log from its beginning and passes on what is new."""

    def __init__(self, write: Callable[[str], None], num_written: int) -> None:
        self._write, self._to_skip = write, num_written
        self.num_chars = 0

    async def run(self, client: JobSubmissionClient, job_id: str) -> None:
        try:
            async for text in client.tail_job_logs(job_id):
                self.num_chars += len(text)
                new = text[min(self._to_skip, len(text)) :]
                self._to_skip = max(0, self._to_skip - len(text))
                if new:
                    self._write(new)
        except RuntimeError as error:
            if "404" in str(error):
                raise
            raise _Interrupted(str(error)) from error


def check_address(address: str) -> str:
    """Return a job server's address with its scheme.

    Raises:
        JobError: If it is the address of another of Ray's servers.
    """
    if "://" not in address and address != "auto":
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise JobError(
            f"{address} is no address of a job server: give that of the dashboard, "
            "e.g. http://127.0.0.1:8265"
        )
    return address.rstrip("/")


def _job(details: JobDetails) -> Job:
    return Job(
        job_id=details.submission_id or "",
        status=str(details.status),
        entrypoint=details.entrypoint,
        message=details.message or "",
        started=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=details.driver_exit_code,
        metadata=dict(details.metadata or {}),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


@contextlib.contextmanager
def _without_addresses() -> Iterator[Any]:
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
