"""The bounds that are checked before scoring starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.recipe.sections import PairScoresConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.scores.scorers import PairMemory
from nncift_ray.scores.step import ScorePairsStage
from tests.made import Made, make_stages

K = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = Location.of(str(tmp_path_factory.mktemp("made")))
    return make_stages(folder, num_candidates=300, num_targets=7)


def stage(made: Made, **options: Any) -> ScorePairsStage:
    config = PairScoresConfig(top_k=K, **options)
    return ScorePairsStage(made.activations, made.networks, ("within", "cross"), config)


def finish(stage: ScorePairsStage, folder: Path) -> StageOutput:
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def test_a_worker_too_small_for_streaming_is_refused_with_what_to_change(made: Made) -> None:
    with pytest.raises(ConfigError, match=r"max_worker_bytes = 1,000 .*pair_scores.column_tile"):
        stage(made, max_worker_bytes=1000)


def test_columns_are_kept_only_where_they_fit() -> None:
    memory = PairMemory(1_000_000, 100, shard_rows=4096, top_k=64)
    assert memory.keeps_columns(2 * 10**9)
    assert not memory.keeps_columns(800 * 10**6)


def test_the_largest_memory_of_a_worker_is_recorded(made: Made, tmp_path: Path) -> None:
    assert finish(stage(made), tmp_path).manifest.facts()["peak_bytes"] > 50 * 10**6
