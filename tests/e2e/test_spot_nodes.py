"""Spot nodes that are lost while a run is at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.cluster import SpotCluster, spot_cluster
from benchmarks.chaos.harness import Death, Plan, disturbed_run

NUM_SPOT, MAX_ACTORS = 2, 4
NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS = 24, 8, 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[SpotCluster]:
    with spot_cluster(NUM_SPOT) as started:
        yield started


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Label all pairs and select by the labels: the short way to a subset."""
    folder, data = tmp_path_factory.mktemp("corpus"), {}
    for name, count in (("candidates", NUM_CANDIDATES), ("targets", NUM_TARGETS)):
        rows = [{"prompt": f"{name}: add {i}", "completion": str(i % 9)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data[name] = [str(folder / f"{name}.jsonl")]
    return {
        "data": data,
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "labels": {"group_pairs": SHARD_PAIRS, "pool": {"shard_rows": SHARD_PAIRS}},
        "pair_scores": {"by": "teacher", "top_k": 5},
        "selection": {"objective": "facility_location", "budget": 0.25},
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_nodes_lost_in_the_middle_of_labelling_change_no_byte(
    cluster: SpotCluster, recipe: dict[str, Any], tmp_path: Path
) -> None:
    whole = disturbed_run(cluster, recipe, tmp_path / "whole", Plan(shard_seconds=0))
    num_shards = whole.shards_by_stage["label"]
    assert num_shards > 2 * MAX_ACTORS
    plan = Plan((Death("label", 0.3, all_nodes=True),), 3.0, shard_seconds=0.5, limit_seconds=600)
    record = disturbed_run(cluster, recipe, tmp_path / "disturbed", plan, {"label": num_shards})
    assert record.exit_code == 0, (tmp_path / "disturbed" / "log.txt").read_text()
    assert record.num_kills == NUM_SPOT
    assert record.digests == whole.digests
    assert "subset.jsonl" in record.digests
    # A worker may be lost when its work is done and its record not yet written.
    assert 1 <= record.num_lost + record.num_redone <= MAX_ACTORS
    assert record.shards_by_stage["label"] == num_shards
