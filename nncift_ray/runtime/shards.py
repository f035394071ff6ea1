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

from nncift_ray.errors import EngineDiedError, StageError, redact
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
    """Runs shards with one worker, which is made for the first shard and again when it dies.

    It is one for a process that has to last; others override what is known of their place.
    """

    node = ""  # that this process is on
    #: Whether another process takes its place when it leaves. An engine that died is then never
    #: made anew beside what is left of it.
    replaceable = False
    pause = staticmethod(time.sleep)

    def __init__(self, stage: Stage, folder: Location, session: str) -> None:
        """Run shards of a stage in its folder.

        Deaths count together within a session, which names the run of the driver, and only there.
        """
        self._stage, self._folder = stage, folder
        self._attempts = folder / ATTEMPTS_FOLDER / session
        self._worker: Worker | None = None
        self._log: CrashLog  # of the present shard

    def is_gone(self, node: str) -> bool:
        """Whether a node is not up any more."""
        return False

    def has_other_place(self) -> bool:
        """Whether another node could hold such a worker."""
        return False

    def leave(self) -> None:
        """End this process, where it is ``replaceable``."""

    def make_worker(self) -> Worker:
        """Load what works on shards."""
        return self._stage.make_worker()

    def run(self, shard: Shard) -> ShardOutcome:
        """Bring a shard to its outcome; errors are returned, not raised."""
        try:
            file = self._attempts / f"{shard_name(shard.start, shard.stop)}.json"
            self._log = CrashLog(file, self.node, self.is_gone)
            record = find_record(self._folder, shard)
            if record is not None:  # its worker was lost before the driver had heard of it
                cause: Cause = "killed" if self._log.was_left_in(LAST) else ""
                outcome = ShardOutcome(
                    start=shard.start, stop=shard.stop, record=record, cause=cause
                )
            else:
                outcome = self._run_until_done(shard)
            self._log.close()
        except Exception as error:  # noqa: BLE001  (the run directory's; the driver decides)
            return failed_outcome(shard, error)
        return outcome

    def execute(self, shard: Shard, cause: Cause = "") -> ShardOutcome:
        """Run a shard and write its parts, then its record.

        Errors are returned, not raised, but for the one that only a new worker can mend.

        Raises:
            EngineDiedError: If the worker lost the engine it works with.
        """
        stage, started = self._stage, time.monotonic()
        sink = Sink(self._folder, stage.name, shard.start, shard.stop, stage.check_schema)
        try:
            self._work(shard, sink)
            units = stage.item_weight(shard.start, shard.stop)
            record = sink.finish(time.monotonic() - started, units)
            record_file(self._folder, shard).write_bytes(record.model_dump_json().encode())
        except BaseException as error:
            sink.abort()
            if isinstance(error, EngineDiedError) or not isinstance(error, (Exception, SystemExit)):
                raise
            return failed_outcome(shard, error, cause)
        return ShardOutcome(start=shard.start, stop=shard.stop, record=record, cause=cause)

    def _work(self, shard: Shard, sink: Sink) -> None:
        """Have the worker do a shard; end this process where it finishes no row for too long."""
        if self._worker is None:
            self._worker = self.make_worker()
        if not (self.replaceable and self._stage.divisible):
            self._worker(shard, sink)
            return
        limit = self._stage.resources.row_timeout

        def look() -> bool:
            hangs = time.monotonic() - sink.last_change > limit
            if hangs:
                self._log.note_hang(limit)
                self.leave()
            return hangs

        with looking("finished rows", limit / LOOKS_A_LIMIT, look):
            self._worker(shard, sink)

    def _run_until_done(self, shard: Shard) -> ShardOutcome:
        while True:
            try:
                return self._attempt(shard)
            except EngineDiedError:  # noted in the log, which decides what is done next
                self._worker = None
                if self.replaceable:
                    self.leave()

    def _attempt(self, shard: Shard) -> ShardOutcome:
        """Go on with a shard from where its log ends."""
        log = self._log
        if log.deaths(LOAD) >= MAX_DEATHS:
            outcome = self._give_up(shard, "start", "was killed while it was being made")
            return self._blame_node(outcome, log.only_node(LOAD))
        try:
            if self._worker is None:
                with log.step(LOAD):
                    self._worker = self.make_worker()
        except EngineDiedError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the driver decides)
            return self._blame_node(failed_outcome(shard, error, "start"), self.node)
        if log.deaths(WHOLE) >= MAX_DEATHS:
            return self._run_without_poison(shard)
        rows = self._stage.row_numbers(shard.start, shard.stop)
        skip = self._stage.rows_to_quarantine(self._known_poison(), rows)
        with log.step(WHOLE):
            return self.execute(replace(shard, skip=skip))

    def _blame_node(self, outcome: ShardOutcome, node: str) -> ShardOutcome:
        """Make a failure to load the node's where only this one failed and others could load."""
        folder = self._folder / ATTEMPTS_FOLDER / NODES_FOLDER
        if not node or not self.node:
            return outcome
        (folder / node).write_bytes(outcome.error_message.encode())
        if len(folder.list_files()) >= MAX_UNFIT_NODES or not self.has_other_place():
            return outcome
        self.pause(UNFIT_PAUSE_SECONDS)
        return outcome.model_copy(update={"cause": "node", "node": node})

    def _run_without_poison(self, shard: Shard) -> ShardOutcome:
        """Find the rows that kill, then run the shard without them."""
        find = self._poison_rows if self._stage.divisible else self._poison_items
        try:
            skip = find(shard)
        except _GiveUpError as reason:
            return self._give_up(shard, "killed", str(reason))
        if self._log.deaths(LAST) >= MAX_DEATHS:
            what = "was killed by the whole, though it went well with each part"
            return self._give_up(shard, "killed", what)
        with self._log.step(LAST):
            return self.execute(replace(shard, skip=skip), "killed")

    def _poison_items(self, shard: Shard) -> Mapping[int, str]:
        """Try each item alone; an item that kills cannot be left out."""
        for item in range(shard.start, shard.stop):
            if self._kills_alone(item, Shard(item, item + 1)):
                raise _GiveUpError(f"was killed by items {item}..{item + 1} alone")
        return {}

    def _poison_rows(self, shard: Shard) -> Mapping[int, str]:
        """Try each row alone; return the rows to leave out, each with the message of its error."""
        stage, log = self._stage, self._log
        rows = stage.row_numbers(shard.start, shard.stop)
        skip: dict[int, str] = {}
        accusing: list[int] = []
        known = self._known_poison()
        for item in range(shard.start, shard.stop):
            item_rows = stage.row_numbers(item, item + 1)
            quarantined = stage.rows_to_quarantine([*known, *accusing], rows)
            poison: list[int] = []
            for row in item_rows:
                alone = replace(shard, rows=range(row, row + 1))
                if row not in quarantined and self._kills_alone(row, alone):
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

    def _kills_alone(self, number: int, part: Shard) -> bool:
        """Say whether a row or item kills; try it alone if that is not known. Nothing is kept.

        Raises:
            EngineDiedError: If it kills the worker's engine now.
        """
        log, stage = self._log, self._stage
        if number in log.survivors:
            return False
        if log.deaths(str(number)) >= MAX_DEATHS:
            return True
        if log.num_deaths >= MAX_SHARD_DEATHS:
            raise _GiveUpError("was killed by more and more of its rows, so it is hardly the rows")
        sink = Sink(self._folder, stage.name, part.start, part.stop, stage.check_schema)
        try:
            with log.step(str(number)):
                try:
                    self._work(part, sink)
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

    def _give_up(self, shard: Shard, cause: Cause, what: str) -> ShardOutcome:
        log = self._log
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
