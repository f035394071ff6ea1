"""The tune stage: what it trains on, what it leaves behind, what it says of the rest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs as pafs

from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.engines.load import TunedModel, apply_tuning
from nncift_ray.engines.lora import TrainableModel, TrainingExample
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.errors import ModelError, StageError
from nncift_ray.evaluate.tune import (
    TuneJob,
    TuneStage,
    members_digest,
    tune_in_process,
    tuned_files,
)
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import StepProgress, describe_steps, stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.teachers.warmup import EXAMPLE_COLUMNS, encode_rows
from tests.unit.stages.evaluation.tune_chain import (
    MEMBERS,
    MODEL_SETTINGS,
    make_base,
    make_factory,
    make_job,
    run_tune,
)
from tests.unit.teachers.less_chain import EMPTY, TOO_LONG

SAME_NLL = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


def loaded_nll(tuned: TunedModel, base: Path, model: TrainableModel, job: TuneJob) -> list[float]:
    """Score the subset's responses with an engine that loads the tuned files."""
    options = EngineConfig(engine="transformers")
    engine = TransformersEngine(*apply_tuning(base, options, tuned), device="cpu")
    results = engine.score(
        [
            ScoringRequest(e.input_ids[: e.response_start], e.input_ids[e.response_start :])
            for e in encoded(model, job)
        ]
    )
    return [-float(r.log_probs.mean()) for r in results if isinstance(r, ScoringResult)]


def encoded(model: TrainableModel, job: TuneJob) -> list[TrainingExample]:
    table = job.examples.take_rows("candidates", job.members, EXAMPLE_COLUMNS)
    return encode_rows(table, model)[0]


@dataclasses.dataclass
class Keeping:
    """Loads the model and keeps it open and in reach after the training."""

    make: Callable[[], TrainableModel]
    model: TrainableModel | None = None

    def __call__(self) -> TrainableModel:
        self.model = self.make()
        self.model.close = lambda: None
        return self.model


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_files_are_the_model_that_was_trained(tmp_path: Path, base: Path, method: str) -> None:
    keeping = Keeping(make_factory(base, method))
    job = make_job(tmp_path, base, method, make_model=keeping)
    with tuned_files(run_tune(tmp_path, job, method)) as tuned:
        assert tuned is not None
        assert tuned.is_adapter == (method == "lora")
        assert keeping.model is not None
        nll = loaded_nll(tuned, base, keeping.model, job)
        with torch.no_grad():
            trained = keeping.model.losses(encoded(keeping.model, job)).tolist()
            fresh_model = make_factory(base, method)()
            fresh = fresh_model.losses(encoded(fresh_model, job)).tolist()
    assert nll == pytest.approx(trained, abs=SAME_NLL)
    assert np.mean(nll) < np.mean(fresh) - 0.5


def test_examples_that_do_not_fit_are_error_rows_and_not_trained_on(
    tmp_path: Path, base: Path
) -> None:
    tuning = run_tune(tmp_path, make_job(tmp_path, base, bad_rows=True))
    errors = tuning.read("errors", schema=schemas.ERRORS).to_pylist()
    told = {row["example_id"]: row["reason"] for row in errors}
    assert told == {f"candidates-{TOO_LONG}": "too_long", f"candidates-{EMPTY}": "no_response"}
    row = tuning.read("tuning").to_pylist()[0]
    assert row["num_examples"] == len(MEMBERS) - 2
    assert row["num_steps"] == 2 * 2  # 5 examples by 4, twice
    assert len(row["train_loss"]) == 2


def test_a_subset_with_nothing_to_train_on_names_the_key_to_change(
    tmp_path: Path, base: Path
) -> None:
    job = make_job(tmp_path, base, make_model=make_factory(base, max_length=8))
    with pytest.raises(StageError, match="evaluation.tuning.max_length"):
        run_tune(tmp_path, job)


def test_an_empty_subset_is_refused(tmp_path: Path, base: Path) -> None:
    job = make_job(tmp_path, base, members=np.array([], np.int64))
    with pytest.raises(ValueError, match="empty"):
        TuneStage(job, tune_in_process, MODEL_SETTINGS)


