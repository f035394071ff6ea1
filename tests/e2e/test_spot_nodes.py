"""Spot nodes that are lost, given notice or never there, while a run is at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.cluster import SpotCluster, spot_cluster
from benchmarks.chaos.counted_run import BEGUN
from benchmarks.chaos.harness import Death, Plan, Tally, disturbed_run
from nncift_ray.errors import StageError
from tests.e2e.recipes import short_recipe
from tests.e2e.undisturbed import undisturbed_digests

NUM_SPOT, MAX_ACTORS = 2, 4
NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS = 24, 8, 8
NUM_SHARDS = NUM_CANDIDATES * NUM_TARGETS // SHARD_PAIRS
BEGINNING_SECONDS = 1.0  # between an actor's look for its node's notice and the mark it leaves


@pytest.fixture(scope="module")
def cluster() -> Iterator[SpotCluster]:
    with spot_cluster(NUM_SPOT) as started:
        yield started


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("corpus")
    tree = short_recipe(folder, NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS)
    tree["labels"]["pool"]["num_actors"] = MAX_ACTORS  # none of the nodes is without work
    return tree


@pytest.fixture(scope="module")
def whole(
    cluster: SpotCluster, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    return undisturbed_digests(recipe, folder, cluster.address)


@pytest.mark.timeout(900)
def test_all_nodes_lost_in_the_middle_of_labelling_change_no_byte(
    cluster: SpotCluster, recipe: dict[str, Any], whole: dict[str, str], tmp_path: Path
) -> None:
    plan = Plan((Death("label", 0.3, all_nodes=True),), 3.0, shard_seconds=0.5, limit_seconds=600)
    record = disturbed_run(cluster, recipe, tmp_path, plan, {"label": NUM_SHARDS})
    assert record.exit_code == 0, (tmp_path / "log.txt").read_text()
    assert record.num_kills == NUM_SPOT
    assert record.digests == whole
    # An actor holds one shard, or none between two; it may be lost when its work is done and its
    # record not yet written.
    assert record.num_lost + record.num_redone <= MAX_ACTORS
    assert record.shards_by_stage["label"] == NUM_SHARDS


@pytest.mark.timeout(900)
def test_a_node_given_notice_ends_its_shards_and_begins_no_other(
    cluster: SpotCluster, recipe: dict[str, Any], whole: dict[str, str], tmp_path: Path
) -> None:
    notice = Death("label", 0.3, all_nodes=False, is_announced=True)
    plan = Plan((notice,), shard_seconds=0.5, limit_seconds=600)
    record = disturbed_run(cluster, recipe, tmp_path, plan, {"label": NUM_SHARDS})
    assert record.exit_code == 0, (tmp_path / "log.txt").read_text()
    ((node, given_at),) = cluster.drained.items()
    begun = [mark for mark in Tally(tmp_path / "tally").marks(BEGUN) if mark.node == node]
    at_work = {mark.process for mark in begun if mark.time <= given_at}
    assert at_work
    # One that had been handed its first shard may have been loading its model when notice came.
    late = [mark for mark in begun if mark.time > given_at + BEGINNING_SECONDS]
    assert not at_work & {mark.process for mark in late}
    assert len({mark.process for mark in late}) == len(late)
    assert record.num_lost == record.num_redone == 0
    assert record.digests == whole


@pytest.mark.timeout(900)
def test_a_label_that_no_node_has_is_named_and_stops_the_run_with_all_it_did_kept(
    cluster: SpotCluster, recipe: dict[str, Any], whole: dict[str, str], tmp_path: Path
) -> None:
    plan = Plan(shard_seconds=0, limit_seconds=300)
    labels = recipe["labels"]
    elsewhere = {**labels, "pool": {**labels["pool"], "labels": {"zone": "nowhere"}}}
    asking = {**recipe, "labels": elsewhere, "cluster": {"placement_timeout": 3}}
    stopped = disturbed_run(cluster, asking, tmp_path, plan)
    assert stopped.exit_code == StageError.exit_code
    log = (tmp_path / "log.txt").read_text()
    assert "StageError: stage 'label': no node could hold an actor" in log
    assert "Missing: label zone: nowhere;" in log
    assert "label" not in stopped.shards_by_stage
    assert stopped.num_begun > 0
    record = disturbed_run(cluster, recipe, tmp_path, plan)
    assert record.num_begun == sum(record.shards_by_stage.values())  # nothing was begun again
    assert record.digests == whole
