"""One shard, brought to its outcome by one worker: also where rows of it kill the worker.

A killed process leaves no exception, only a step that began and never ended. So each step taken on
a shard is written to a crash log before it begins; whoever works on the shard next reads there who
died of what, and where: a worker whose node is gone was most likely lost with it, whatever it
worked on. A shard that lost its worker twice is run row by row (item by item where the stage is not
``divisible``) to find the rows that kill; they become rows of the errors table, and the rest is
computed as in any other shard. A worker that finishes no row for too long is ended, which is a
death like any other.

A node that cannot load a worker is left to others: what fails on one node fails of the node, what
fails on two is the user's to mend.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nncift_ray.errors import EngineDiedError, StageError
from nncift_ray.recipe.secrets import redact
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import SHARD_FOLDER, ShardRecord, Sink, shard_name
from nncift_ray.runtime.step import Shard, Stage, Worker

ATTEMPTS_FOLDER = "attempts"
POISON_FOLDER = "poison"
#: Steps of a shard; a row or item that is tried alone is a step by its number.
LOAD, WHOLE, LAST = "load", "whole", "last"
#: One death may be anything. A worker that dies twice of the same work dies of it.
MAX_DEATHS = 2
#: So many workers lost with their nodes count as one death: spot nodes go by the dozen, but work
#: that takes its machine with it has to come to an end as well.
LOSSES_PER_DEATH = 5
#: After so many rows of an item have killed, and none has survived, the rest is not tried.
MAX_POISON_OF_AN_ITEM = 4
#: Each costs a worker's start; a shard that needs more is not about a few rows.
MAX_SHARD_DEATHS = 100
#: Distinct nodes that cannot load a worker make it the user's error.
MAX_UNFIT_NODES = 2
#: Before an actor on an unfit node gives its shard back, so that it does not go through them all.
UNFIT_PAUSE_SECONDS = 30.0
LOOKS_A_LIMIT = 50  # at how long no row was finished
NODES_FOLDER = "nodes"  # below the attempts, of one run of the driver
KILLED_ALONE = f"its worker was killed {MAX_DEATHS} times with nothing but this row to do"
HUNG_ALONE = (
    f"its worker finished nothing in {{:g}} s, {MAX_DEATHS} times, with only this row to do"
)
POISONED_ITEM = (
    f"the first {MAX_POISON_OF_AN_ITEM} rows of its group each killed their worker alone, so the "
    "rest of the group was not tried"
)

#: "": nothing special. "start": no worker could be made. "node": none could be made on this node,
#: and others are to try. "killed": the shard killed its workers; it has a record if it could be run
#: without some of its rows.
Cause = Literal["", "start", "node", "killed"]


class ShardOutcome(BaseModel):
    """What came of the items [start, stop): their record, or the error that stopped them."""

    model_config = ConfigDict(frozen=True)

    start: int
    stop: int
    record: ShardRecord | None = None
    error_type: str = ""
    error_message: str = ""
    error_trace: str = ""
    cause: Cause = ""
    node: str = ""  # which could not load a worker


def failed_outcome(shard: Shard, error: BaseException, cause: Cause = "") -> ShardOutcome:
    """Describe an error so that it can cross a process boundary, without secrets it may quote."""
    return ShardOutcome(
        start=shard.start,
        stop=shard.stop,
        error_type=type(error).__name__,
        error_message=redact(str(error)),
        error_trace=redact("".join(traceback.format_exception(error))),
        cause=cause,
    )


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


#: Watches over what is put into a sink.
@contextlib.contextmanager
def looking(name: str, every_seconds: float, look: Callable[[], bool]) -> Generator[None]:
    """Call ``look`` now and then, from a thread of that name, until it returns True."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every_seconds):
            if look():
                return

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


Guard = Callable[[Sink], contextlib.AbstractContextManager[None]]


def execute_shard(
    stage: Stage,
    worker: Worker,
    folder: Location,
    shard: Shard,
    cause: Cause = "",
    guard: Guard = contextlib.nullcontext,
) -> ShardOutcome:
    """Run one shard and write its parts, then its record.

    Errors are returned, not raised, but for the one that only a new worker can mend.

    Raises:
        EngineDiedError: If the worker lost the engine it works with.
    """
    sink = Sink(folder, stage.name, shard.start, shard.stop, stage.check_schema)
    started = time.monotonic()
    try:
        with guard(sink):
            worker(shard, sink)
        units = stage.item_weight(shard.start, shard.stop)
        record = sink.finish(time.monotonic() - started, units)
        record_file(folder, shard).write_bytes(record.model_dump_json().encode())
    except BaseException as error:
        sink.abort()
        if isinstance(error, EngineDiedError) or not isinstance(error, (Exception, SystemExit)):
            raise
        return failed_outcome(shard, error, cause)
    return ShardOutcome(start=shard.start, stop=shard.stop, record=record, cause=cause)


