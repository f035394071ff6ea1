"""Jobs of a Ray cluster: what is sent, and the server that runs it, with errors a user can mend."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import ipaddress
import logging
import os
import re
import shlex
import subprocess
import time
import uuid
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray.exceptions
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import nncift_ray
from nncift_ray.corpus import hub
from nncift_ray.errors import ConfigError, JobError, secret_values
from nncift_ray.recipe.loading import apply_override, dump_config, load_config
from nncift_ray.recipe.sections import Config

PACKAGE = "nncift_ray"
RECIPE_NAME = "nncift_job/recipe.yaml"
MIB = 1024**2
MAX_UPLOAD_BYTES = 100 * MIB  # what Ray's job server takes
NUM_LARGEST_SHOWN = 5
#: Folders that are never sent: environments, caches, histories, results, and where secrets live.
NEVER_FOLDERS = frozenset(
    {
        *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "runs"),
        *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".ipynb_checkpoints"),
        *(".aws", ".azure", ".config", ".docker", ".gnupg", ".kube", ".ray", ".ssh"),
    }
)
#: Files that are never sent, by name: keys, tokens, what holds credentials.
NEVER_FILES = (
    *(".env", ".env.*", ".netrc", ".pypirc", ".git-credentials", "auth_token", "credentials"),
    *("*.key", "*.pem", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "*.pyc"),
)
#: A time that a zip can hold, so that equal files make equal archives and are uploaded once.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """An archive ready to be sent."""

    path: Path
    names: tuple[str, ...]
    num_bytes: int


def pack(
    archive: Path,
    *,
    recipe: str | None,
    tree: Path | None = None,
    wheel: Path | None = None,
    with_package: bool = True,
    excludes: Sequence[str] = (),
    secrets: Iterable[str] = (),
    max_bytes: int = MAX_UPLOAD_BYTES,
) -> Package:
    """Write a job's archive.

    Args:
        archive: Where to write it; ends in ``.zip``.
        recipe: The recipe's text, which becomes ``nncift_job/recipe.yaml``.
        tree: A folder whose files go along, as git lists them where it is a checkout.
        wheel: Of this package, to send in place of the one that runs here.
        with_package: Whether to send the package; not where the cluster's image holds it.
        excludes: Globs of names or paths in the tree that stay behind.
        secrets: Texts that no file may hold.
        max_bytes: Largest archive.

    Raises:
        JobError: If it would be too large, holds a secret, or a source is not what it should be.
    """
    contents: dict[str, bytes] = {}
    if tree is not None:
        contents = {name: (tree / name).read_bytes() for name in list_tree(tree, excludes)}
    if with_package and wheel is not None:
        contents = {
            name: data for name, data in contents.items() if not name.startswith(f"{PACKAGE}/")
        } | _read_wheel(wheel)
    elif with_package and f"{PACKAGE}/__init__.py" not in contents:
        root = Path(nncift_ray.__file__).parent.parent
        contents |= {name: (root / name).read_bytes() for name in _walk(root, root / PACKAGE)}
    if recipe is not None:
        contents[RECIPE_NAME] = recipe.encode()
    needles = [secret.encode() for secret in secrets if secret]
    for name, data in contents.items():
        if any(needle in data for needle in needles):
            raise JobError(
                f"{name}: holds the cluster's token or a secret of the environment, and whoever "
                "may see the job would see it. Take it out of the file, or leave the file behind "
                "with --exclude."
            )
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            opened.writestr(entry, contents[name])
    num_bytes = archive.stat().st_size
    if num_bytes > max_bytes:
        archive.unlink()
        largest = sorted(contents, key=lambda name: -len(contents[name]))[:NUM_LARGEST_SHOWN]
        shown = (f"{name} ({len(contents[name]) / MIB:,.1f} MiB)" for name in largest)
        raise JobError(
            f"the job's files come to {num_bytes / MIB:,.1f} MiB packed, and a job may send "
            f"{max_bytes / MIB:,.1f} MiB. The largest: {', '.join(shown)}. Leave files behind with "
            "--exclude or .gitignore; corpora belong on a disk that all nodes share, or s3:// or "
            "gs://."
        )
    return Package(archive, tuple(sorted(contents)), num_bytes)


def list_tree(tree: Path, excludes: Sequence[str] = ()) -> list[str]:
    """Return the files of a folder that go along, as paths in it.

    In a git checkout these are the files that git tracks or would take; elsewhere all files. What
    is in ``NEVER_FOLDERS`` and ``NEVER_FILES`` stays behind, and so do links that lead out.

    Raises:
        JobError: If it is no folder.
    """
    if not tree.is_dir():
        raise JobError(f"{tree}: no such folder; --working-dir is a folder whose files are sent")
    names = _list_with_git(tree)
    if names is None:
        names = _walk(tree, tree)
    inside = tree.resolve()
    return [
        name
        for name in names
        if not _stays_behind(name, excludes)
        and (tree / name).is_file()
        and (tree / name).resolve().is_relative_to(inside)
    ]


def _list_with_git(tree: Path) -> list[str] | None:
    """Return what git tracks or would take; None where there is no git, or no checkout."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(  # noqa: S603  (git, on a folder the user named)
            [*command, "--exclude-standard"], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return sorted({name for name in os.fsdecode(done.stdout).split("\0") if name})


