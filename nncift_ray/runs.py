"""A run directory: open it, find its examples, and see how far it is and what it has cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus import hub
from nncift_ray.corpus.export import DATASET_FOLDER
from nncift_ray.errors import DataError, StageError, StorageError
from nncift_ray.pipeline import EXPORT_FOLDER, RUN_RECORD
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import ClusterConfig, Config
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import record_files, without_overlaps
from nncift_ray.runtime.files import Location, is_locked
from nncift_ray.runtime.output import (
    BEGUN_NAME,
    ChainedOutput,
    ShardRecord,
    StageBegun,
    StageManifest,
    StageOutput,
    sum_counts,
)
from nncift_ray.runtime.schemas import CANDIDATE, TABLE_OF_ROLE, TARGET

Record = Mapping[str, Any]
Places = list[tuple[str, int]]  # (role, row): a target may be a candidate as well

NUM_NEAR, MAX_AMBIGUOUS = 3, 5
EXAMPLE_COLUMNS = ["row_index", "example_id", "prompt", "response", "source", "line"]


@dataclass(frozen=True, slots=True)
class Example:
    """An example of a run; ``subset_rank`` is None where it was not selected."""

    role: str
    row_index: int
    example_id: str
    prompt: str
    response: str
    source: str
    line: int
    subset_rank: int | None


@dataclass(frozen=True)
class Run:
    """A run directory, with the outputs of the stages that are finished in it."""

    run_dir: Location
    record: Record
    config: Config
    outputs: dict[str, StageOutput]

    @classmethod
    def open(cls, run_dir: str) -> Self:
        """Open a run directory.

        Raises:
            StorageError: If there is no run, or the run that it goes on from is gone.
            ConfigError: If its recipe is of another version of this package.
        """
        location = Location.of(run_dir)
        record = read_record(location)
        config = make_config(record["config"], f"{location / RUN_RECORD}: config")
        return cls(location, record, config, _open_outputs(location, record))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of the recipe, in order, finished or not."""
        return tuple(self.record["stage_names"])

    def need(self, *names: str) -> None:
        """Check that stages are finished, as far as the recipe has them.

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

    @cached_property
    def subset_ranks(self) -> dict[int, int]:
        """The rank of every selected candidate; empty where nothing is selected yet."""
        if "select" not in self.outputs:
            return {}
        ranking = self.outputs["select"].read("ranking", ["row_index", "rank"], schemas.RANKING)
        return {row["row_index"]: row["rank"] for row in ranking.to_pylist()}

    def examples(self, role: str, rows: Sequence[int]) -> list[Example]:
        """Return the examples of some rows of a role, in the order given."""
        if not len(rows):
            return []
        found = self.outputs["deduplicate"].take_rows(
            TABLE_OF_ROLE[role], np.asarray(rows), EXAMPLE_COLUMNS
        )
        ranks = self.subset_ranks if role == CANDIDATE else {}
        return [
            Example(role=role, subset_rank=ranks.get(row["row_index"]), **row)
            for row in cast("list[dict[str, Any]]", found.to_pylist())
        ]

    def find(self, example_id: str) -> Places:
        """Find an example by the beginning of its id, as candidate, target, or both.

        Raises:
            DataError: With ids near it if there is none, or those it could be if there are several.
        """
        wanted = example_id.strip().lower()
        found: dict[str, Places] = {}
        for role, first, ids in self._ids():
            begins = pc.starts_with(ids, wanted).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(begins).tolist():
                found.setdefault(str(ids[row]), []).append((role, first + row))
            if len(found) > MAX_AMBIGUOUS:
                break
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            shown = ", ".join(list(found)[:MAX_AMBIGUOUS])
            more = ", ..." if len(found) > MAX_AMBIGUOUS else ""
            raise DataError(f"'{example_id}' begins several ids: {shown}{more}. Give more of it.")
        raise DataError(
            f"no example of this run has an id that begins with '{example_id}'. Ids are the 32 "
            "hexadecimal digits under `_nncift.example_id` in export/subset.jsonl and `example_id` "
            f"in the tables of deduplicate; near it are: {', '.join(self._nearest_ids(wanted))}"
        )

    def _ids(self) -> Iterator[tuple[str, int, pa.Array]]:
        """Yield (role, row of the first id, ids) batch by batch, candidates first."""
        for role in (CANDIDATE, TARGET):
            first = 0
            batches = self.outputs["deduplicate"].iter_batches(TABLE_OF_ROLE[role], ["example_id"])
            for batch in batches:
                yield role, first, batch.column(0)
                first += batch.num_rows

    def _nearest_ids(self, wanted: str) -> list[str]:
        """Return the ids that share the longest beginning with what was asked for."""
        best: list[str] = []
        for _, _, ids in self._ids():
            names = {*best, *cast("list[str]", ids.to_pylist())}
            best = sorted(names, key=lambda name: (-len(commonprefix([wanted, name])), name))
            best = best[:NUM_NEAR]
        return best


@dataclass(frozen=True, slots=True)
class Pushed:
    """The files of a run's data set, bytes by path, and where they were put; None: nowhere."""

    files: dict[str, int]
    address: str | None