class CrashLog:
    """The steps taken on one shard and what came of them, in a file that outlives its workers."""

    def __init__(
        self, file: Location, node: str = "", is_gone: Callable[[str], bool] = lambda node: False
    ) -> None:
        """Read the file if there is one; in a step that is still open there a worker died.

        Args:
            file: Where it lies.
            node: The node that this worker is on.
            is_gone: Whether a node is not up any more.
        """
        self._file, self._node = file, node
        self._died_on: dict[str, list[str]] = {}  # step -> the node of each death
        self._gone: set[str] = set()
        self._open = ""
        self.survivors: list[int] = []  # rows or items that went well alone
        self.hung: list[str] = []  # steps in which no row was finished for too long
        self.last_words = ""
        if file.size() is not None:
            state = json.loads(file.read_bytes())
            self._died_on = state["died_on"]
            self._died_on.setdefault(state["open"], []).append(state["node"])
            # Asked each time, since a node may be found to be gone only later.
            nodes = {node for died_on in self._died_on.values() for node in died_on}
            self._gone = {node for node in nodes if is_gone(node)}
            self.survivors, self.hung = state["survivors"], state["hung"]
            self.last_words = state["last_words"]

    @contextlib.contextmanager
    def step(self, name: str) -> Generator[None]:
        """Take a step; if the body never ends, or its engine dies, that is a death in it.

        Raises:
            EngineDiedError: What the body raised of that kind.
        """
        self._open = name
        self._write()
        try:
            yield
        except EngineDiedError as error:
            self.last_words = str(error)
            self._write()  # before the death is counted: the open step of the file is one
            self._died_on.setdefault(name, []).append(self._node)
            raise
        # What ends is not what kills: a machine was lost, or another step died.
        self._died_on.pop(name, None)

    def note_hang(self, seconds: float) -> None:
        """Record that the open step hangs; its process is about to be ended."""
        self.hung.append(self._open)
        self.last_words = f"no row was finished for {seconds:g} s"
        self._write()

    def _write(self) -> None:
        state = {
            "open": self._open,
            "node": self._node,
            "died_on": self._died_on,
            "survivors": self.survivors,
            "hung": self.hung,
            "last_words": self.last_words,
        }
        self._file.write_bytes(json.dumps(state).encode())

    def only_node(self, step: str) -> str:
        """Return the node on which all workers died in a step; "" if there were several."""
        nodes = set(self._died_on.get(step, []))
        return nodes.pop() if len(nodes) == 1 else ""

    def deaths(self, step: str) -> int:
        """How many workers died in a step; of those lost with their node, one in a few counts."""
        died_on = self._died_on.get(step, [])
        num_lost = sum(node in self._gone for node in died_on)
        return len(died_on) - num_lost + num_lost // LOSSES_PER_DEATH

    def survivors_in(self, rows: range) -> int:
        """How many of some rows went well alone."""
        return sum(row in rows for row in self.survivors)

    def was_left_in(self, step: str) -> bool:
        """Whether a worker was lost in a step, whatever the reason."""
        return step in self._died_on

    @property
    def num_deaths(self) -> int:
        """How many workers died of the shard, in whatever step."""
        return sum(self.deaths(step) for step in self._died_on)

    def close(self) -> None:
        """Delete the file: the shard has its outcome."""
        self._file.delete()