def _walk(root: Path, below: Path) -> list[str]:
    names: list[str] = []
    for folder, folders, files in os.walk(below):
        folders[:] = sorted(name for name in folders if name not in NEVER_FOLDERS)
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in sorted(files)]
    return [name for name in names if not _stays_behind(name, ())]


def _stays_behind(name: str, excludes: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    if NEVER_FOLDERS & set(path.parts[:-1]):
        return True
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in NEVER_FILES):
        return True
    whole = [path, *path.parents][:-1]
    return any(
        fnmatch.fnmatch(part.name, pattern) or fnmatch.fnmatch(str(part), pattern.rstrip("/"))
        for part in whole
        for pattern in excludes
    )


def _read_wheel(wheel: Path) -> dict[str, bytes]:
    """Read the package out of a wheel; its dependencies are the cluster image's affair."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            names = [name for name in opened.namelist() if name.startswith(f"{PACKAGE}/")]
            found = {name: opened.read(name) for name in names if ".." not in name.split("/")}
    except (OSError, zipfile.BadZipFile) as error:
        raise JobError(f"{wheel}: not a wheel ({error}); make one with `pip wheel .`") from error
    if f"{PACKAGE}/__init__.py" not in found:
        raise JobError(f"{wheel}: holds no {PACKAGE}; --wheel is a wheel of this package")
    return found


# The command of a job, from a recipe or from a run to extend; checked before anything is sent.

#: Commands that read a recipe, and the one that goes on from a run.
RECIPE_COMMANDS, EXTEND = ("run", "evaluate"), "extend"


@dataclass(frozen=True)
class JobRequest:
    """A job to be: what it runs and reads."""

    command: str
    arguments: tuple[str, ...]
    run_dir: str
    recipe: str | None = None

    @property
    def entrypoint(self) -> str:
        """What the job runs, by the Python of its node."""
        return shlex.join(["python", "-m", "nncift_ray.cli", self.command, *self.arguments])

    def new_id(self) -> str:
        """Return a submission id that names the run and is used by no other job."""
        last = self.run_dir.partition("?")[0].rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-")
        return f"nncift-{name or 'run'}-{uuid.uuid4().hex[:8]}"


def prepare_job(
    recipe: str,
    command: str,
    *,
    overrides: Sequence[str] = (),
    extra: Sequence[str] = (),
    tree: Path | None = None,
    excludes: Sequence[str] = (),
    **packed: Any,
) -> tuple[JobRequest, Package]:
    """Return the job of a command and what it takes along, both checked.

    ``recipe`` is the finished run where the command is ``extend``; ``extra`` are further arguments
    of the command; ``packed`` and the rest are as for ``pack``.

    Raises:
        ConfigError: If it is another command, or what it reads means nothing on the cluster.
        JobError: As ``pack``.
    """
    if command == EXTEND:
        request = extend_request(recipe, overrides, extra)
    elif command in RECIPE_COMMANDS:
        config = load_config(recipe, overrides)
        sent = [] if tree is None else list_tree(tree, excludes)
        request = recipe_request(config, command, sent_files=sent, extra=extra)
    else:
        raise ConfigError(f"--command {command}: a job can {', '.join((*RECIPE_COMMANDS, EXTEND))}")
    token = find_token(os.environ, Path.home())
    secrets = [*([token] if token else []), *secret_values()]
    package = pack(recipe=request.recipe, tree=tree, excludes=excludes, secrets=secrets, **packed)
    return request, package


def recipe_request(
    config: Config,
    command: str = "run",
    *,
    sent_files: Collection[str] = (),
    extra: Sequence[str] = (),
) -> JobRequest:
    """Return the job of a checked recipe.

    Args:
        config: The recipe, overrides applied.
        command: One of ``RECIPE_COMMANDS``.
        sent_files: The files that go along, by which relative paths are judged.
        extra: Further arguments of the command.

    Raises:
        ConfigError: If a path in it means nothing on the cluster.
    """
    _check_run_dir("run_dir", config.run_dir)
    sources = {
        "data.candidates": config.data.candidates,
        "data.targets": config.data.targets,
        "data.existing": config.data.existing,
        "data.benchmarks": config.data.benchmarks,
        **{f"evaluation.tests.{name}": paths for name, paths in config.evaluation.tests.items()},
    }
    for key, paths in sources.items():
        for path in paths:
            plain = path.removeprefix("./").rstrip("/")
            is_sent = any(
                fnmatch.fnmatch(name, plain) or name.startswith(f"{plain}/") for name in sent_files
            )
            if not _is_absolute(path) and not is_sent:
                raise ConfigError(
                    f"{key}: {path} is a path on this machine, and no file that is sent. Give a "
                    "path that all nodes share, or s3:// or gs://; small files go along with "
                    "--working-dir."
                )
    # The recipe may name the address as it is seen from here; the job is on the cluster already.
    cluster = config.cluster.model_copy(update={"address": "auto"})
    there = dump_config(config.model_copy(update={"cluster": cluster}))
    return JobRequest(command, (RECIPE_NAME, *extra), config.run_dir, there)


def extend_request(run_dir: str, overrides: Sequence[str], extra: Sequence[str]) -> JobRequest:
    """Return the job that goes on from a finished run.

    Args:
        run_dir: The finished run.
        overrides: ``key=value`` for the new run; only their form can be checked from here.
        extra: The arguments of ``nncift extend``; ``--data`` is among them.

    Raises:
        ConfigError: If the run is no place that the cluster can see, or no new data are named.
    """
    _check_run_dir("the run", run_dir)
    if "--data" not in extra:
        raise ConfigError(
            "extend needs new data: put them behind two dashes, e.g. "
            "nncift submit s3://bucket/runs/mine --command extend -- --data s3://bucket/new.jsonl"
        )
    for override in overrides:
        apply_override({}, override)
    settings = [part for override in overrides for part in ("-s", override)]
    return JobRequest(EXTEND, (run_dir, *extra, *settings), run_dir)


def _check_run_dir(what: str, run_dir: str) -> None:
    if "@" in urlsplit(run_dir).netloc:
        raise ConfigError(
            f"{what}: the address holds credentials, and everybody who may see the job would see "
            "them; set them in the environment of the cluster's nodes"
        )
    if not _is_absolute(run_dir):
        raise ConfigError(
            f"{what}: {run_dir} would lie in the job's own folder on the cluster and be lost with "
            "it. Give a path that all nodes share, or s3:// or gs://: "
            "-s run_dir=s3://bucket/runs/mine"
        )


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith(("/", hub.PREFIX))


# Ray's token: where it is found, in Ray's own order, and who would see it.

REMEDY = (
    "Take the token of the cluster (on its head node: `ray get-auth-token`; on Kubernetes: the "
    "Secret with the RayCluster's name) and put it into ~/.ray/auth_token, readable by you alone, "
    "or name its file in RAY_AUTH_TOKEN_PATH"
)


def find_token(environment: Mapping[str, str], home: Path) -> str | None:
    """Return the token that Ray would use, or None where there is none or it is switched off.

    Looked for in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, in ~/.ray/auth_token.

    Raises:
        JobError: If RAY_AUTH_TOKEN_PATH names no readable file, or RAY_AUTH_MODE asks for a token
            and there is none.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else home / ".ray" / "auth_token"
    token, problem = "", "is empty"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({error})"
    if named and not token:
        raise JobError(f"RAY_AUTH_TOKEN_PATH: {path} {problem}. {REMEDY}.")
    if mode == "token" and not token:
        raise JobError(f"RAY_AUTH_MODE asks for a token, and there is none. {REMEDY}.")
    return token or None


