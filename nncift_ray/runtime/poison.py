"""Which rows kill their worker: what was tried, what came of it, and what to try next.

A killed process leaves no exception, only a step that began and never ended. So every step taken on
a shard is written down before it begins, in a file that outlives the worker; whoever works on the
shard next reads there who died of what, and where: a worker whose node is gone was most likely lost
with it, whatever it worked on. Rows are the stage's row numbers (``Stage.row_numbers``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass

from nncift_ray.errors import EngineDiedError
from nncift_ray.runtime.files import Location

LOAD, WHOLE, LAST = "load", "whole", "last"
#: One death may be anything. A worker that dies twice of the same work dies of it.
MAX_DEATHS = 2
#: So many workers lost with their nodes count as one death: spot nodes go by the dozen, but work
#: that takes its machine with it has to come to an end as well.
LOSSES_PER_DEATH = 5
#: After so many rows of an item have killed, and none has survived, the rest is not tried.
MAX_KILLERS_OF_AN_ITEM = 4
#: Each costs a worker's start; a search that needs more is not about a few rows.
MAX_SEARCH_DEATHS = 100


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The node a worker is on, and whether a node is gone; by default one that never is."""

    node: str = ""
    is_gone: Callable[[str], bool] = lambda node: False


class AttemptLog:
    """The steps taken on one shard and what came of them."""

    def __init__(self, file: Location, here: Whereabouts | None = None) -> None:
        """Read the file if there is one; in a step that is still open there a worker died."""
        self._file, self._here = file, here or Whereabouts()
        self._died_on: dict[str, list[str]] = {}  # step -> the node of each death
        self._gone: set[str] = set()
        self._survived: list[tuple[int, int]] = []
        self.last_words = ""
        if file.size() is not None:
            state = json.loads(file.read_bytes())
            self._died_on = state["died_on"]
            self._died_on.setdefault(state["open"], []).append(state["node"])
            nodes = {node for died_on in self._died_on.values() for node in died_on}
            # Asked each time, since a node may be found to be gone only later.
            self._gone = {node for node in nodes if self._here.is_gone(node)}
            self._survived = [(start, stop) for start, stop in state["survived"]]
            self.last_words = state["last_words"]

    @contextlib.contextmanager
    def step(self, name: str) -> Generator[None]:
        """Take a step; if the body never ends, or its engine dies, that is a death in it.

        Raises:
            EngineDiedError: What the body raised of that kind.
        """
        state = {
            "open": name,
            "node": self._here.node,
            "died_on": self._died_on,
            "survived": self._survived,
            "last_words": self.last_words,
        }
        self._file.write_bytes(json.dumps(state).encode())
        try:
            yield
        except EngineDiedError as error:
            self._died_on.setdefault(name, []).append(self._here.node)
            self.last_words = str(error)
            raise
        # What ends is not what kills: a machine was lost, or another step died.
        self._died_on.pop(name, None)

    @contextlib.contextmanager
    def probe(self, rows: range) -> Generator[None]:
        """Try some rows alone; an ordinary error is no death, and is for the last step to tell.

        Raises:
            EngineDiedError: What the body raised of that kind.
        """
        with self.step(_probe_name(rows)):
            try:
                yield
            except EngineDiedError:
                raise
            except (Exception, SystemExit):  # noqa: BLE001, S110  (the rows killed nobody)
                pass
        self._survived.append((rows.start, rows.stop))

    def deaths(self, step: str) -> int:
        """How many workers died in a step; of those lost with their node, one in a few counts."""
        died_on = self._died_on.get(step, [])
        num_lost = sum(node in self._gone for node in died_on)
        return len(died_on) - num_lost + num_lost // LOSSES_PER_DEATH

    def was_left_in(self, step: str) -> bool:
        """Whether a worker was lost in a step, whoever is to blame."""
        return step in self._died_on

    def probe_deaths(self, rows: range) -> int:
        """How many workers died when these rows were tried alone."""
        return self.deaths(_probe_name(rows))

    @property
    def num_deaths(self) -> int:
        """How many workers died of this shard, in steps that nobody has ended since."""
        return sum(map(self.deaths, self._died_on))

    @property
    def survived(self) -> list[range]:
        """What was tried alone and killed nobody."""
        return [range(start, stop) for start, stop in self._survived]

    def close(self) -> None:
        """Forget everything: the shard has its outcome."""
        self._file.delete()


def _probe_name(rows: range) -> str:
    return f"{rows.start}-{rows.stop}"


def find_killers(items: Sequence[range], log: AttemptLog) -> list[int]:
    """Return the rows of a shard that killed their worker when nothing else was tried.

    One death accuses a range of rows; a single row is a killer after ``MAX_DEATHS``.
    """
    rows = range(items[0].start, items[-1].stop)
    if len(rows) == 1:
        return [rows.start] if log.deaths(WHOLE) >= MAX_DEATHS else []
    return [row for row in rows if log.probe_deaths(range(row, row + 1)) >= MAX_DEATHS]


def next_suspect(items: Sequence[range], skip: Collection[int], log: AttemptLog) -> range | None:
    """Return which rows of a shard that kills to try alone next, or None when all is known.

    What killed is halved, between items as long as it has several, and both halves are tried, the
    left one first and to its end.

    Args:
        items: The rows of each item of the shard, which as a whole killed ``MAX_DEATHS`` workers.
        skip: Rows that will not be run whatever comes of it, the killers among them.
        log: What was tried so far.
    """
    rows = range(items[0].start, items[-1].stop)
    survived = set(log.survived)
    pending = [rows]
    while pending:
        suspect = pending.pop()
        if suspect in survived or all(row in skip for row in suspect):
            continue
        if suspect != rows and (len(suspect) == 1 or not log.probe_deaths(suspect)):
            return suspect
        pending += _halves(suspect, items)
    return None


def _halves(rows: range, items: Sequence[range]) -> list[range]:
    """Return the halves of a range, the left one last, where ``pop`` takes it first."""
    middle = (rows.start + rows.stop) // 2
    edges = [item.start for item in items if rows.start < item.start < rows.stop]
    cut = min(edges, key=lambda edge: abs(edge - middle)) if edges else middle
    return [range(cut, rows.stop), range(rows.start, cut)]


def hopeless_items(items: Sequence[range], killers: Sequence[int], log: AttemptLog) -> list[range]:
    """Return the items of which several rows killed and none is known to survive."""
    survived = log.survived
    return [
        item
        for item in items
        if sum(row in item for row in killers) >= MAX_KILLERS_OF_AN_ITEM
        and not any(item.start < rows.stop and rows.start < item.stop for rows in survived)
    ]


class KillerBook:
    """The rows that a session's shards found to kill, for its other shards to know."""

    def __init__(self, folder: Location) -> None:
        """Keep one file a shard in a folder."""
        self._folder = folder
        self._rows: dict[str, list[int]] = {}

    def add(self, shard: str, rows: Sequence[int]) -> None:
        """Enter the killers of a shard, if there are any."""
        if rows:
            (self._folder / f"{shard}.json").write_bytes(json.dumps(list(rows)).encode())

    def read(self) -> list[int]:
        """Return all killers entered so far."""
        for file in self._folder.list_files():
            if file.name.endswith(".json") and file.name not in self._rows:
                self._rows[file.name] = json.loads(file.read_bytes())
        return sorted(row for rows in self._rows.values() for row in rows)