class ShardRunner:
    """Runs shards with one worker, which is made for the first shard and again when it dies."""

    def __init__(
        self,
        stage: Stage,
        folder: Location,
        session: str,
        *,
        node: str = "",
        is_gone: Callable[[str], bool] = lambda node: False,
        has_other_place: Callable[[], bool] = lambda: False,
        leave: Callable[[], None] | None = None,
        on_begin: Callable[[], None] = lambda: None,
        on_load: Callable[[float], None] = lambda seconds: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Run shards of a stage; deaths count together within a session, and only there.

        Args:
            stage: The stage.
            folder: Its folder.
            session: Names the run of the driver.
            node: The node that this process is on.
            is_gone: Whether a node is not up any more.
            has_other_place: Whether another node could hold such a worker.
            leave: Ends this process, which another one then replaces; None where it must last.
                An engine that died is never made anew beside what is left of it where there is one.
            on_begin: Called when work on a shard begins.
            on_load: Called with the seconds that it took to make a worker.
            pause: Waits for so many seconds.
        """
        self._stage, self._folder = stage, folder
        self._attempts = folder / ATTEMPTS_FOLDER / session
        self._node, self._is_gone = node, is_gone
        self._has_other_place, self._leave, self._pause = has_other_place, leave, pause
        self._on_begin, self._on_load = on_begin, on_load
        self._worker: Worker | None = None

    def run(self, shard: Shard) -> ShardOutcome:
        """Bring a shard to its outcome; errors are returned, not raised."""
        self._on_begin()
        try:
            file = self._attempts / f"{shard_name(shard.start, shard.stop)}.json"
            log = CrashLog(file, self._node, self._is_gone)
            record = find_record(self._folder, shard)
            if record is not None:  # its worker was lost before the driver had heard of it
                cause: Cause = "killed" if log.was_left_in(LAST) else ""
                outcome = ShardOutcome(
                    start=shard.start, stop=shard.stop, record=record, cause=cause
                )
            else:
                outcome = self._run_until_done(shard, log)
            log.close()
        except Exception as error:  # noqa: BLE001  (the run directory's; the driver decides)
            return failed_outcome(shard, error)
        return outcome

    def _run_until_done(self, shard: Shard, log: CrashLog) -> ShardOutcome:
        while True:
            try:
                return self._attempt(shard, log)
            except EngineDiedError:  # noted in the log, which decides what is done next
                self._worker = None
                if self._leave is not None:
                    self._leave()

    def _attempt(self, shard: Shard, log: CrashLog) -> ShardOutcome:
        """Go on with a shard from where its log ends."""
        if log.deaths(LOAD) >= MAX_DEATHS:
            outcome = self._give_up(shard, log, "start", "was killed while it was being made")
            return self._blame_node(outcome, log.only_node(LOAD))
        try:
            worker = self._ready_worker(log)
        except EngineDiedError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the driver decides)
            return self._blame_node(failed_outcome(shard, error, "start"), self._node)
        if log.deaths(WHOLE) >= MAX_DEATHS:
            return self._run_without_poison(shard, worker, log)
        rows = self._stage.row_numbers(shard.start, shard.stop)
        skip = self._stage.rows_to_quarantine(self._known_poison(), rows)
        with log.step(WHOLE):
            whole = replace(shard, skip=skip)
            return execute_shard(
                self._stage, worker, self._folder, whole, guard=self._guard_of(log)
            )

    def _blame_node(self, outcome: ShardOutcome, node: str) -> ShardOutcome:
        """Make a failure to load the node's where only this one failed and others could load."""
        folder = self._folder / ATTEMPTS_FOLDER / NODES_FOLDER
        if not node or not self._node:
            return outcome
        (folder / node).write_bytes(outcome.error_message.encode())
        if len(folder.list_files()) >= MAX_UNFIT_NODES or not self._has_other_place():
            return outcome
        self._pause(UNFIT_PAUSE_SECONDS)
        return outcome.model_copy(update={"cause": "node", "node": node})

    def _guard_of(self, log: CrashLog) -> Guard:
        """Return what ends this process where a step of the log finishes no row for too long."""
        limit, leave = self._stage.resources.row_timeout, self._leave
        if leave is None or not self._stage.divisible:
            return contextlib.nullcontext

        def guard(sink: Sink) -> contextlib.AbstractContextManager[None]:
            def look() -> bool:
                hangs = time.monotonic() - sink.last_change > limit
                if hangs:
                    log.note_hang(limit)
                    leave()
                return hangs

            return looking("finished rows", limit / LOOKS_A_LIMIT, look)

        return guard

    def _ready_worker(self, log: CrashLog) -> Worker:
        if self._worker is None:
            started = time.monotonic()
            with log.step(LOAD):
                self._worker = self._stage.make_worker()
            self._on_load(time.monotonic() - started)
        return self._worker

    def _run_without_poison(self, shard: Shard, worker: Worker, log: CrashLog) -> ShardOutcome:
        """Find the rows that kill, then run the shard without them."""
        find = self._poison_rows if self._stage.divisible else self._poison_items
        try:
            skip = find(shard, worker, log)
        except _GiveUpError as reason:
            return self._give_up(shard, log, "killed", str(reason))
        if log.deaths(LAST) >= MAX_DEATHS:
            what = "was killed by the whole, though it went well with each part"
            return self._give_up(shard, log, "killed", what)
        with log.step(LAST):
            whole = replace(shard, skip=skip)
            return execute_shard(
                self._stage, worker, self._folder, whole, "killed", self._guard_of(log)
            )

    def _poison_items(self, shard: Shard, worker: Worker, log: CrashLog) -> Mapping[int, str]:
        """Try each item alone; an item that kills cannot be left out."""
        for item in range(shard.start, shard.stop):
            if self._kills_alone(item, Shard(item, item + 1), worker, log):
                raise _GiveUpError(f"was killed by items {item}..{item + 1} alone")
        return {}

    def _poison_rows(self, shard: Shard, worker: Worker, log: CrashLog) -> Mapping[int, str]:
        """Try each row alone; return the rows to leave out, each with the message of its error."""
        stage, rows = self._stage, self._stage.row_numbers(shard.start, shard.stop)
        skip: dict[int, str] = {}
        accusing: list[int] = []
        known = self._known_poison()
        for item in range(shard.start, shard.stop):
            item_rows = stage.row_numbers(item, item + 1)
            quarantined = stage.rows_to_quarantine([*known, *accusing], rows)
            poison: list[int] = []
            for row in item_rows:
                alone = replace(shard, rows=range(row, row + 1))
                if row not in quarantined and self._kills_alone(row, alone, worker, log):
                    poison.append(row)
                    quarantined = stage.rows_to_quarantine([*known, *accusing, *poison], rows)
                    if len(poison) == MAX_POISON_OF_AN_ITEM and log.survivors_in(item_rows) == 0:
                        break
            if len(poison) >= MAX_POISON_OF_AN_ITEM and log.survivors_in(item_rows) == 0:
                # It is what the rows share that kills, so they accuse no other row.
                skip |= dict.fromkeys(item_rows, POISONED_ITEM)
            else:
                accusing += poison
            for row in poison:
                is_hung = str(row) in log.hung
                limit = stage.resources.row_timeout
                skip[row] = HUNG_ALONE.format(limit) if is_hung else KILLED_ALONE
        self._remember_poison(shard, accusing)
        return {**stage.rows_to_quarantine([*known, *accusing], rows), **skip}

    def _kills_alone(self, number: int, part: Shard, worker: Worker, log: CrashLog) -> bool:
        """Say whether a row or item kills; try it alone if that is not known. Nothing is kept.

        Raises:
            EngineDiedError: If it kills the worker's engine now.
        """
        if number in log.survivors:
            return False
        if log.deaths(str(number)) >= MAX_DEATHS:
            return True
        if log.num_deaths >= MAX_SHARD_DEATHS:
            raise _GiveUpError("was killed by more and more of its rows, so it is hardly the rows")
        stage = self._stage
        sink = Sink(self._folder, stage.name, part.start, part.stop, stage.check_schema)
        try:
            with log.step(str(number)):
                try:
                    with self._guard_of(log)(sink):
                        worker(part, sink)
                except EngineDiedError:
                    raise
                except (Exception, SystemExit):  # noqa: BLE001, S110  (it killed nobody)
                    pass
        finally:
            sink.abort()
        log.survivors.append(number)
        return False

    def _remember_poison(self, shard: Shard, rows: Sequence[int]) -> None:
        """Let the session's other shards know which rows kill."""
        if rows:
            name = f"{shard_name(shard.start, shard.stop)}.json"
            file = self._attempts / POISON_FOLDER / name
            file.write_bytes(json.dumps(list(rows)).encode())

    def _known_poison(self) -> list[int]:
        files = (self._attempts / POISON_FOLDER).list_files()
        found = (json.loads(file.read_bytes()) for file in files if file.name.endswith(".json"))
        return sorted(row for rows in found for row in rows)

    def _give_up(self, shard: Shard, log: CrashLog, cause: Cause, what: str) -> ShardOutcome:
        last_words = f" The engine's last words: {log.last_words}" if log.last_words else ""
        error = StageError(
            f"the worker of items {shard.start}..{shard.stop} {what} ({log.num_deaths} deaths). "
            f"Most often that is memory: {self._stage.memory_advice}.{last_words}"
        )
        return failed_outcome(shard, error, cause)


def describe_open_shards(folder: Location, session: str) -> list[str]:
    """Return what workers have begun and not ended, a phrase each, from the crash logs."""
    phrases: list[str] = []
    for file in (folder / ATTEMPTS_FOLDER / session).list_files():
        if file.name.endswith(".json"):
            state = json.loads(file.read_bytes())
            start, _, stop = file.name.removesuffix(".json").partition("-")
            phrases.append(
                f"items {int(start)}..{int(stop)} (step '{state['open']}' on node {state['node']})"
            )
    return phrases


class _GiveUpError(Exception):
    """Leaving rows out will not help; the message says why."""
