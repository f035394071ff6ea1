from __future__ import annotations

import contextlib
import importlib.machinery
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from nncift_ray import library
from nncift_ray.errors import ConfigError
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Recipe
from nncift_ray.report.data import StageSummary
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.progress import Reporter
from tests.unit.report.make_data import make_report_data, make_teacher_data

FIGURES = {"picks": 4.0, "capture": 0.5}
Logged = list[tuple[str, Any]]


class Notices(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(members)
    return made


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """Stand in for all trackers; return what they were told."""
    told: Logged = []

    @contextlib.contextmanager
    def begin(**options: Any) -> Iterator[Any]:
        told.append(("begun", options))
        yield SimpleNamespace(log=lambda found: told.append(("figures", found)))

    class Writer(contextlib.nullcontext[Any]):
        def __init__(self, folder: str) -> None:
            super().__init__(self)
            told.append(("begun", {"folder": folder}))
            self.figures: dict[str, float] = {}

        def add_text(self, name: str, text: str) -> None:
            told.append((name, text))

        def add_scalar(self, name: str, value: float) -> None:
            self.figures[name] = value
            told[-1] = ("figures", self.figures)

    mlflow = module(
        "mlflow",
        start_run=begin,
        log_params=lambda found: told.append(("params", found)),
        log_metrics=lambda found: told.append(("figures", found)),
        set_tag=lambda name, value: None,
    )
    fakes = [mlflow, module("wandb", init=begin), module("tensorboard")]
    fakes.append(module("torch.utils.tensorboard", SummaryWriter=Writer))
    for fake in fakes:
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return told


def recipe(tracker: str | None, **keys: Any) -> Recipe:
    report = {"tracking": tracker} if tracker else {}
    return make_config({"data": {"candidates": ["a.jsonl"]}, "report": report, **keys})


@pytest.mark.parametrize("tracker", ["mlflow", "wandb", "tensorboard"])
def test_figures_are_logged_once_by_their_names(
    tmp_path: Path, logged: Logged, tracker: str
) -> None:
    notices = Notices()
    for figures in (FIGURES, FIGURES, FIGURES | {"picks": 5.0}):
        library.track(recipe(tracker), figures, Location.of(str(tmp_path / "mine")), notices)
    assert [told for name, told in logged if name == "figures"] == [
        FIGURES,
        FIGURES | {"picks": 5.0},
    ]
    assert "mine" in json.dumps(dict(logged)["begun"])
    assert not notices.told


def test_a_tracker_that_fails_costs_a_notice(tmp_path: Path, logged: Logged) -> None:
    def refuse(**options: Any) -> None:
        raise OSError("no route to the server")

    sys.modules["wandb"].init = refuse  # type: ignore[attr-defined]
    notices = Notices()
    for _ in range(2):  # and it is tried again
        library.track(recipe("wandb"), FIGURES, Location.of(str(tmp_path)), notices)
    assert (
        notices.told
        == [
            "report.tracking: wandb took no figures (no route to the server)",
        ]
        * 2
    )


def test_a_tracker_that_is_not_installed_is_told_of_before_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(library, "run", lambda *_, **__: pytest.fail("the run began"))
    with pytest.raises(ConfigError, match=r"pip install 'nncift_ray\[wandb\]'"):
        library.run_recipe(recipe("wandb"))


def test_figures_of_a_run_are_what_is_known() -> None:
    ranking = pa.table({"objective": [1.0, 3.5], "decided_by": ["objective", "quality"]})
    stages = (StageSummary("fit", 2.0, 10, 1, ""), StageSummary("select", 3.0, 10, 1, ""))
    data = replace(make_teacher_data(), ranking=ranking, stages=stages)
    data = replace(data, coverage=data.coverage.slice(0, 0))
    assert library.run_figures(data) == {
        "candidates": 100,
        "picks": 2,
        "labelled": 400,
        "objective": 3.5,
        "objective_of_random": 1.5,
        "seconds": 5.0,
        "seconds/fit": 2.0,
        "seconds/select": 3.0,
    }


def test_what_the_network_knows_stands_beside_what_a_cosine_does() -> None:
    found = library.run_figures(make_report_data())
    assert {"interaction_correlation", "interaction_correlation_of_cosine"} <= set(found)


def test_figures_of_an_evaluation_are_means_and_what_is_above_random() -> None:
    row = {
        "method": "nn_cift+delift",
        "budget": 0.1,
        "mode": "icl",
        "test": "math",
        "metric": "nll",
    }
    summary = pa.Table.from_pylist([row | {"mean": 1.5, "difference": -0.25}])
    assert library.evaluation_figures(summary) == {
        "math/icl/nll/nn_cift_delift/0.1": 1.5,
        "math/icl/nll/nn_cift_delift/0.1/above_random": -0.25,
    }
