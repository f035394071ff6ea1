"""No waiting for ever: what no node can hold is named, what is only slow is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from nncift_ray.errors import StageError
from nncift_ray.runtime.ray_pool import (
    Node,
    PlacementWatch,
    asked_by,
    find_missing,
    selects,
)
from nncift_ray.runtime.step import Resources

MARKET = "ray.io/market-type"


def node(resources: dict[str, float], market: str | None = None) -> Node:
    return {"Resources": resources, "Labels": {MARKET: market} if market else {}}


CPU_NODE = node({"CPU": 8.0, "memory": 1e9}, "on-demand")
SPOT_NODE = node({"CPU": 4.0, "GPU": 1.0, "licence": 1.0}, "spot")
SPOT_ACTOR = Resources(num_cpus=4, num_gpus=1, custom={"licence": 1}, labels={MARKET: "spot"})


class Clock:
    """Goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def watch(timeout: float, **options: Any) -> PlacementWatch:
    return PlacementWatch("label", replace(SPOT_ACTOR, placement_timeout=timeout), **options)


def never() -> Iterator[int]:
    threading.Event().wait(5)
    yield 0


def test_what_an_actor_asks_for_is_told_by_rays_names() -> None:
    assert asked_by(SPOT_ACTOR) == {"CPU": 4, "GPU": 1, "licence": 1}
    assert asked_by(Resources(num_cpus=0.5)) == {"CPU": 0.5}


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [
        ([CPU_NODE, SPOT_NODE], []),
        ([CPU_NODE], ["GPU 1", "licence 1", f"label {MARKET}: spot"]),
        ([], ["CPU 4", "GPU 1", "licence 1", f"label {MARKET}: spot"]),
        # One node has the GPU and the other the CPUs: an actor needs both on one.
        ([CPU_NODE, node({"CPU": 3.0, "GPU": 1, "licence": 1}, "spot")], ["CPU 4"]),
        ([node(SPOT_NODE["Resources"], "on-demand")], [f"label {MARKET}: spot"]),
    ],
)
def test_missing_is_what_the_best_node_lacks(nodes: list[Node], missing: list[str]) -> None:
    assert find_missing(SPOT_ACTOR, nodes) == missing


def test_a_sum_that_rounds_is_no_shortage() -> None:
    assert find_missing(Resources(0.3), [node({"CPU": 0.1 + 0.2 - 1e-9})]) == []


@pytest.mark.parametrize(
    ("selector", "value", "taken"),
    [
        ("spot", "spot", True),
        ("spot", None, False),
        ("!spot", "on-demand", True),
        ("!spot", None, True),
        ("!spot", "spot", False),
        ("in(a100, h100)", "h100", True),
        ("in(a100, h100)", "t4", False),
        ("!in(a100, h100)", "t4", True),
    ],
)
def test_selectors_take_what_rays_take(selector: str, value: str | None, taken: bool) -> None:
    assert selects(selector, value) is taken


def test_items_pass_in_order() -> None:
    seen = watch(10, nodes=list).during(range(5))
    assert list(seen) == [0, 1, 2, 3, 4]


def test_no_place_for_too_long_names_what_is_missing_and_the_remedy() -> None:
    seen = watch(3, nodes=lambda: [CPU_NODE], clock=Clock()).during(never(), poll_seconds=0.01)
    with pytest.raises(StageError, match=r"stage 'label'.*GPU 1, licence 1.*placement_timeout"):
        next(seen)


def test_slow_work_on_a_node_that_can_hold_it_is_waited_for() -> None:
    def slow() -> Iterator[int]:
        time.sleep(0.2)
        yield 7

    clock = Clock()
    seen = watch(3, nodes=lambda: [SPOT_NODE], clock=clock).during(slow(), poll_seconds=0.01)
    assert list(seen) == [7]
    assert clock.now > 5  # far beyond the timeout


def test_a_node_that_comes_back_in_time_ends_the_wait() -> None:
    looks = iter([[], [], [SPOT_NODE]])
    watch(10, nodes=lambda: next(looks), clock=Clock()).wait(poll_seconds=0.001)
    with pytest.raises(StageError, match="stage 'label'"):
        watch(3, nodes=list, clock=Clock()).wait(poll_seconds=0.001)


def test_an_error_of_the_actors_is_raised_where_it_is_waited_for() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("lost")

    seen = watch(10, nodes=list).during(broken())
    assert next(seen) == 1
    with pytest.raises(ValueError, match="lost"):
        next(seen)


def test_who_stops_listening_stops_the_work() -> None:
    done: list[int] = []
    go_on = threading.Semaphore(1)

    def work() -> Iterator[int]:
        for number in range(100):
            go_on.acquire()
            done.append(number)
            yield number

    seen = watch(10, nodes=list).during(work())
    assert next(seen) == 0
    seen.close()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(20):
        go_on.release()
    time.sleep(0.1)
    assert len(done) <= 2


def test_who_leaves_early_ends_the_work_and_waits_for_its_thread() -> None:
    ended = threading.Event()

    def work() -> Iterator[int]:
        yield 0
        ended.wait()

    num_threads = threading.active_count()
    seen = watch(10, nodes=list).during(work(), end=ended.set)
    assert next(seen) == 0
    seen.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert ended.is_set()
    assert threading.active_count() == num_threads
