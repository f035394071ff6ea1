"""What happens to one shard: a worker runs it, its parts and its record are written.

A shard that kills its worker is tried once more, then halved until the rows that kill are known.
They become error rows and the shard is run without them. All this is one task on one actor, which
is replaced whenever it dies and reads in the shard's ``AttemptLog`` where its predecessor was; the
other actors go on meanwhile.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nncift_ray.config.secrets import redact
from nncift_ray.errors import EngineDiedError, StageError
from nncift_ray.stages.driving.poison import (
    LAST,
    LOAD,
    MAX_DEATHS,
    MAX_KILLERS_OF_AN_ITEM,
    MAX_SEARCH_DEATHS,
    WHOLE,
    AttemptLog,
    KillerBook,
    Whereabouts,
    find_killers,
    hopeless_items,
    next_suspect,
)
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.manifest import ShardRecord
from nncift_ray.storage.output import SHARD_FOLDER, Sink, shard_name

ATTEMPTS_FOLDER = "attempts"
KILLERS_FOLDER = "killers"
KILLED_ALONE = f"its worker was killed {MAX_DEATHS} times with nothing but this row to do"
HOPELESS_ITEM = (
    f"the first {MAX_KILLERS_OF_AN_ITEM} rows of its group each killed their worker alone, so the "
    "rest of the group was not tried"
)

#: "": nothing special. "start": no worker could be made. "killed": the shard killed its workers; it
#: has a record if it could be run without some of its rows.
Cause = Literal["", "start", "killed"]


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What came of one shard: its record, or the error that stopped it."""

    shard: Shard
    record: ShardRecord | None
    error_type: str = ""
    error_message: str = ""
    error_trace: str = ""
    cause: Cause = ""


def failed_outcome(shard: Shard, error: BaseException, cause: Cause = "") -> ShardOutcome:
    """Describe an error so that it can cross a process boundary, without secrets it may quote."""
    trace = redact("".join(traceback.format_exception(error)))
    return ShardOutcome(shard, None, type(error).__name__, redact(str(error)), trace, cause)


def record_file(folder: Location, shard: Shard) -> Location:
    """Return where a shard's record lies once the shard is finished."""
    return folder / SHARD_FOLDER / f"{shard_name(shard.start, shard.stop)}.json"


def missing_parts(folder: Location, record: ShardRecord) -> list[str]:
    """Return the parts of a shard that are not there in the recorded size."""
    return [part.name for part in record.parts if (folder / part.name).size() != part.bytes]


def find_record(folder: Location, shard: Shard) -> ShardRecord | None:
    """Return the record of a shard that is finished, with all its parts there."""
    file = record_file(folder, shard)
    if file.size() is None:
        return None
    record = ShardRecord.read(file.read_bytes(), str(file))
    return None if missing_parts(folder, record) else record


def execute_shard(stage: Stage, worker: Worker, folder: Location, shard: Shard) -> ShardOutcome:
    """Run one shard and write its parts, then its record.

    Errors are returned, not raised, but for the one that only a new worker can mend.

    Raises:
        EngineDiedError: If the worker lost the engine it works with.
    """
    sink = Sink(folder, stage.name, shard.start, shard.stop, stage.check_schema)
    started = time.monotonic()
    try:
        worker(shard, sink)
        units = stage.item_weight(shard.start, shard.stop)
        record = sink.finish(time.monotonic() - started, units)
        record_file(folder, shard).write_bytes(record.model_dump_json().encode())
    except BaseException as error:
        sink.abort()
        if isinstance(error, EngineDiedError) or not isinstance(error, (Exception, SystemExit)):
            raise
        return failed_outcome(shard, error)
    return ShardOutcome(shard, record)


