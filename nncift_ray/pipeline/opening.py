"""Open what an earlier run left behind: its recipe, and the outputs of its finished stages.

A run that goes on from another (``nncift extend``) lies in a directory of its own and holds only
what is new. Its record names the parent, which is read where it lies: stages that are ``inherited``
are the parent's, stages that are ``chained`` are the parent's with new rows behind them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from nncift_ray.config import Config, make_config
from nncift_ray.errors import StageError, StorageError
from nncift_ray.storage.chained import ChainedOutput
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

RUN_RECORD = "run.json"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class OpenedRun:
    """A run directory, with the outputs of the stages that are finished in it."""

    run_dir: Location
    record: Record
    config: Config
    outputs: dict[str, StageOutput]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of the recipe, in order, finished or not."""
        return tuple(self.record["stage_names"])

    def need(self, *names: str) -> None:
        """Check that stages are finished.

        Raises:
            StageError: Naming the first that is not, and what to run.
        """
        for name in names:
            if name in self.stage_names and name not in self.outputs:
                command = "extend" if self.record.get("parent") else "run"
                raise StageError(
                    f"{self.run_dir}: the stage '{name}' of this run is not finished. Give the "
                    f"`nncift {command}` that began it again: it goes on from where it stopped "
                    f"(`nncift status {self.run_dir}` shows where)."
                )


def read_record(run_dir: Location) -> dict[str, Any]:
    """Read what a run wrote of itself.

    Raises:
        StorageError: If there is no run.
    """
    record_file = run_dir / RUN_RECORD
    if not record_file.exists():
        raise StorageError(
            f"{run_dir}: no run here (no {RUN_RECORD}); give a run_dir of `nncift run`"
        )
    return cast("dict[str, Any]", json.loads(record_file.read_bytes()))


def open_run(run_dir: str) -> OpenedRun:
    """Open a run directory.

    Raises:
        StorageError: If there is no run, or the run that it goes on from is gone.
        ConfigError: If its recipe is of another version of this package.
    """
    location = Location.of(run_dir)
    record = read_record(location)
    config = make_config(record["config"], f"{location / RUN_RECORD}: config")
    return OpenedRun(location, record, config, _open_outputs(location, record))


def home_of(run_dir: Location, record: Record, stage: str) -> Location:
    """Return the run directory that a stage's own work lies in: this one's, or an ancestor's."""
    while stage in record.get("inherited", ()):
        run_dir, record = Location.of(record["parent"]["run_dir"]), record["parent"]
    return run_dir


def _open_outputs(run_dir: Location, record: Record) -> dict[str, StageOutput]:
    """Open the finished stages of a run, its ancestors' first."""
    parent = record.get("parent")
    above = {} if parent is None else _open_parent(run_dir, record)
    outputs: dict[str, StageOutput] = {}
    for name in record["stage_names"]:
        if name in record.get("inherited", ()):
            outputs[name] = above[name]
        elif name in record["stages"]:
            own = StageOutput.open(run_dir / name / record["stages"][name])
            if own is not None:
                chained = name in record.get("chained", ())
                outputs[name] = ChainedOutput(above[name], own) if chained else own
    return outputs


def _open_parent(run_dir: Location, record: Record) -> dict[str, StageOutput]:
    """Open the outputs of the run that this one goes on from.

    Raises:
        StorageError: If one that is needed is not there.
    """
    parent_dir = Location.of(record["parent"]["run_dir"])
    outputs = _open_outputs(parent_dir, record["parent"])
    for name in (*record.get("inherited", ()), *record.get("chained", ())):
        if name not in outputs:
            raise StorageError(
                f"{run_dir} goes on from the run {parent_dir}, whose stage '{name}' is not there "
                "any more. Put that run back where it was, or run the recipe anew on all data."
            )
    return outputs
