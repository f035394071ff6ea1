"""A search in parts on a pool of Ray actors: as many as there may be, the picks are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nncift_ray.recipe.sections import ClusterConfig, SelectionConfig
from nncift_ray.runtime.driver import Executor, execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.step import Resources
from nncift_ray.selection.step import SelectPartitionsStage, SelectStage
from tests.chain import run_chain

PARTITIONS = 4
SELECTION = SelectionConfig(
    objective="facility_location",
    budget=12,
    optimizer={"kind": "partitioned", "partitions": PARTITIONS},
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageOutput]:
    folder = tmp_path_factory.mktemp("chain")
    return run_chain(folder, num_candidates=90, num_targets=0, objective="facility_location")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


def select(
    outputs: dict[str, StageOutput], folder: Path, execute: Executor, num_actors: int = 1
) -> StageOutput:
    location, reporter = Location.of(str(folder)), SilentReporter()
    scores, embeddings = outputs["score_pairs"], outputs["embed"]
    stage = SelectPartitionsStage(scores, embeddings, SELECTION)
    stage.resources = Resources(min_actors=num_actors, max_actors=num_actors)
    parts = run_stage(stage, location, execute=execute, reporter=reporter)
    assert len(parts.manifest.shards) == PARTITIONS
    merge = SelectStage(scores, embeddings, SELECTION, parts=parts)
    return run_stage(merge, location, execute=execute_here, reporter=reporter)


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("num_actors", [1, 2])
def test_any_number_of_actors_picks_what_one_process_does(
    outputs: dict[str, StageOutput], tmp_path: Path, num_actors: int
) -> None:
    here = select(outputs, tmp_path / "here", execute_here).read("ranking")
    there = select(outputs, tmp_path / "there", execute_on_ray, num_actors).read("ranking")
    assert there.equals(here)
