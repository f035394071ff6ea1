"""What a recipe asks of its teacher is checked before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nncift_ray import pipeline
from nncift_ray.engines import models
from nncift_ray.engines.models import (
    EMBEDDED_LANGUAGE_MODEL,
    PAPER_LANGUAGE_MODEL,
    EngineFactory,
    ResolvedModel,
)
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample, LabelStage
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime import session
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.session import RayWorkers
from nncift_ray.teachers.base import RecipeTeacher
from nncift_ray.teachers.gradients import WarmupStage
from tests.chain import LastDigitTeacher
from tests.fake_engines import FakeEngine

RATER = "tests.chain:LastDigitTeacher"


def recipe(objective: str = "top_k", **teacher: Any) -> Config:
    return make_config(
        {
            "run_dir": "runs/x",
            "data": {"candidates": ["corpus.jsonl"]},
            "teacher": {"model": "embedded:smollm2-135m-instruct", **teacher},
            "selection": {"objective": objective, "budget": 0.1},
        }
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "awq"}, "teacher.quantization: awq needs vLLM"),
        ({"tensor_parallel_size": 2}, "teacher.tensor_parallel_size: only vLLM"),
    ],
)
def test_what_transformers_cannot_do_is_refused(options: dict[str, Any], words: str) -> None:
    config = recipe(kind="delift", engine="transformers", **options)
    with pytest.raises(ConfigError, match=words):
        RecipeTeacher(config, has_gpu=False, fetch=False).check()


def test_an_adapter_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = recipe(kind="delift", engine="transformers", adapter=str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"teacher.adapter: .*none is no folder"):
        RecipeTeacher(config, has_gpu=False, fetch=False).check()


def test_only_a_teacher_of_gradients_has_their_stages() -> None:
    less = Blueprint(recipe(kind="less"), fetch=False)
    delift = Blueprint(recipe(kind="delift"), fetch=False)
    assert set(less.steps) - set(delift.steps) == {"warmup", "gradients"}
    profiling = ("profiles", "neighbours", "quality")
    first = ("ingest", "deduplicate", "embed", *profiling, "warmup", "gradients")
    assert tuple(less.steps)[:8] == first


def test_profiles_are_of_the_teachers_model_another_or_none() -> None:
    def stages(kind: str, **profiles: Any) -> Collection[str]:
        config = recipe("facility_location", kind=kind)
        section = config.profiles.model_copy(update=profiles)
        return Blueprint(config.model_copy(update={"profiles": section}), fetch=False).steps

    assert "profiles" in stages("delift")
    assert "profiles" not in stages("delift", model=None)
    assert "profiles" not in stages("delift_se")
    assert "profiles" in stages("delift_se", model=EMBEDDED_LANGUAGE_MODEL)


def test_actors_of_a_split_model_hold_all_its_gpus() -> None:
    split = RecipeTeacher(recipe(kind="delift", tensor_parallel_size=4), has_gpu=True, fetch=False)
    assert split.pool.num_gpus == 4.0
    assert RecipeTeacher(recipe(kind="delift"), has_gpu=True, fetch=False).pool.num_gpus is None


def test_the_settings_of_two_quantisations_differ() -> None:
    plain = RecipeTeacher(recipe(kind="delift"), has_gpu=False, fetch=False)
    packed = RecipeTeacher(
        recipe(kind="delift", quantization="bitsandbytes"), has_gpu=False, fetch=False
    )
    assert plain.settings() != packed.settings()


class LoadsItsOwnModel(LastDigitTeacher):
    """Asks no engine of the recipe's, but wants a GPU."""

    needs_gpu: ClassVar[bool] = True


def test_a_teacher_that_loads_its_own_model_can_ask_for_gpu_actors() -> None:
    sample = LabelSample(None, {"within": SampleDesign()}, needs_baseline=False)  # type: ignore[arg-type]
    own = LabelStage(sample, LoadsItsOwnModel, LoadsItsOwnModel, {})
    assert (own.can_use_gpu, own.single_threaded, own.max_actors) == (True, False, None)
    plain = LabelStage(sample, LastDigitTeacher, LastDigitTeacher, {})
    assert (plain.can_use_gpu, plain.single_threaded, plain.max_actors) == (False, True, 1)


