"""The one driver of all stages: skip, shard, run, check, record, finish.

Finished shards are known by their records in ``<stage>/<fingerprint>/shards``; a record is written
by the worker itself, after its parts, so a driver that dies loses nothing that was finished. The
manifest is written last. Both are small JSON files written whole or not at all.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from nncift_ray import errors as error_module
from nncift_ray.errors import NnciftError, StageError, StorageError
from nncift_ray.runtime.files import Location, delete_temporaries
from nncift_ray.runtime.output import (
    BEGUN_NAME,
    ERRORS_TABLE,
    MANIFEST_NAME,
    SHARD_FOLDER,
    FirstErrors,
    ShardRecord,
    Sink,
    StageBegun,
    StageManifest,
    StageOutput,
    describe_environment,
    fingerprint,
    utc_now,
)
from nncift_ray.runtime.progress import Reporter
from nncift_ray.runtime.shards import (
    ATTEMPTS_FOLDER,
    NODES_FOLDER,
    ShardOutcome,
    ShardRunner,
    looking,
    missing_parts,
    record_file,
)
from nncift_ray.runtime.step import KILLED_WORKER, Shard, Stage

MAX_SHARD_ATTEMPTS = 2
#: So many shards lost to dying or unmakeable workers, with none finished, stop a stage at once.
MAX_LOST_SHARDS = 3
WATCH_SECONDS = 2.0  # between two looks at how far a long item is
NODE_LABEL = "ray.io/node-id"  # which Ray gives to every node


#: Runs shards somewhere and yields their outcomes as they come.
Executor = Callable[[Stage, Location, "list[Shard]"], Iterable[ShardOutcome]]


def stage_fingerprint(stage: Stage) -> str:
    """Return the fingerprint of a stage's work."""
    inputs = {name: output.fingerprint for name, output in stage.inputs.items()}
    return fingerprint(stage.name, stage.version, stage.settings(), inputs)


def stage_folder(stage: Stage, run_dir: Location) -> Location:
    """Return where a stage's work lies: ``<run_dir>/<stage>/<fingerprint>``."""
    return run_dir / stage.name / stage_fingerprint(stage)


def finished_shards(folder: Location) -> list[ShardRecord]:
    """Read the records of finished shards whose parts are all there, of the recorded size.

    Where two overlap (a worker that outlived its driver), the later one is left out.
    """
    records = (
        ShardRecord.read(location.read_bytes(), str(location)) for location in record_files(folder)
    )
    return without_overlaps(record for record in records if not missing_parts(folder, record))


def record_files(folder: Location) -> list[Location]:
    """Return where the records of a stage's shards lie, in the order of the shards."""
    files = (folder / SHARD_FOLDER).list_files()
    return [location for location in files if location.name.endswith(".json")]


def without_overlaps(records: Iterable[ShardRecord]) -> list[ShardRecord]:
    """Leave out records of items that an earlier one covers."""
    kept: list[ShardRecord] = []
    covered = 0
    for record in records:
        if record.start >= covered:
            kept.append(record)
            covered = record.stop
    return kept


def execute_here(
    stage: Stage,
    folder: Location,
    shards: list[Shard],
    make_runner: type[ShardRunner] = ShardRunner,
) -> Iterator[ShardOutcome]:
    """Run shards one after another in this process (an Executor)."""
    runner = make_runner(stage, folder, uuid.uuid4().hex)
    for shard in shards:
        outcome = runner.run(shard)
        yield outcome
        if outcome.cause == "start":
            return


@contextlib.contextmanager
def watching(
    stage: Stage, folder: Location, reporter: Reporter, every_seconds: float = WATCH_SECONDS
) -> Generator[None]:
    """Tell the reporter now and then how far a long item is, by what workers left in the folder."""
    if type(stage).progress is Stage.progress:
        yield
        return

    def look() -> bool:
        with contextlib.suppress(NnciftError, OSError):  # progress lines stop no run
            message = stage.progress(folder)
            if message:
                reporter.working(stage.name, message)
        return False

    with looking(f"progress of {stage.name}", every_seconds, look):
        yield