class ShardRunner:
    """Runs shards with one worker, which is made for the first shard and again when it dies."""

    def __init__(
        self,
        stage: Stage,
        folder: Location,
        session: str,
        on_load: Callable[[float], None] = lambda seconds: None,
        here: Whereabouts | None = None,
    ) -> None:
        """Run shards of a stage; deaths count together within a session, and only there.

        ``on_load`` hears how many seconds it took to make a worker. ``here`` is where this runner
        is, so that a lost node is told from work that kills.
        """
        self._stage, self._folder, self._on_load = stage, folder, on_load
        self._here = here
        self._attempts = folder / ATTEMPTS_FOLDER / session
        self._killers = KillerBook(self._attempts / KILLERS_FOLDER)
        self._worker: Worker | None = None

    def run(self, shard: Shard) -> ShardOutcome:
        """Bring a shard to its outcome; errors are returned, not raised."""
        try:
            name = f"{shard_name(shard.start, shard.stop)}.json"
            log = AttemptLog(self._attempts / name, self._here)
            record = find_record(self._folder, shard)
            if record is not None:  # its worker was lost before the driver had heard of it
                log.close()
                return ShardOutcome(shard, record, cause="killed" if log.was_left_in(LAST) else "")
            outcome: ShardOutcome | None = None
            while outcome is None:
                try:
                    outcome = self._attempt(shard, log)
                except EngineDiedError:  # noted in the log, which decides what is done next
                    self._worker = None
            log.close()
        except Exception as error:  # noqa: BLE001  (the run directory's; the driver decides)
            return failed_outcome(shard, error)
        return replace(outcome, shard=shard)

    def _attempt(self, shard: Shard, log: AttemptLog) -> ShardOutcome:
        """Go on with a shard from where its log ends."""
        if log.deaths(LOAD) >= MAX_DEATHS:
            return self._give_up(shard, log, "start", "was killed while it was being made")
        try:
            worker = self._ready_worker(log)
        except EngineDiedError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the driver decides)
            return failed_outcome(shard, error, "start")
        if log.deaths(WHOLE) >= MAX_DEATHS:
            return self._run_without_killers(shard, worker, log)
        rows = self._stage.row_numbers(shard.start, shard.stop)
        skip = self._stage.condemned_with(self._killers.read(), rows)
        with log.step(WHOLE):
            return execute_shard(self._stage, worker, self._folder, replace(shard, skip=skip))

    def _ready_worker(self, log: AttemptLog) -> Worker:
        if self._worker is None:
            started = time.monotonic()
            with log.step(LOAD):
                self._worker = self._stage.make_worker()
            self._on_load(time.monotonic() - started)
        return self._worker

    def _run_without_killers(self, shard: Shard, worker: Worker, log: AttemptLog) -> ShardOutcome:
        """Search the rows that kill, then run the shard without them."""
        stage = self._stage
        items = [stage.row_numbers(at, at + 1) for at in range(shard.start, shard.stop)]
        while True:
            killers = find_killers(items, log)
            if killers and not stage.divisible:
                what = f"was killed by items {killers[0]}..{killers[0] + 1} alone"
                return self._give_up(shard, log, "killed", what)
            hopeless = hopeless_items(items, killers, log)
            skip = self._rows_to_skip(items, killers, hopeless)
            suspect = next_suspect(items, skip, log)
            if suspect is None:
                break
            if log.num_deaths >= MAX_SEARCH_DEATHS:
                what = "was killed by more and more of its rows, so it is hardly the rows"
                return self._give_up(shard, log, "killed", what)
            self._probe(shard, suspect, skip, worker, log)
        if log.deaths(LAST) >= MAX_DEATHS:
            what = "was killed by the whole, though it went well with each part"
            return self._give_up(shard, log, "killed", what)
        self._killers.add(shard_name(shard.start, shard.stop), _outside(hopeless, killers))
        with log.step(LAST):
            outcome = execute_shard(stage, worker, self._folder, replace(shard, skip=skip))
        return replace(outcome, cause="killed")

    def _rows_to_skip(
        self, items: Sequence[range], killers: Sequence[int], hopeless: Sequence[range]
    ) -> Mapping[int, str]:
        """Return the rows not to run, each with the reason: killers, and what stands with them."""
        rows = range(items[0].start, items[-1].stop)
        # An item that kills as a whole accuses what its rows share, not each row.
        accused = [*self._killers.read(), *_outside(hopeless, killers)]
        skip = dict(self._stage.condemned_with(accused, rows))
        for item in hopeless:
            skip |= dict.fromkeys(item, HOPELESS_ITEM)
        return skip | dict.fromkeys(killers, KILLED_ALONE)

    def _probe(
        self, shard: Shard, rows: range, skip: Mapping[int, str], worker: Worker, log: AttemptLog
    ) -> None:
        """Try some rows of a shard alone; nothing of it is kept."""
        stage = self._stage
        part = (
            replace(shard, rows=rows, skip=skip)
            if stage.divisible
            else Shard(rows.start, rows.stop)
        )
        sink = Sink(self._folder, stage.name, shard.start, shard.stop, stage.check_schema)
        try:
            with log.probe(rows):
                worker(part, sink)
        finally:
            sink.abort()

    def _give_up(self, shard: Shard, log: AttemptLog, cause: Cause, what: str) -> ShardOutcome:
        last_words = f" The engine's last words: {log.last_words}" if log.last_words else ""
        error = StageError(
            f"the worker of items {shard.start}..{shard.stop} {what} ({log.num_deaths} deaths). "
            f"Most often that is memory: {self._stage.memory_advice}.{last_words}"
        )
        return failed_outcome(shard, error, cause)


def _outside(items: Sequence[range], rows: Sequence[int]) -> list[int]:
    return [row for row in rows if not any(row in item for item in items)]


def describe_outcome(outcome: ShardOutcome) -> dict[str, Any]:
    """Write an outcome as a flat row of strings and numbers."""
    return {
        "start": outcome.shard.start,
        "stop": outcome.shard.stop,
        "record": "" if outcome.record is None else outcome.record.model_dump_json(),
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "error_trace": outcome.error_trace,
        "cause": outcome.cause,
    }


def parse_outcome(row: dict[str, Any]) -> ShardOutcome:
    """Read what ``describe_outcome`` wrote."""
    record = ShardRecord.model_validate_json(row["record"]) if row["record"] else None
    return ShardOutcome(
        Shard(int(row["start"]), int(row["stop"])),
        record,
        row["error_type"],
        row["error_message"],
        row["error_trace"],
        row["cause"],
    )