def test_a_loss_that_is_not_finite_names_the_key_to_change(tmp_path: Path, base: Path) -> None:
    broken = functools.partial(broken_model, base)
    with pytest.raises(ModelError, match="lower evaluation.tuning.learning_rate"):
        run_tune(tmp_path, make_job(tmp_path, base, make_model=broken))


def broken_model(base: Path) -> TrainableModel:
    model = make_factory(base)()
    with torch.no_grad():
        model.model.get_output_embeddings().weight.fill_(float("nan"))
    return model


def test_layers_that_are_not_there_name_the_key_to_change(tmp_path: Path, base: Path) -> None:
    factory = make_factory(base)
    spec = dataclasses.replace(factory.args[1], target_modules=("no_such_proj",))
    wrong = functools.partial(factory.func, str(base), spec, factory.args[2])
    with pytest.raises(ModelError, match="evaluation.tuning.target_modules"):
        run_tune(tmp_path, make_job(tmp_path, base, make_model=wrong))


def test_the_same_seed_gives_the_same_files(tmp_path: Path, base: Path) -> None:
    files: list[bytes] = []
    for name in ("one", "two"):
        torch.manual_seed(len(files))
        tuning = run_tune(tmp_path / name, make_job(tmp_path / name, base))
        files.append(tuning.read_file("adapter_model.safetensors"))
    assert files[0] == files[1]


def test_equal_subsets_share_their_work_and_others_do_not(tmp_path: Path, base: Path) -> None:
    job = make_job(tmp_path, base)

    def fingerprint(**change: Any) -> str:
        changed = dataclasses.replace(job, **change)
        return stage_fingerprint(TuneStage(changed, tune_in_process, MODEL_SETTINGS))

    assert fingerprint(members=MEMBERS.copy()) == fingerprint()
    others = [
        fingerprint(members=MEMBERS[:-1]),
        fingerprint(num_workers=2),
        fingerprint(training=dataclasses.replace(job.training, learning_rate=1.0)),
    ]
    assert len({fingerprint(), *others}) == 4


def test_a_digest_is_that_of_the_ids(tmp_path: Path, base: Path) -> None:
    job = make_job(tmp_path, base)
    expected = hashlib.sha256(b"candidates-2\ncandidates-5").hexdigest()
    assert members_digest(job.examples, np.array([2, 5])) == expected


def test_the_manifest_and_the_files_name_no_folder_of_this_machine(
    tmp_path: Path, base: Path
) -> None:
    tuning = run_tune(tmp_path, make_job(tmp_path, base))
    told = tuning.manifest.model_dump_json() + tuning.read_file("adapter_config.json").decode()
    assert str(tmp_path) not in told
    assert str(base) not in told


def test_files_of_an_object_store_are_fetched_for_as_long_as_they_are_needed(
    tmp_path: Path, base: Path
) -> None:
    here = run_tune(tmp_path, make_job(tmp_path, base))
    # A file system that is not the local one, as an object store's is not.
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    path = Path(here.folder.path).relative_to(tmp_path).as_posix()
    there = StageOutput.open(Location(remote, path, f"s3://bucket/{path}"))
    assert there is not None
    with tuned_files(there) as tuned:
        assert tuned is not None
        folder = tuned.folder
        assert tmp_path not in folder.parents
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["adapter_config.json", "adapter_model.safetensors"]
        assert (folder / names[1]).read_bytes() == here.read_file(names[1])
    assert not folder.exists()


def test_without_a_tuned_model_there_are_no_files() -> None:
    with tuned_files(None) as tuned:
        assert tuned is None


def test_steps_are_told_with_the_time_that_is_left(tmp_path: Path) -> None:
    folder = Location.of(str(tmp_path))
    assert describe_steps(folder) == ""
    StepProgress(folder, every_seconds=1000)(1, 8)
    assert describe_steps(folder) == ""  # not every step is worth a file
    progress = StepProgress(folder, every_seconds=0)
    progress(2, 8)
    assert describe_steps(folder) == "step 2 of 8, less than a minute left"
    progress._start -= 600  # 10 minutes for 4 steps
    progress(4, 8)
    assert describe_steps(folder) == "step 4 of 8, about 10 min left"