def run_stage(
    stage: Stage, run_dir: Location, *, execute: Executor, reporter: Reporter
) -> StageOutput:
    """Bring a stage to its end and return its output, doing only what is not done.

    Raises:
        StageError: If shards fail twice, or more rows fail than ``max_failed_fraction`` allows.
        NnciftError: Whatever a worker raised of that family, e.g. ModelError.
    """
    folder = stage_folder(stage, run_dir)
    existing = StageOutput.open(folder)
    if existing is not None:
        reporter.stage_skipped(stage.name, existing.manifest.num_items)
        return existing
    started = time.monotonic()
    folder.make_folder()
    delete_temporaries(folder)
    records = finished_shards(folder)
    num_items = stage.num_items()
    _begin(stage, folder, num_items, records, reporter)
    with watching(stage, folder, reporter):
        records += _run_remaining(stage, folder, num_items, records, execute, reporter)
        records += _finish(stage, folder, num_items, records)
    manifest = _make_manifest(stage, num_items, records, time.monotonic() - started)
    _check_failures(stage, folder, manifest)
    (folder / MANIFEST_NAME).write_bytes(manifest.model_dump_json(indent=1).encode())
    _sweep(folder)
    reporter.stage_finished(stage.name, manifest.wall_seconds, manifest.num_failures)
    return StageOutput(folder, manifest)


def _begin(
    stage: Stage, folder: Location, num_items: int, records: list[ShardRecord], reporter: Reporter
) -> None:
    """Write begun.json, which ``nncift status`` reads, and tell the reporter."""
    begun = StageBegun(
        stage=stage.name,
        fingerprint=stage_fingerprint(stage),
        unit=stage.unit,
        units=stage.item_weight(0, num_items),
        num_items=num_items,
        num_cpus=stage.resources.num_cpus,
        num_gpus=stage.resources.num_gpus,
        num_shards_found=len(records),
        started_at=utc_now(),
    )
    (folder / BEGUN_NAME).write_bytes(begun.model_dump_json(indent=1).encode())
    done = sum(stage.item_weight(record.start, record.stop) for record in records)
    reporter.stage_started(begun, done)


def plan_shards(stage: Stage, num_items: int, records: list[ShardRecord]) -> list[Shard]:
    """Cut what no finished shard covers into shards of the size wanted now."""
    shards: list[Shard] = []
    position, size = 0, stage.shard_items
    edges = [(record.start, record.stop) for record in records]
    for start, stop in [*sorted(edges), (num_items, num_items)]:
        cuts = range(position, start, size)
        shards += [Shard(at, min(at + size, start)) for at in cuts]
        position = max(position, stop)
    return shards


def _run_remaining(
    stage: Stage,
    folder: Location,
    num_items: int,
    records: list[ShardRecord],
    execute: Executor,
    reporter: Reporter,
) -> list[ShardRecord]:
    """Run the missing shards; one that fails is tried again after the others."""
    shards = plan_shards(stage, num_items, records)
    finished: list[ShardOutcome] = []
    failed: list[ShardOutcome] = []
    num_attempts = 0
    if (unfit := folder / ATTEMPTS_FOLDER / NODES_FOLDER).exists():  # of an earlier run
        unfit.delete_folder()
    while shards and num_attempts < MAX_SHARD_ATTEMPTS:
        failed, returned = [], []
        for outcome in execute(stage, folder, shards):
            if outcome.cause == "node":
                returned.append(outcome)
                reporter.notice(
                    f"stage '{stage.name}': node {outcome.node} cannot load a worker, so other "
                    f"nodes are given its work: {outcome.error_type}: {outcome.error_message}"
                )
            elif outcome.record is None:
                failed.append(outcome)
                error = f"{outcome.error_type}: {outcome.error_message}"
                reporter.shard_failed(stage.name, outcome.start, outcome.stop, error)
            else:
                _check_visible(folder, outcome.record)
                finished.append(outcome)
                reporter.shard_finished(stage.name, outcome.record)
                if outcome.cause == "killed" and outcome.record.num_failures:
                    items = f"{outcome.start}..{outcome.stop}"
                    reporter.notice(
                        f"stage '{stage.name}': rows of items {items} killed their worker each "
                        f"time; they are in its errors table as '{KILLED_WORKER}'"
                    )
            _stop_if_all_fail(stage, folder, failed, finished)
        shards = [Shard(outcome.start, outcome.stop) for outcome in (*failed, *returned)]
        _avoid_nodes(stage, {outcome.node for outcome in returned})
        num_attempts += bool(failed)
        if any(_users_error(outcome) for outcome in failed):
            break
    if failed:
        raise _error_of(stage, failed, len(finished))
    return [outcome.record for outcome in finished if outcome.record is not None]