def goes_unencrypted(address: str) -> bool:
    """Whether a token sent to an address could be read on the way."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


# Ray's job server: send a job, follow it, stop it, with errors a user can mend.

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

    def as_json(self) -> dict[str, object]:
        """Return it as plain values, what nncift knows of it included."""
        return {
            "job_id": self.job_id,
            "status": self.status,
            "started": self.started.isoformat() if self.started else None,
            "ended": self.ended.isoformat() if self.ended else None,
            "exit_code": self.exit_code,
            "entrypoint": self.entrypoint,
            **self.metadata,
        }


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

    def submit(self, request: JobRequest, package: Package, stop_wait: int | None = None) -> str:
        """Send a job and return its id.

        A cluster that has just come up has a job server before anything can run a job; that is
        waited for.
        """
        stop_wait_seconds = str(stop_wait or STOP_WAIT_SECONDS)
        job = {
            "entrypoint": request.entrypoint,
            "submission_id": request.new_id(),
            "metadata": {
                "nncift_command": request.command,
                "nncift_run_dir": request.run_dir,
                "nncift_version": nncift_ray.__version__,
                STOP_WAIT_KEY: stop_wait_seconds,
            },
            "runtime_env": {
                "working_dir": str(package.path),
                "env_vars": {STOP_WAIT_VARIABLE: stop_wait_seconds},
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
        """Hand what a job writes to ``write`` until it ends, and return it as it ended."""
        written = read = 0  # characters of the log: handed on, and read since the last connection

        async def tail() -> None:
            nonlocal written, read
            read = 0
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(0, written - read) :]
                read += len(text)
                written = max(written, read)
                if new:
                    write(new)

        for attempt in range(MAX_RECONNECTS + 1):
            try:
                with self._explained(job_id):
                    asyncio.run(tail())
                break
            except JobError:
                # A tunnel that broke, most often; the job knows nothing of it.
                if attempt == MAX_RECONNECTS or not read:
                    raise
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
    started, ended = (
        datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
        for milliseconds in (details.start_time, details.end_time)
    )
    return Job(
        details.submission_id or "",
        str(details.status),
        details.entrypoint,
        details.message or "",
        started,
        ended,
        details.driver_exit_code,
        dict(details.metadata or {}),
    )


@contextlib.contextmanager
def _without_addresses() -> Generator[None]:
    kept = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