def push_dataset(run_dir: str, repo: str, *, upload: bool, private: bool = True) -> Pushed:
    """Put the data set of a finished run, with its card, on the Hugging Face hub.

    Args:
        run_dir: The run.
        repo: The data set's name there, owner/name; it is made if there is none.
        upload: False: only say what would be sent.
        private: Whether a data set that is made may be read by its owner alone.

    Raises:
        NnciftError: No such run, no data set in it, or what the hub says against it.
    """
    hub.check_repo(repo)
    run = Run.open(run_dir)
    run.need("export")
    folder = run.run_dir / EXPORT_FOLDER / DATASET_FOLDER
    if not (folder / "README.md").exists():
        raise StageError(
            f"{folder} holds no data set; put 'dataset' among export.formats and run again"
        )
    found = {
        location.path.removeprefix(f"{folder.path}/"): location
        for location in folder.list_files(recursive=True)
    }
    files = {name: location.size() or 0 for name, location in sorted(found.items())}
    if not upload:
        return Pushed(files, None)
    with TemporaryDirectory() as copied:  # the folder may lie in an object store
        for name, location in found.items():
            place = Path(copied) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(location.read_bytes())
        message = f"Selected by nncift_ray {run.record['version']}"
        return Pushed(files, hub.push_folder(Path(copied), repo, message, private=private))


def read_record(run_dir: Location) -> dict[str, Any]:
    """Return what a run wrote of itself.

    Raises:
        StorageError: If there is no run.
    """
    file = run_dir / RUN_RECORD
    if not file.exists():
        raise StorageError(
            f"{run_dir}: no run here (no {RUN_RECORD}); give a run_dir of `nncift run`"
        )
    return cast("dict[str, Any]", json.loads(file.read_bytes()))


def _open_outputs(run_dir: Location, record: Record) -> dict[str, StageOutput]:
    """Open the finished stages of a run, those of the run that it goes on from first."""
    inherited, chained = record.get("inherited", ()), record.get("chained", ())
    above: dict[str, StageOutput] = {}
    if parent := record.get("parent"):
        above = _open_outputs(Location.of(parent["run_dir"]), parent)
        for name in (*inherited, *chained):
            if name not in above:
                raise StorageError(
                    f"{run_dir} goes on from the run {parent['run_dir']}, whose stage '{name}' is "
                    "not there any more. Put that run back where it was, or run the recipe anew on "
                    "all data."
                )
    outputs: dict[str, StageOutput] = {}
    for name in record["stage_names"]:
        if name in inherited:
            outputs[name] = above[name]
        elif name in record["stages"]:
            own = StageOutput.open(run_dir / name / record["stages"][name])
            if own is not None:
                outputs[name] = ChainedOutput(above[name], own) if name in chained else own
    return outputs


# Status: what a run directory holds, and how fast a run that works in it gets on.

