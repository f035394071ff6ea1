"""Open what an earlier run left behind: its recipe, and the outputs of its finished stages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from nncift_ray.config import Config, make_config
from nncift_ray.errors import StageError, StorageError
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

RUN_RECORD = "run.json"


@dataclass(frozen=True)
class OpenedRun:
    """A run directory, with the outputs of the stages that are finished in it."""

    run_dir: Location
    record: dict[str, Any]
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
                raise StageError(
                    f"{self.run_dir}: the stage '{name}' of this run is not finished. Run "
                    "`nncift run` with its recipe again: it goes on from where it stopped "
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
        StorageError: If there is no run.
        ConfigError: If its recipe is of another version of this package.
    """
    location = Location.of(run_dir)
    record = read_record(location)
    config = make_config(record["config"], f"{location / RUN_RECORD}: config")
    outputs: dict[str, StageOutput] = {}
    for name, fingerprint in record["stages"].items():
        output = StageOutput.open(location / name / fingerprint)
        if output is not None:
            outputs[name] = output
    return OpenedRun(location, record, config, outputs)
