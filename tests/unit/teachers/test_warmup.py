"""The warm-up stage: what it draws, what it leaves behind, what it says of examples left out."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.engines.lora import LoraModel
from nncift_ray.errors import StageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.session import RayWorkers
from nncift_ray.runtime.step import Resources
from nncift_ray.teachers.gradients import (
    TENSOR_GROUPS,
    WarmupJob,
    WarmupStage,
    read_checkpoint,
    warm_up_here,
)
from tests.unit.teachers.less_chain import (
    EMPTY,
    LESS,
    MODEL_SETTINGS,
    NUM_CANDIDATES,
    NUM_EPOCHS,
    TOO_LONG,
    make_factory,
    make_job,
    run_warmup,
)


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> functools.partial[LoraModel]:
    return make_factory(tmp_path_factory.mktemp("tiny"))


def changed(job: WarmupJob, **less: Any) -> WarmupJob:
    return dataclasses.replace(job, less=job.less.model_copy(update=less))


def test_the_draw_is_a_seeded_share_that_a_bound_cuts(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    job = make_job(tmp_path, make_model)
    drawn = job.draw_rows().tolist()
    assert len(drawn) == len(set(drawn)) == NUM_CANDIDATES // 2
    assert job.draw_rows().tolist() == drawn
    assert changed(job, seed=6).draw_rows().tolist() != drawn
    assert len(changed(job, max_warmup_examples=2).draw_rows()) == 2
    assert len(changed(job, warmup_fraction=1e-6).draw_rows()) == 1


def test_a_checkpoint_an_epoch_reads_back_as_it_was(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    job = make_job(tmp_path, make_model)
    kept, _ = warm_up_here(job)
    warmup = run_warmup(tmp_path, job)
    rows = warmup.read("checkpoints", schema=schemas.WARMUP_CHECKPOINTS).to_pylist()
    assert [row["checkpoint"] for row in rows] == list(range(NUM_EPOCHS))
    for number, checkpoint in enumerate(kept):
        read = read_checkpoint(number, warmup.read_file)
        assert dataclasses.asdict(read.summary) | {"checkpoint": number} == rows[number]
        assert read.summary == checkpoint.summary
        for group in TENSOR_GROUPS:
            found, expected = getattr(read, group), getattr(checkpoint, group)
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].tobytes() == array.tobytes()
                assert np.abs(array).max() > 0


def test_examples_that_do_not_fit_are_error_rows_and_not_trained_on(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    warmup = run_warmup(
        tmp_path, make_job(tmp_path, make_model, bad_rows=True, warmup_fraction=1.0)
    )
    errors = warmup.read("errors", schema=schemas.ERRORS).to_pylist()
    told = {row["example_id"]: row["reason"] for row in errors}
    assert told == {f"candidates-{TOO_LONG}": "too_long", f"candidates-{EMPTY}": "no_response"}
    assert warmup.manifest.facts()["num_examples"] == NUM_CANDIDATES - 2


def test_nothing_to_train_on_names_the_keys_to_change(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    less = LESS.model_copy(update={"max_length": 8})
    short = functools.partial(LoraModel, make_model.args[0], less, device="cpu")
    with pytest.raises(StageError, match="teacher.less.max_length"):
        run_warmup(tmp_path, make_job(tmp_path, short))


def test_the_fingerprint_holds_what_shapes_the_numbers_and_not_what_runs_them(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    job = make_job(tmp_path, make_model)

    def fingerprint(job: WarmupJob, model: dict[str, str] = MODEL_SETTINGS) -> str:
        return stage_fingerprint(WarmupStage(job, model))

    two = RayWorkers(Location.of(str(tmp_path)), num_workers=2)
    stage = WarmupStage(job, MODEL_SETTINGS)
    stage.resources = Resources(num_cpus=8, num_gpus=1)
    assert stage_fingerprint(stage) == fingerprint(job)
    others = [
        fingerprint(job, {"model": "tiny", "revision": "2"}),
        *(fingerprint(changed(job, **change)) for change in (
            {"learning_rate": 1.0}, {"warmup_fraction": 0.4}, {"max_warmup_examples": 3}
        )),
        stage_fingerprint(WarmupStage(job, MODEL_SETTINGS, two)),
    ]  # fmt: skip
    assert len({fingerprint(job), *others}) == 1 + len(others)


def test_the_manifest_names_no_folder_of_this_machine(
    tmp_path: Path, make_model: functools.partial[LoraModel]
) -> None:
    manifest = run_warmup(tmp_path, make_job(tmp_path, make_model)).manifest.model_dump_json()
    assert str(tmp_path) not in manifest
    assert str(make_model.args[0]) not in manifest
