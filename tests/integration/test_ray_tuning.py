"""Fine-tuning through Ray Train: the files of one process, from one worker and from two."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nncift_ray.errors import ModelError
from nncift_ray.evaluate.tune import TuneJob, TuningRecord, tune_in_process
from nncift_ray.ray_train import RayTuner
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.ray_pool import ray_session
from tests.unit.stages.evaluation.tune_chain import make_base, make_factory, make_job
from tests.unit.teachers.less_chain import EMPTY, TOO_LONG

SAME_WEIGHTS = 1e-5


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TuneJob:
    folder = tmp_path_factory.mktemp("tiny")
    base = make_base(folder)
    return make_job(folder, base, bad_rows=True, make_model=make_factory(base, num_threads=1))


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


@dataclasses.dataclass
class Kept:
    """Reads what a training hands over while it is there."""

    tensors: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    record: TuningRecord | None = None

    def __call__(self, folder: Path, record: TuningRecord) -> None:
        self.files = tuple(sorted(path.name for path in folder.iterdir()))
        self.tensors = load_file(folder / "adapter_model.safetensors")
        self.record = record


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_ray_train_leaves_what_one_process_would(
    job: TuneJob, tmp_path: Path, num_workers: int
) -> None:
    here, there = Kept(), Kept()
    storage = Location.of(str(tmp_path / "training"))
    tune_in_process(job, Location.of(str(tmp_path / "here")), here)
    workers = RayTuner(storage, num_workers=num_workers, num_cpus=0.5)
    workers(job, Location.of(str(tmp_path / "there")), there)
    assert there.files == here.files == ("adapter_config.json", "adapter_model.safetensors")
    assert there.record is not None
    assert here.record is not None
    assert there.record.train_loss == pytest.approx(here.record.train_loss, abs=SAME_WEIGHTS)
    same = dataclasses.replace(
        there.record, train_loss=here.record.train_loss, seconds=here.record.seconds
    )
    assert same == here.record
    assert [one.example_id for one in there.record.unfit] == [
        f"candidates-{row}" for row in (TOO_LONG, EMPTY)
    ]
    for name, tensor in here.tensors.items():
        # An entry of hardly any gradient moves by a ratio of two roundings.
        difference = (there.tensors[name] - tensor).abs()
        assert float((difference < SAME_WEIGHTS).float().mean()) > 0.99, name
    assert list((tmp_path / "training").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
def test_a_learning_rate_that_is_too_high_is_said_by_name(job: TuneJob, tmp_path: Path) -> None:
    wild = dataclasses.replace(job.training, learning_rate=1e30, num_epochs=20)
    with pytest.raises(ModelError, match="evaluation.tuning.learning_rate"):
        RayTuner(Location.of(str(tmp_path)))(
            dataclasses.replace(job, training=wild), Location.of(str(tmp_path / "steps")), Kept()
        )