#: The rate of a stage is that of its last minutes: workers come and go.
RATE_WINDOW_SECONDS = 300.0
WATCH_SECONDS = 2.0


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: "running" if its process is seen at work, "begun" if it is not."""

    name: str
    state: Literal["done", "running", "begun", "missing"]
    num_items: int = 0  # finished so far
    num_shards: int = 0
    seconds: float = 0.0  # of its workers
    num_failures: int = 0
    num_rows: int = 0  # of all tables but the errors
    counts: dict[str, int] | None = None  # e.g. tokens, cached_tokens
    cost_usd: float = 0.0  # of the workers' seconds
    folder: str = ""
    unit: str = ""  # of a stage in progress, like all that follows
    units_done: int = 0
    units: int = 0
    units_per_second: float | None = None
    seconds_left: float | None = None
    last_sign: str = ""  # when the stage began, or its latest shard was finished; UTC


@dataclass(frozen=True)
class RunStatus:
    """A run directory."""

    run_dir: str
    config: dict[str, Any]
    running: bool | None  # None: cannot be seen, e.g. on an object store
    cost_usd: float
    stages: tuple[StageStatus, ...]
    complete: bool  # whether every stage is finished


class StatusReader:
    """Reads the state of a run again and again; what it has read once it does not read again."""

    def __init__(self, run_dir: str) -> None:
        """Read from a run directory."""
        self._run_dir = Location.of(run_dir)
        self._shards: dict[str, ShardRecord] = {}
        self._outputs: dict[str, StageOutput] = {}

    def read(self, now: datetime | None = None) -> RunStatus:
        """Return the state at a time, by default now.

        Raises:
            StorageError: If there is no run.
        """
        record, running = read_record(self._run_dir), is_locked(self._run_dir)
        now = now or datetime.now(UTC)
        stages = tuple(
            self._read_stage(record, name, bool(running), now) for name in record["stage_names"]
        )
        cost = sum(stage.cost_usd for stage in stages)
        complete = all(stage.state == "done" for stage in stages)
        return RunStatus(str(self._run_dir), record["config"], running, cost, stages, complete)

    def watch(self) -> Iterator[RunStatus]:
        """Yield the state now and then until it can change no more: all done, or not running."""
        while True:
            found = self.read()
            yield found
            if found.complete or found.running is False:
                return
            time.sleep(WATCH_SECONDS)

    def _read_stage(self, record: Record, name: str, running: bool, now: datetime) -> StageStatus:
        if name not in record["stages"]:
            return StageStatus(name, "missing")
        home = self._run_dir
        inherited = name in record.get("inherited", ())
        above = record
        while name in above.get("inherited", ()):
            above = above["parent"]
            home = Location.of(above["run_dir"])
        folder = home / name / record["stages"][name]
        output = self._outputs.get(str(folder)) or StageOutput.open(folder)
        if output is not None:
            self._outputs[str(folder)] = output
            made = output.manifest
            # What another run did, it paid for.
            sums = _sums(made.shards, record, made)
            if inherited:
                sums["cost_usd"] = 0.0
            return StageStatus(name, "done", folder=str(folder), **sums)
        file = folder / BEGUN_NAME
        begun = StageBegun.read(file.read_bytes(), str(file)) if file.exists() else None
        shards = without_overlaps(self._read_shards(folder))
        done = sum(shard.units for shard in shards)
        if begun is None:
            if not shards:
                return StageStatus(name, "missing", folder=str(folder))
            return StageStatus(
                name,
                "begun",
                folder=str(folder),
                units_done=done,
                units=done,
                last_sign=max(shard.finished_at for shard in shards),
                **_sums(shards, record),
            )
        rate = units_per_second(begun, shards, now)
        return StageStatus(
            name,
            "running" if running else "begun",
            folder=str(folder),
            unit=begun.unit,
            units_done=done,
            units=begun.units,
            units_per_second=rate,
            seconds_left=(begun.units - done) / rate if rate else None,
            last_sign=max([begun.started_at, *(shard.finished_at for shard in shards)]),
            **_sums(shards, record, begun),
        )

    def _read_shards(self, folder: Location) -> Iterator[ShardRecord]:
        for file in record_files(folder):
            if str(file) not in self._shards:
                self._shards[str(file)] = ShardRecord.read(file.read_bytes(), str(file))
            yield self._shards[str(file)]


def _sums(
    shards: Sequence[ShardRecord],
    record: Record,
    workers: StageManifest | StageBegun | None = None,
) -> dict[str, Any]:
    """Add up what some shards say, as fields of a StageStatus; without known workers no price."""
    seconds = sum(shard.seconds for shard in shards)
    # Of a recipe that another version may have written, only what is needed.
    section = record["config"].get("cluster", {})
    wanted = ("price_per_gpu_hour", "price_per_cpu_hour")
    prices = ClusterConfig(**{key: section[key] for key in wanted if key in section})
    cost = prices.price(seconds, workers.num_cpus, workers.num_gpus) if workers else 0.0
    return {
        "num_items": sum(shard.stop - shard.start for shard in shards),
        "num_shards": len(shards),
        "seconds": seconds,
        "num_failures": sum(shard.num_failures for shard in shards),
        "num_rows": sum(shard.num_rows for shard in shards),
        "counts": sum_counts(shards),
        "cost_usd": cost,
    }


def units_per_second(
    begun: StageBegun, shards: Sequence[ShardRecord], now: datetime
) -> float | None:
    """Return how fast a stage gets on: in its last minutes, or since it began if none ended then.

    None before the first shard of this run is finished. A worker's clock may differ from this one:
    what it dates later than now ended now.
    """
    started = datetime.fromisoformat(begun.started_at)
    ended = [
        (min(datetime.fromisoformat(shard.finished_at), now), shard.units)
        for shard in shards
        if shard.finished_at >= begun.started_at
    ]
    whole = (now - started).total_seconds()
    for window in (min(RATE_WINDOW_SECONDS, whole), whole):
        units = sum(units for at, units in ended if (now - at).total_seconds() <= window)
        if units and window > 0:
            return units / window
    return None
