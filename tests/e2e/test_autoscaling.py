"""A cluster without a single spot node, until a run asks for one, and again afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.chaos.harness import digests_of, driver
from tests.e2e.autoscaled_cluster import autoscaled_cluster
from tests.e2e.recipes import short_recipe
from tests.e2e.undisturbed import undisturbed_digests

MAX_SPOT, MAX_ACTORS = 2, 4
NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS = 24, 8, 8
IDLE_SECONDS, SHARD_SECONDS = 8.0, 1.0
PLACE_SECONDS, RUN_SECONDS, END_SECONDS = 180, 600, 120
POLL_SECONDS = 0.5


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so; say whether it came to be."""
    end = time.monotonic() + seconds
    while not (so := is_so()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return so


@pytest.mark.timeout(900)
def test_spot_nodes_come_when_a_pool_asks_for_them_and_go_when_they_are_idle(
    tmp_path: Path,
) -> None:
    recipe = short_recipe(tmp_path, NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS)
    recipe["labels"]["pool"]["num_actors"] = MAX_ACTORS
    recipe["cluster"] = {"placement_timeout": PLACE_SECONDS}
    (tmp_path / "whole").mkdir()
    sizes: list[int] = []
    with autoscaled_cluster(tmp_path, MAX_SPOT, IDLE_SECONDS) as cluster:

        def is_over() -> bool:
            sizes.append(cluster.num_spot)
            return child.poll() is not None

        with driver(recipe, tmp_path, cluster.address, SHARD_SECONDS) as (child, _):
            assert wait_until(is_over, RUN_SECONDS)
        assert child.returncode == 0, (tmp_path / "log.txt").read_text()
        whole = undisturbed_digests(recipe, tmp_path / "whole", cluster.address)
        assert wait_until(lambda: cluster.num_spot == 0, END_SECONDS)
    assert (sizes[0], max(sizes)) == (0, MAX_SPOT)
    assert digests_of(tmp_path / "run" / "export") == whole
