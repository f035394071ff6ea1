"""Whether a stage's actors have a place to be, and saying which resource is missing if not.

Ray waits for ever for a node that can hold an actor: right while an autoscaler may still bring one,
wrong where the recipe asks for what the cluster will never have.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import ray
from ray._private.state import state

from nncift_ray.errors import StageError
from nncift_ray.stages.driving.stage import Resources

POLL_SECONDS = 1.0
#: For threads to end in once their work is ended; less than what stopping leaves for all of it.
END_SECONDS = 2.0
ROUNDING = 1e-6  # Ray counts resources in units of 1e-4

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Node:
    """What a node that is up has in all, in use or not."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one actor asks of a node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]  # selectors

    @classmethod
    def of(cls, resources: Resources) -> Wanted:
        """Return it by Ray's names; what an actor asks nothing of is left out."""
        amounts = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
        asked = {name: amount for name, amount in amounts.items() if amount > 0}
        return cls(asked, resources.labels)

    def missing_on(self, node: Node) -> list[str]:
        """Return what keeps an actor off a node; empty where it has a place."""
        lacking = [
            f"{name} {amount:g}"
            for name, amount in self.resources.items()
            if node.resources.get(name, 0) + ROUNDING < amount
        ]
        return lacking + [
            f"label {key}: {selector}"
            for key, selector in self.labels.items()
            if not selects(selector, node.labels.get(key))
        ]


def selects(selector: str, value: str | None) -> bool:
    """Say whether a selector of Ray's takes a node whose label has a value, or is not there."""
    is_negated, choice = selector.startswith("!"), selector.removeprefix("!")
    is_list = choice.startswith("in(")
    values = choice[len("in(") : -1].split(",") if is_list else [choice]
    return (value in {each.strip() for each in values}) != is_negated


def alive_nodes() -> list[Node]:
    """Return the nodes that are up now and take work."""
    draining = state.get_draining_nodes()
    return [
        Node(node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def is_node_draining(node_id: str) -> bool:
    """Say whether a node takes no more work, since its machine is about to be taken away."""
    return node_id in state.get_draining_nodes()


def is_node_gone(node_id: str) -> bool:
    """Say whether a node is not up any more."""
    return all(node["NodeID"] != node_id for node in ray.nodes() if node["Alive"])


def find_missing(wanted: Wanted, nodes: Sequence[Node]) -> list[str]:
    """Return what keeps an actor off every node, as far as the best one; empty if one will do."""
    return min((wanted.missing_on(node) for node in nodes or [Node({})]), key=len)


def watch_placement(
    items: Iterable[Item],
    stage_name: str,
    resources: Resources,
    timeout_seconds: float,
    *,
    nodes: Callable[[], Sequence[Node]] = alive_nodes,
    clock: Callable[[], float] = time.monotonic,
    poll_seconds: float = POLL_SECONDS,
    end: Callable[[], None] | None = None,
) -> Iterator[Item]:
    """Pass items on as they come, and stop when no node could have held an actor for too long.

    Only the absence of a place counts, not slow work: as long as any node has what one actor asks
    for, waiting has no end.

    Args:
        items: What the actors give; read in a thread of its own.
        stage_name: For the message.
        resources: What one actor asks for.
        timeout_seconds: How long a place may be missing.
        nodes: Tells the nodes that are up.
        clock: Tells seconds.
        poll_seconds: Between two looks at the cluster.
        end: Makes ``items`` end; called, and the thread waited for, where the caller leaves early.

    Raises:
        StageError: If there was no place for ``timeout_seconds``, saying what is missing.
    """
    patience = _Patience(stage_name, Wanted.of(resources), timeout_seconds, nodes, clock)
    arrived: queue.Queue[_Arrival[Item]] = queue.Queue()
    left = threading.Event()
    reader = threading.Thread(
        target=_read, args=(items, arrived, left), name=f"outcomes of {stage_name}", daemon=True
    )
    reader.start()
    try:
        while True:
            try:
                arrival = arrived.get(timeout=poll_seconds)
            except queue.Empty:
                patience.check()
                continue
            if arrival.error is not None:
                raise arrival.error
            if arrival.is_end:
                return
            patience.renew()
            yield from arrival.items
    finally:
        left.set()
        if end is not None and reader.is_alive():
            end()
            reader.join(END_SECONDS)


def wait_for_place(
    stage_name: str,
    resources: Resources,
    timeout_seconds: float,
    *,
    nodes: Callable[[], Sequence[Node]] = alive_nodes,
    clock: Callable[[], float] = time.monotonic,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Return once a node could hold a worker; arguments and error as of ``watch_placement``."""
    patience = _Patience(stage_name, Wanted.of(resources), timeout_seconds, nodes, clock)
    while not patience.check():
        time.sleep(poll_seconds)


class _Patience:
    """Measures for how long there has been no place."""

    def __init__(
        self,
        stage_name: str,
        wanted: Wanted,
        timeout_seconds: float,
        nodes: Callable[[], Sequence[Node]],
        clock: Callable[[], float],
    ) -> None:
        self._stage_name, self._wanted, self._timeout = stage_name, wanted, timeout_seconds
        self._nodes, self._clock = nodes, clock
        self._last_place = clock()

    def renew(self) -> None:
        """Take note that an actor had a place just now."""
        self._last_place = self._clock()

    def check(self) -> bool:
        """Say whether a node could hold an actor; raise when none could for too long."""
        nodes = self._nodes()
        missing = find_missing(self._wanted, nodes)
        if not missing:
            self.renew()
            return True
        waited = self._clock() - self._last_place
        if waited >= self._timeout:
            raise StageError(_no_place(self._stage_name, self._wanted, nodes, waited))
        return False


@dataclass(frozen=True, slots=True)
class _Arrival(Generic[Item]):
    """What the reader hands over: an item, an error, or neither at the end."""

    items: tuple[Item, ...] = ()
    error: BaseException | None = None

    @property
    def is_end(self) -> bool:
        return not self.items


def _read(
    items: Iterable[Item], arrived: queue.Queue[_Arrival[Item]], left: threading.Event
) -> None:
    try:
        for item in items:
            arrived.put(_Arrival((item,)))
            if left.is_set():  # nobody waits any more, so the rest is not to be done
                return
    except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
        arrived.put(_Arrival(error=error))
        return
    arrived.put(_Arrival())


def _no_place(stage_name: str, wanted: Wanted, nodes: Sequence[Node], seconds: float) -> str:
    asked = [f"{name} {amount:g}" for name, amount in wanted.resources.items()]
    asked += [f"label {key}: {selector}" for key, selector in wanted.labels.items()]
    return (
        f"stage '{stage_name}': no node could hold an actor for {seconds:,.0f} s. Missing: "
        f"{', '.join(find_missing(wanted, nodes))}; an actor asks for {', '.join(asked)}; nodes "
        f"up: {len(nodes)}. Start such a node, let the autoscaler bring one (its group's "
        "max_workers and your quota), ask for less in the stage's pool, or raise "
        "cluster.placement_timeout. Finished shards are kept; the same command goes on from there."
    )
