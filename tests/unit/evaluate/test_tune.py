"""The tune stage: what it trains on, what it leaves behind, what it says of the rest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs as pafs
from safetensors.torch import load_file, save_file

from nncift_ray.errors import ModelError, StageError
from nncift_ray.evaluation import tune
from nncift_ray.evaluation.tune import TuneStage, fine_tune, members_digest, tuned_files
from nncift_ray.recipe.sections import PoolConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import StepProgress, describe_steps, stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from tests.unit.evaluate.tune_chain import (
    MEMBERS,
    encode,
    load,
    make_base,
    make_corpus,
    make_job,
    nll_of,
    run_tune,
    texts_of,
)
from tests.unit.teachers.less_chain import EMPTY, TOO_LONG

SAME_NLL = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> StageOutput:
    return run_tune(tmp_path_factory.mktemp("tuned"), make_job(base), bad_rows=True)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_files_are_the_model_that_was_trained(tmp_path: Path, base: Path, method: str) -> None:
    # One step of all examples, an epoch: its loss is that of the model which the last one left.
    options = {"method": method, "batch_size": 7, "lr_warmup_fraction": 0.0}
    one = run_tune(tmp_path, make_job(base, **options, num_epochs=1))
    two = run_tune(tmp_path, make_job(base, **options, num_epochs=2))
    examples = encode(base, texts_of(make_corpus(tmp_path)))
    fresh, after_one = (float(each) for each in two.read("tuning")["train_loss"][0])
    # The rate falls over all steps, so the first step of two is not the one of one.
    assert one.read("tuning")["train_loss"][0][0].as_py() == pytest.approx(fresh, abs=SAME_NLL)
    with tuned_files(two) as files:
        assert files is not None
        assert files.is_adapter == (method != "full")
        assert files.quantization == ("bitsandbytes" if method == "qlora" else None)
        assert nll_of(load(files, base), examples) < after_one < fresh
    if method != "qlora":
        assert nll_of(load(None, base), examples) == pytest.approx(fresh, abs=SAME_NLL)


def test_a_step_weighs_tokens_alike_and_not_examples(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path)
    texts = texts_of(corpus)
    record = fine_tune(make_job(base, batch_size=7, num_epochs=1), texts, tmp_path, lambda *_: None)
    each = [nll_of(load(None, base), encode(base, [text])) for text in texts]
    sizes = [example.num_response_tokens for example in encode(base, texts)]
    expected = np.average(each, weights=sizes)
    assert record.train_loss == pytest.approx([expected], abs=SAME_NLL)
    assert expected != pytest.approx(np.mean(each), abs=10 * SAME_NLL)
    assert record.num_tokens == sum(len(example.input_ids) for example in encode(base, texts))
    assert "train_runtime" not in capsys.readouterr().out  # lines of progress only


def test_batches_of_a_gpu_and_passes_of_a_cpu_train_alike(tmp_path: Path, base: Path) -> None:
    from nncift_ray.evaluation import tune

    texts, weights = texts_of(make_corpus(tmp_path)), []
    for on_cpu in (True, False):
        folder = tmp_path / str(on_cpu)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not on_cpu:  # whole batches, padded
                monkeypatch.setattr(tune, "passes_of_a_step", lambda tuning, device: 1)
            record = fine_tune(make_job(base), texts, folder, lambda *_: None)
        weights.append(load_file(folder / "adapter_model.safetensors"))
        assert record.num_steps == 2 * 2  # 7 examples by 4, twice
    for name, tensor in weights[0].items():
        # An entry of hardly any gradient moves by a ratio of two roundings.
        same = (weights[1][name] - tensor).abs() < 1e-4
        assert float(same.float().mean()) > 0.98, name


def test_examples_that_do_not_fit_are_error_rows_and_not_trained_on(tuned: StageOutput) -> None:
    errors = tuned.read("errors", schema=schemas.ERRORS).to_pylist()
    told = {row["example_id"]: row["reason"] for row in errors}
    assert told == {f"candidates-{TOO_LONG}": "too_long", f"candidates-{EMPTY}": "no_response"}
    row = tuned.read("tuning").to_pylist()[0]
    assert row["num_examples"] == len(MEMBERS) - 2
    assert row["num_steps"] == 2 * 2  # 5 examples by 4, twice
    assert len(row["train_loss"]) == 2


def test_a_subset_with_nothing_to_train_on_names_the_key_to_change(
    tmp_path: Path, base: Path
) -> None:
    with pytest.raises(StageError, match="evaluation.tuning.max_length"):
        run_tune(tmp_path, make_job(base, max_length=8))


def test_an_empty_subset_is_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        TuneStage(make_corpus(tmp_path), np.array([], np.int64), make_job(base))


def test_a_loss_that_is_not_finite_names_the_key_to_change(tmp_path: Path) -> None:
    broken = make_base(tmp_path)
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()},
        broken / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"lower evaluation\.tuning\.learning_rate"):
        run_tune(tmp_path, make_job(broken))


def test_layers_that_are_not_there_name_the_key_to_change(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ModelError, match=r"evaluation\.tuning\.target_modules"):
        run_tune(tmp_path, make_job(base, target_modules=("no_such_proj",)))


def test_the_same_seed_gives_the_same_files(tmp_path: Path, base: Path, tuned: StageOutput) -> None:
    torch.manual_seed(17)
    again = run_tune(tmp_path, make_job(base), bad_rows=True)
    name = "adapter_model.safetensors"
    assert again.read_file(name) == tuned.read_file(name)
    other = run_tune(tmp_path, make_job(base, seed=6), bad_rows=True)
    assert other.read_file(name) != tuned.read_file(name)


def test_products_in_bfloat16_leave_what_is_trained_in_float32(tmp_path: Path, base: Path) -> None:
    job = make_job(base, dtype="bfloat16")
    assert (job.weights_dtype, job.uses_autocast) == ("float32", True)
    exact, half = (run_tune(tmp_path, each) for each in (make_job(base), job))
    losses = [each.read("tuning")["train_loss"][0].as_py() for each in (exact, half)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]
    with tuned_files(half) as files:
        assert files is not None
        tensors = load_file(files.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_what_is_computed_in_and_held_in(base: Path) -> None:
    def chosen(method: str, dtype: str, on_gpu: bool) -> tuple[str, bool]:
        job = replace(make_job(base, method=method, dtype=dtype), on_gpu=on_gpu)
        return job.weights_dtype, job.uses_autocast

    assert chosen("qlora", "auto", True) == ("bfloat16", False)
    assert chosen("qlora", "auto", False) == ("float32", False)
    assert chosen("lora", "bfloat16", False) == ("float32", True)
    assert chosen("full", "bfloat16", True) == ("float32", True)
    assert chosen("full", "float32", True) == ("float32", False)


def test_equal_subsets_share_their_work_and_others_do_not(tmp_path: Path, base: Path) -> None:
    corpus = make_corpus(tmp_path)

    def fingerprint(members: np.ndarray = MEMBERS, **tuning: Any) -> str:
        return stage_fingerprint(TuneStage(corpus, members, make_job(base, **tuning)))

    assert fingerprint(MEMBERS.copy()) == fingerprint()
    assert fingerprint(pool=PoolConfig(num_cpus=2)) == fingerprint()
    assert fingerprint(method="full", rank=4) == fingerprint(method="full", rank=8)
    others = [fingerprint(MEMBERS[:-1]), fingerprint(rank=8), fingerprint(learning_rate=1.0)]
    assert len({fingerprint(), *others}) == 4


def test_a_digest_is_that_of_the_ids(tmp_path: Path) -> None:
    expected = hashlib.sha256(b"candidates-2\ncandidates-5").hexdigest()
    assert members_digest(make_corpus(tmp_path), np.array([2, 5])) == expected


def test_the_manifest_and_the_files_name_no_folder_of_this_machine(
    tuned: StageOutput, base: Path
) -> None:
    told = tuned.manifest.model_dump_json(exclude={"settings"})
    assert str(base.parent) not in told
    config = json.loads(tuned.read_file("adapter_config.json"))
    assert config["base_model_name_or_path"] == str(base)  # as the recipe names it
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    layers = "down gate k o q up v".split()
    assert config["target_modules"] == [f"{name}_proj" for name in layers]


def test_files_of_an_object_store_are_fetched_for_as_long_as_they_are_needed(
    tuned: StageOutput,
) -> None:
    # A file system that is not the local one, as an object store's is not.
    root = Path(tuned.folder.path).parent
    remote = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    name = Path(tuned.folder.path).name
    there = StageOutput.open(Location(remote, name, f"s3://bucket/{name}"))
    assert there is not None
    with tuned_files(there) as files:
        assert files is not None
        folder = files.folder
        assert root not in folder.parents
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["adapter_config.json", "adapter_model.safetensors"]
        assert (folder / names[1]).read_bytes() == tuned.read_file(names[1])
    assert not folder.exists()


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
    StepProgress(folder)
    assert describe_steps(folder) == ""  # a new attempt has done nothing


def test_a_step_that_does_not_fit_is_taken_in_smaller_passes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    whole = tune._train

    def train(*arguments: Any) -> Any:
        tried.append(arguments[-1])
        if arguments[-1] < 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    monkeypatch.setattr(tune, "_train", train)
    monkeypatch.setattr(tune, "passes_of_a_step", lambda tuning, device: 1)
    job = make_job(base, method="lora", batch_size=6, num_epochs=1, gradient_checkpointing=True)
    record = run_tune(tmp_path / "small", job).read("tuning").to_pylist()
    assert tried == [1, 2, 3, 6]
    monkeypatch.undo()
    job = make_job(base, method="lora", batch_size=6, num_epochs=1)
    expected = run_tune(tmp_path / "whole", job).read("tuning").to_pylist()
    assert record[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=SAME_NLL)


def test_recomputed_activations_are_no_other_training(base: Path) -> None:
    assert make_job(base, gradient_checkpointing=True).settings() == make_job(base).settings()
