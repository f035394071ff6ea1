"""The warm-up through Ray Train: the numbers of one process, and errors a user can act on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray.train

from nncift_ray.engines.lora import LoraModel
from nncift_ray.errors import ModelError, StageError
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.ray_pool import ray_session
from nncift_ray.runtime.ray_train import RayWorkers, worker_error
from nncift_ray.teachers.warmup import (
    TENSOR_GROUPS,
    WarmupCheckpoint,
    WarmupJob,
    warm_up_here,
    warm_up_on_ray,
)
from tests.unit.teachers.less_chain import EMPTY, TOO_LONG, make_factory, make_job

SAME_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> WarmupJob:
    folder = tmp_path_factory.mktemp("tiny")
    make_model: functools.partial[LoraModel] = make_factory(folder)
    return make_job(folder, make_model, bad_rows=True, warmup_fraction=1.0)


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_one_ray_train_worker_trains_what_this_process_would(
    job: WarmupJob, tmp_path: Path
) -> None:
    on_ray: list[WarmupCheckpoint] = []
    here: list[WarmupCheckpoint] = []
    unfit = warm_up_on_ray(job, on_ray.append, RayWorkers(Location.of(str(tmp_path))))
    assert unfit == warm_up_here(job, here.append)
    assert [(e.example_id, e.reason) for e in unfit] == [
        (f"candidates-{TOO_LONG}", "too_long"),
        (f"candidates-{EMPTY}", "no_response"),
    ]
    for one, other in zip(on_ray, here, strict=True):
        assert one.summary.num_steps == other.summary.num_steps
        assert abs(one.summary.train_loss - other.summary.train_loss) <= SAME_TOLERANCE
        for group in TENSOR_GROUPS:
            for name, array in getattr(one, group).items():
                np.testing.assert_allclose(
                    array, getattr(other, group)[name], rtol=0, atol=SAME_TOLERANCE
                )
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_raised_for_the_user_is_what_the_user_sees() -> None:
    told = ModelError("no model 'x'; fetch it")
    group = ray.train.WorkerGroupError("trace", {0: RuntimeError("aborted"), 1: told})
    assert worker_error(group) is told
    unknown = worker_error(ray.train.WorkerGroupError("trace", {0: RuntimeError("out of memory")}))
    assert type(unknown) is StageError
    assert "trace" in str(unknown)
