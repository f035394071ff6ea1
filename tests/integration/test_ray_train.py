"""Training through Ray Train: the numbers of one process, and errors a user can act on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray.train

from nncift_ray.engines.lora import LoraModel
from nncift_ray.errors import ModelError
from nncift_ray.network.factored import read_network
from nncift_ray.network.step import FitStage
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.recipe.sections import ClusterConfig, NetworkConfig
from nncift_ray.runtime.driver import run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.session import RayWorkers, users_error
from nncift_ray.teachers.gradients import (
    TENSOR_GROUPS,
    WarmupJob,
    warm_up_here,
    warmed_up,
)
from tests.chain import run_chain
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
    with warmed_up(job, RayWorkers(Location.of(str(tmp_path)))) as (checkpoints, unfit):
        on_ray = list(checkpoints)
    here, unfit_here = warm_up_here(job)
    assert unfit == unfit_here
    assert [(example.example_id, why.reason) for example, why in unfit] == [
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
    assert users_error(group) is told
    unknown = ray.train.WorkerGroupError("trace", {0: RuntimeError("out of memory")})
    assert users_error(unknown) is None


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(("num_workers", "tolerance"), [(1, 0.0), (2, 1e-4)])
def test_ray_trains_the_network_that_this_process_would(
    tmp_path: Path, num_workers: int, tolerance: float
) -> None:
    network = NetworkConfig(kind="paper", num_hidden=8, num_epochs=3, min_steps=0, seed=1)
    chain = run_chain(tmp_path, num_candidates=80, num_targets=8, budget=9, network=network)
    workers = RayWorkers(Location.of(str(tmp_path / "training")), num_workers)
    inputs = ExampleInputs(chain["embed"])
    stage = FitStage(chain["label"], inputs, ("within", "cross"), network, workers)
    run_dir = Location.of(str(tmp_path / "ray"))
    fit = run_stage(stage, run_dir, execute=execute_on_ray, reporter=SilentReporter())
    for block in ("within", "cross"):
        on_ray, here = read_network(fit, block), read_network(chain["fit"], block)
        for name, array in on_ray.to_state().items():
            np.testing.assert_allclose(array, here.to_state()[name], rtol=0, atol=tolerance)
