"""A node whose machine is about to be taken: no place for actors, and none begins a shard there."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nncift_ray.runtime import ray_pool
from nncift_ray.runtime import ray_pool as placement
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.ray_pool import (
    LEFT_DRAINING_NODE,
    ShardActor,
    alive_nodes,
    is_node_gone,
)
from nncift_ray.runtime.shards import ShardOutcome
from tests.unit.runtime.test_driver import SquareStage

NODES = [
    {"NodeID": "up", "Alive": True, "Resources": {"CPU": 1.0}, "Labels": {}},
    {"NodeID": "draining", "Alive": True, "Resources": {"CPU": 2.0}, "Labels": {}},
    {"NodeID": "gone", "Alive": False, "Resources": {}},
]


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.ray, "nodes", lambda: NODES)
    monkeypatch.setattr(placement.state, "get_draining_nodes", lambda: {"draining": 0})


@pytest.fixture
def actor_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what makes an actor on a node, in this process."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    def make(node: str) -> ShardActor:
        context = SimpleNamespace(get_node_id=lambda: node)
        monkeypatch.setattr(ray_pool.ray, "get_runtime_context", lambda: context)
        return ShardActor(SquareStage(2, 1), Location.of(str(tmp_path)), "session")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(ray_pool, "_limit_process", lambda resources: None)
    return make


def test_a_draining_node_is_no_place() -> None:
    assert alive_nodes() == NODES[:1]


def test_a_draining_node_is_not_gone_yet() -> None:
    assert [is_node_gone(node["NodeID"]) for node in NODES] == [False, False, True]


def test_an_actor_on_a_draining_node_ends_before_it_begins_a_shard(
    actor_on: Any, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as left:
        actor_on("draining")({"start": 0, "stop": 1})
    assert left.value.code == LEFT_DRAINING_NODE
    assert not list(tmp_path.rglob("*.*"))


def test_an_actor_elsewhere_does_its_shard(actor_on: Any) -> None:
    outcome = actor_on("up")({"start": 0, "stop": 1})
    assert ShardOutcome.model_validate_json(outcome["outcome"]).record is not None