def _stop_if_all_fail(
    stage: Stage, folder: Location, failed: list[ShardOutcome], finished: list[ShardOutcome]
) -> None:
    """Stop at once where no worker can be made or write, or where whatever is tried kills it.

    Raises:
        NnciftError: What stopped the shards.
    """
    if any(
        (outcome.cause == "start" and _users_error(outcome))
        # A full disk or a lost input: the other shards would be computed in vain.
        or _users_error(outcome) is StorageError
        for outcome in failed
    ):
        raise _error_of(stage, failed, len(finished))
    if not all(_is_emptied(stage, outcome) for outcome in finished):
        return
    if len(finished) + sum(outcome.cause != "" for outcome in failed) < MAX_LOST_SHARDS:
        return
    for outcome in finished:  # the next run shall try their rows again
        record_file(folder, Shard(outcome.start, outcome.stop)).delete()
    if failed:
        raise _error_of(stage, failed, 0)
    raise StageError(
        f"stage '{stage.name}': every row of the first {len(finished)} shards killed its worker. "
        f"Most often that is memory: {stage.memory_advice}."
    )


def _is_emptied(stage: Stage, outcome: ShardOutcome) -> bool:
    """Whether a shard was finished only by giving up all of its rows."""
    num_failures = outcome.record.num_failures if outcome.record is not None else 0
    rows = stage.row_numbers(outcome.start, outcome.stop)
    return outcome.cause == "killed" and num_failures >= len(rows)


def _avoid_nodes(stage: Stage, nodes: set[str]) -> None:
    """Keep a stage's next actors off some nodes."""
    if nodes:
        known = stage.resources.labels.get(NODE_LABEL, "!in()")[len("!in(") : -1].split(",")
        every = ",".join(sorted({*filter(None, known), *nodes}))
        labels = {**stage.resources.labels, NODE_LABEL: f"!in({every})"}
        stage.resources = replace(stage.resources, labels=labels)


def _check_visible(folder: Location, record: ShardRecord) -> None:
    """Refuse a run directory that is a worker's own disk and not this one's."""
    missing = missing_parts(folder, record) if folder.is_local else []
    if missing:
        raise StorageError(
            f"{folder / missing[0]}: a worker wrote this file, but it is not here. On several "
            "nodes run_dir must be a disk they share, or s3:// or gs://."
        )


def _users_error(outcome: ShardOutcome) -> type[NnciftError] | None:
    """Return the class of an error that the user has to mend, so that trying again is pointless."""
    kind = getattr(error_module, outcome.error_type, None)
    return kind if isinstance(kind, type) and issubclass(kind, NnciftError) else None


def _error_of(stage: Stage, failed: list[ShardOutcome], num_finished: int) -> NnciftError:
    kept = (
        f"{num_finished} other shard(s) were finished and are kept; the same command goes on from "
        "there."
    )
    for outcome in failed:
        users_error = _users_error(outcome)
        if users_error is not None:
            rest = f" {kept}" if outcome.cause == "killed" else ""
            return users_error(f"stage '{stage.name}': {outcome.error_message}{rest}")
    first, advice = failed[0], ""
    # torch.cuda's and Ray's errors are told by name: this process may have neither library.
    if first.error_type in ("MemoryError", "OutOfMemoryError"):
        advice = f" (not enough memory: {stage.memory_advice})"
    return StageError(
        f"stage '{stage.name}': {len(failed)} shard(s) failed {MAX_SHARD_ATTEMPTS} times, the "
        f"first is items {first.start}..{first.stop}: {first.error_type}: "
        f"{first.error_message}{advice}\n{kept}\n{first.error_trace}"
    )


