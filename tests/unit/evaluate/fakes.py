"""Models of no weight for a whole evaluation in one process, without Ray."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from nncift_ray import embedders
from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringFailure, ScoringRequest, ScoringResult
from nncift_ray.engines.models import ResolvedModel, TunedModel
from nncift_ray.errors import ModelError
from nncift_ray.evaluation import run as evaluating
from nncift_ray.evaluation.run import Models
from nncift_ray.evaluation.tune import OnStep, TunedRecord, TuneJob
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config, TuningConfig
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.output import StageBegun
from nncift_ray.runtime.progress import Reporter
from nncift_ray.runtime.step import Stage
from tests.fake_engines import FakeEngine, FakeGenerator
from tests.hash_embedder import HashEmbedder

MODEL = ResolvedModel("tiny", "nowhere", "1")
KNOWLEDGE = "adapter_config.json"  # a tuned model is an adapter by this name
NUM_CANDIDATES, NUM_TARGETS, NUM_TESTS = 60, 8, 12


def write_corpora(folder: Path) -> None:
    """Write candidates, targets and two test sets: one clean, one with rows of the candidates."""
    candidates = [(f"candidate question {i}", f"answer {i % 9}") for i in range(NUM_CANDIDATES)]
    targets = [(f"target question {i}", f"answer {i}") for i in range(NUM_TARGETS)]
    clean = [(f"clean question {i}", f"answer {i}") for i in range(NUM_TESTS)]
    seen = [(f"seen question {i}", f"answer {i}") for i in range(NUM_TESTS - 2)]
    seen += [candidates[3], ("Candidate  QUESTION 4", "another answer")]
    for name, rows in {"pool": candidates, "target": targets, "clean": clean, "seen": seen}.items():
        records = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(records) + "\n")


def recipe(folder: Path, **evaluation: Any) -> Config:
    """Write the corpora and return a recipe with a teacher that needs no language model."""
    if not (folder / "pool.jsonl").exists():
        write_corpora(folder)
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [str(folder / "pool.jsonl")],
                 "targets": [str(folder / "target.jsonl")]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "labels": {"fraction": 0.5},
        "network": {"num_hidden": 8, "num_epochs": 2, "min_steps": 0},
        "evaluation": {
            "tests": {"clean": [str(folder / "clean.jsonl")], "seen": [str(folder / "seen.jsonl")]},
            "methods": ["initial", "random", "delift_se", "nn_cift+delift_se", "full"],
            "budgets": [0.2, 0.1],
            "curve_methods": ["random"],
            "random_seeds": 2,
            "modes": ["tuned"],
            "metrics": ["nll"],
            "bootstrap_samples": 200,
        } | evaluation,
    }  # fmt: skip
    return make_config(tree)


class Heard(Reporter):
    """A reporter that remembers what was started and told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.notices: list[str] = []
        self.headings: list[str] = []

    def stage_started(self, begun: StageBegun, done: int) -> None:
        self.started.append(begun.stage)

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def heading(self, name: str, message: str) -> None:
        self.headings.append(message)


def fake_tuner(
    job: TuneJob, examples: Sequence[Example], folder: Path, on_step: OnStep
) -> TunedRecord:
    """Learn how many examples there are."""
    (folder / KNOWLEDGE).write_text(str(len(examples)))
    return TunedRecord(len(examples), 10 * len(examples), 3, (2.0, 1.5), 0.1)


def diverging_at(num_examples: int) -> Any:
    """Return a tuner that cannot train on a subset of so many examples."""

    def train(job: TuneJob, examples: Sequence[Example], *rest: Any) -> TunedRecord:
        if len(examples) == num_examples:
            raise ModelError("the loss is not finite: lower evaluation.tuning.learning_rate")
        return fake_tuner(job, examples, *rest)

    return train


class TaughtEngine(FakeEngine):
    """Finds every answer likelier the more examples it was tuned on."""

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self._factor = 1.0 / (1.0 + num_examples)

    def score(self, requests: Sequence[ScoringRequest]) -> list[ScoringResult | ScoringFailure]:
        answers = super().score(requests)
        return [
            answer if isinstance(answer, ScoringFailure)
            else dataclasses.replace(answer, log_probs=answer.log_probs * self._factor)
            for answer in answers
        ]  # fmt: skip


class FakeEngines:
    """Loads a ``TaughtEngine``."""

    model = MODEL

    def __call__(self, tuned: TunedModel | None) -> TaughtEngine:
        return TaughtEngine(0 if tuned is None else int((tuned.folder / KNOWLEDGE).read_text()))

    def settings(self) -> dict[str, Any]:
        return {"engine": "fake"}


class FakeWriters:
    """Loads a generator that repeats the shown answer, or else says what it was taught."""

    model = MODEL

    def __call__(self, tuned: TunedModel | None = None) -> FakeGenerator:
        taught = "nothing" if tuned is None else (tuned.folder / KNOWLEDGE).read_text()

        def reply(prompt: str) -> str:
            *shown, _ = prompt.split("\n\n")
            return shown[-1].split("\n")[1] if shown else f"taught {taught}"

        return FakeGenerator(reply, max_length=4096)

    def settings(self) -> dict[str, Any]:
        return {"engine": "fake"}


class FakeJudges(FakeWriters):
    """Loads a judge that says 3 of every answer but those of the untaught model."""

    def __call__(self, tuned: TunedModel | None = None) -> FakeGenerator:
        def reply(prompt: str) -> str:
            return "no idea" if "taught nothing" in prompt else "Fair.\n[RESULT] 3"

        return FakeGenerator(reply, max_length=8192)


def fake_models(train: Any = fake_tuner) -> Any:
    """Return what finds the fakes in place of models."""

    def find(config: Config, has_gpu: bool) -> Models:
        job = TuneJob(MODEL, TuningConfig(), has_gpu)
        return Models(job, FakeEngines(), FakeWriters(), MODEL, HashEmbedder, FakeJudges(), train)  # pyright: ignore

    return find


def execute_pickled(stage: Stage, *rest: Any) -> Any:
    """Run a stage as an actor would get it."""
    if stage.hands_over:
        return execute_here(stage, *rest)
    return execute_here(pickle.loads(cloudpickle.dumps(stage)), *rest)  # noqa: S301


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an evaluation run in this process, with a hash for an embedder."""
    monkeypatch.setattr(embedders, "load_embedder", lambda model: HashEmbedder())
    monkeypatch.setattr(evaluating, "render_evaluation", lambda data: "tested elsewhere")