@pytest.mark.parametrize("kind", ["selectit", RATER])
def test_a_teacher_of_examples_selects_by_top_k_only(kind: str) -> None:
    words = rf"teacher.kind {kind}.* scores examples, not pairs, .*top_k \(given: graph_cut\)"
    with pytest.raises(ConfigError, match=words):
        Blueprint(recipe("graph_cut", kind=kind), fetch=False)


def test_auto_is_chosen_by_the_gpus_of_workers_not_by_the_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def cached(name: str) -> ResolvedModel:
        asked.append(name)
        return ResolvedModel(name, "/models", "c" * 40)

    monkeypatch.setattr(models, "_has_cuda", lambda: False)
    monkeypatch.setattr(models, "cached_snapshot", cached)
    teaching = Blueprint(recipe(kind="delift", model="auto"), fetch=False).teaching
    teaching.check()
    assert asked == []  # what workers have is not known before the cluster is
    teaching.begun_with_gpu = True
    assert [model.name for model in teaching.language_models] == [PAPER_LANGUAGE_MODEL]


def label_fingerprint(folder: Path) -> str:
    """Label with a model whose dtype is "auto"; return where the labels are."""
    rows = [json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}) for i in range(8)]
    corpus = folder.parent / "corpus.jsonl"
    corpus.write_text("\n".join(rows))
    tree = {
        "run_dir": str(folder),
        "data": {"candidates": [str(corpus)]},
        "teacher": {"kind": "selectit", "model": EMBEDDED_LANGUAGE_MODEL},
        "selection": {"objective": "top_k", "budget": 2},
        "pair_scores": {"by": "teacher"},
        "profiles": {"model": None},
    }
    config = make_config(tree)
    result = pipeline.run(config, reporter=SilentReporter(), execute=execute_here, until="label")
    return result.outputs["label"].fingerprint


def test_a_run_that_goes_on_where_there_is_a_gpu_finds_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineFactory, "__call__", lambda factory: FakeEngine())
    found: dict[tuple[str, bool], str] = {}
    for name, has_gpu in (("a", False), ("a", True), ("b", True), ("b", False)):
        totals = {"CPU": 1.0, "GPU": float(has_gpu)}
        monkeypatch.setattr(session, "local_totals", lambda totals=totals: totals)
        found[name, has_gpu] = label_fingerprint(tmp_path / name)
    assert found["a", False] == found["a", True]
    assert found["b", False] == found["b", True]
    assert found["a", False] != found["b", True]  # float32 and bfloat16


@pytest.mark.parametrize(
    ("on_one_machine", "pool", "num_cpus", "use_gpu"),
    [
        (True, {}, max(1.0, float((os.cpu_count() or 1) // 2)), False),
        (False, {}, 4.0, True),  # of the nodes, not of the driver's machine
        (False, {"num_cpus": 3, "num_gpus": 0}, 3.0, False),
    ],
)
def test_training_workers_hold_what_their_nodes_have(
    tmp_path: Path, on_one_machine: bool, pool: dict[str, Any], num_cpus: float, use_gpu: bool
) -> None:
    less = {"num_workers": 2, "pool": {**pool, "labels": {"zone": "a"}}}
    blueprint = pipeline.Blueprint(recipe(kind="less", less=less), fetch=False)
    stage = object.__new__(WarmupStage)
    stage.workers = RayWorkers(Location.of(str(tmp_path)), 2)
    totals = {"CPU": 64.0, "GPU": 0.0 if on_one_machine else 8.0}
    where = session.Session(execute_here, lambda: totals, on_one_machine)
    pipeline.give_resources(stage, blueprint, where)
    assert stage.workers is not None
    each = stage.workers.each
    assert (each.num_cpus, each.num_gpus) == (num_cpus, float(use_gpu))
    assert each.labels == {"zone": "a"}