def _finish(
    stage: Stage, folder: Location, num_items: int, records: list[ShardRecord]
) -> list[ShardRecord]:
    """Let the stage write what it makes of all shards, with a record of no items; resume redoes it.

    The record goes to the manifest alone, so shards that are finished stay the only ones known.
    """
    if type(stage).finish is Stage.finish:
        return []
    output = StageOutput(folder, _make_manifest(stage, num_items, records, 0.0))
    sink = Sink(folder, stage.name, num_items, num_items, stage.check_schema)
    started = time.monotonic()
    try:
        stage.finish(output, sink)
        return [sink.finish(time.monotonic() - started)]
    except BaseException:
        sink.abort()
        raise


def _sweep(folder: Location) -> None:
    """Remove what only a run in progress needs, and what workers that died had not finished."""
    (folder / BEGUN_NAME).delete()
    if (folder / ATTEMPTS_FOLDER).exists():
        (folder / ATTEMPTS_FOLDER).delete_folder()
        delete_temporaries(folder)


def _make_manifest(
    stage: Stage, num_items: int, records: list[ShardRecord], wall_seconds: float
) -> StageManifest:
    shards = tuple(sorted(records, key=lambda record: record.start))
    edges = [0, *(record.stop for record in shards)]
    if [record.start for record in shards] != edges[:-1] or edges[-1] != num_items:
        raise StorageError(
            f"stage '{stage.name}': its shards do not cover each of {num_items} items once; two "
            "runs may have worked in one run_dir. Delete the stage's folder and run again."
        )
    return StageManifest(
        stage=stage.name,
        version=stage.version,
        fingerprint=stage_fingerprint(stage),
        settings=stage.settings(),
        inputs={name: output.fingerprint for name, output in stage.inputs.items()},
        seed=stage.seed,
        num_items=num_items,
        num_failures=sum(record.num_failures for record in shards),
        wall_seconds=wall_seconds,
        worker_seconds=sum(record.seconds for record in shards),
        num_cpus=stage.resources.num_cpus,
        num_gpus=stage.resources.num_gpus,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=describe_environment(),
        shards=shards,
    )


def _check_failures(stage: Stage, folder: Location, manifest: StageManifest) -> None:
    if not manifest.num_failures:
        return
    good = max((manifest.num_rows(table) for table in stage.produces), default=0)
    total = good + manifest.num_failures
    batches = StageOutput(folder, manifest).iter_batches(ERRORS_TABLE)
    errors = FirstErrors(row for batch in batches for row in batch.to_pylist())
    where = f"all are in {folder / ERRORS_TABLE}"
    told = errors.check(total, stage.max_failed_fraction, stage.max_failed_key, where)
    if told:
        raise stage.failed_rows_error(f"stage '{stage.name}': {told}")


# How far a training is, left in its stage's folder by whichever worker does it.

PROGRESS_NAME = "progress.txt"
SAVE_SECONDS = 5.0


class StepProgress:
    """Leaves a line about the steps done and the time left in a stage's folder, now and then."""

    def __init__(self, folder: Location, every_seconds: float = SAVE_SECONDS) -> None:
        """Time starts now; what an interrupted attempt left is forgotten."""
        self._file = folder / ATTEMPTS_FOLDER / PROGRESS_NAME
        self._file.write_bytes(b"")
        self._every_seconds = every_seconds
        self._start = self._last = time.monotonic()

    def __call__(self, step: int, total_steps: int) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        if now - self._last < self._every_seconds:
            return
        self._last = now
        minutes = round((now - self._start) / step * (total_steps - step) / 60)
        left = f"about {minutes:,} min left" if minutes else "less than a minute left"
        self._file.write_bytes(f"step {step:,} of {total_steps:,}, {left}".encode())


def describe_steps(folder: Location) -> str:
    """Return the line that ``StepProgress`` left; "" before the first one."""
    file = folder / ATTEMPTS_FOLDER / PROGRESS_NAME
    return file.read_bytes().decode() if file.exists() else ""
