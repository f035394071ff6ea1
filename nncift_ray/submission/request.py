"""From a recipe, or a run to extend, to the command of a job; checked before anything is sent."""

from __future__ import annotations

import fnmatch
import re
import shlex
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import nncift_ray
from nncift_ray.config import Config, dump_config
from nncift_ray.config.loading import apply_override
from nncift_ray.errors import ConfigError
from nncift_ray.submission.packing import RECIPE_NAME

#: What the job's own Python is called on its node.
PYTHON = "python"
#: Commands that read a recipe, and the one that goes on from a run.
RECIPE_COMMANDS, EXTEND = ("run", "evaluate"), "extend"


@dataclass(frozen=True)
class JobRequest:
    """A job to be: what it is called, runs and reads."""

    entrypoint: str
    run_dir: str
    recipe: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def new_id(self) -> str:
        """Return a submission id that names the run and is used by no other job."""
        last = self.run_dir.partition("?")[0].rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-")
        return f"nncift-{name or 'run'}-{uuid.uuid4().hex[:8]}"


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
        **{f"evaluation.tests.{name}": paths for name, paths in config.evaluation.tests.items()},
    }
    for key, paths in sources.items():
        for path in paths:
            _check_source(key, path, sent_files)
    # The recipe may name the address as it is seen from here; the job is on the cluster already.
    cluster = config.cluster.model_copy(update={"address": "auto"})
    there = config.model_copy(update={"cluster": cluster})
    return JobRequest(
        entrypoint=_entrypoint(command, [RECIPE_NAME, *extra]),
        run_dir=config.run_dir,
        recipe=dump_config(there),
        metadata=_metadata(command, config.run_dir),
    )


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
    return JobRequest(
        entrypoint=_entrypoint(EXTEND, [run_dir, *extra, *settings]),
        run_dir=run_dir,
        metadata=_metadata(EXTEND, run_dir),
    )


def _entrypoint(command: str, arguments: Sequence[str]) -> str:
    return shlex.join([PYTHON, "-m", "nncift_ray.cli", command, *arguments])


def _metadata(command: str, run_dir: str) -> dict[str, str]:
    return {
        "nncift_command": command,
        "nncift_run_dir": run_dir,
        "nncift_version": nncift_ray.__version__,
    }


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


def _check_source(key: str, source: str, sent_files: Collection[str]) -> None:
    if _is_absolute(source):
        return
    plain = source.removeprefix("./").rstrip("/")
    if not any(fnmatch.fnmatch(name, plain) or name.startswith(f"{plain}/") for name in sent_files):
        raise ConfigError(
            f"{key}: {source} is a path on this machine, and no file that is sent. Give a path "
            "that all nodes share, or s3:// or gs://; small files go along with --working-dir."
        )


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")
