"""Data in, a run out: what ``import nncift_ray as nn`` offers; embeddings are hashes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

import nncift_ray as nn
from nncift_ray import embedders
from nncift_ray.engines.models import need_packages
from nncift_ray.errors import ConfigError, DataError, ModelError
from nncift_ray.library import make_recipe
from nncift_ray.recipe.loading import load_config
from nncift_ray.teachers.base import LabelRequest, Measurement
from tests.hash_embedder import HashEmbedder

NUM_ROWS, BUDGET = 40, 6
WHEN = datetime.datetime(2026, 1, 2, 3, 4)


def rows(count: int = NUM_ROWS) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}", "response": f"answer {i % 7} of {i}", "source": "web", "at": i}
        for i in range(count)
    ]


class LengthTeacher:
    """Likes long answers."""

    kind: ClassVar[Literal["pairwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement]:
        return [Measurement(float(len(request.helped.response))) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        return value

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedders, "load_embedder", lambda model: HashEmbedder())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def select(data: Any, **more: Any) -> nn.Run:
    return nn.select(data, budget=BUDGET, cluster="local", **more)


def test_a_dataset_comes_back_as_it_came_with_rank_gain_and_source() -> None:
    typed = [row | {"when": WHEN, "tags": ["a", "b"]} for row in rows()]
    data = datasets.Dataset.from_list(typed)
    run = select(data.select(range(NUM_ROWS - 1, -1, -1)))
    subset = run.subset
    assert subset["rank"] == list(range(1, BUDGET + 1))
    assert {name: subset.features[name] for name in data.features} == dict(data.features)
    assert subset[0]["source"] == "web"  # the records' own
    line = int(subset[0]["nncift_source"].rpartition(":")[2])
    assert subset[0]["at"] == NUM_ROWS - line  # the rows were given in reverse
    assert all(row["when"] == WHEN and row["tags"] == ["a", "b"] for row in subset)


def test_records_of_several_shapes_keep_their_fields(tmp_path: Path) -> None:
    mixed = [row | ({"extra": i} if i % 2 else {"other": [i]}) for i, row in enumerate(rows())]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    run = select("corpus.jsonl")
    assert str(run.run_dir).endswith("runs/corpus")
    assert {"extra", "other"} <= set(run.subset.column_names)
    assert [json.loads(line)["at"] for line in Path(run.path).read_text().splitlines()] == list(
        run.subset["at"]
    )


def test_a_run_answers_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = select(rows())
    ranking = run.table("ranking")
    assert ranking.num_rows == BUDGET
    picked = run.table("export/subset")["example_id"][0].as_py()
    assert run.explain(picked[:12]).place == 1
    with pytest.raises(DataError, match="deduplicate/candidates"):
        run.table("candidates")  # of several steps
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run.report.open()
    assert opened[0].startswith("file://")
    page = Path(run.report.path).read_text()
    assert page.count(picked[:12]) == 1  # in the list of all picks
    assert "nothing was left out before" in page.lower()
    assert f"{BUDGET} of {NUM_ROWS}" in repr(run)


def test_the_same_data_resume_and_another_budget_reuses_the_scores() -> None:
    first = select(rows())
    second = nn.select(rows(), budget=3, cluster="local")
    assert str(first.run_dir) == str(second.run_dir)
    assert first.outputs["score_pairs"].fingerprint == second.outputs["score_pairs"].fingerprint
    assert second.subset.num_rows == 3


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame(rows()),
        pa.Table.from_pylist(rows()),
        datasets.Dataset.from_list(rows()),
        datasets.Dataset.from_list(rows()).to_iterable_dataset(),
        iter(rows()),
    ],
    ids=["pandas", "arrow", "dataset", "iterable", "iterator"],
)
def test_every_kind_of_data_becomes_the_same_records(data: Any) -> None:
    made = make_recipe(data, targets=rows(3))
    (file,), (targets,) = made.data.candidates, made.data.targets
    reads = pd.read_parquet if file.endswith(".parquet") else pd.read_json
    found = reads(file, **({} if file.endswith(".parquet") else {"lines": True}))
    assert found.to_dict("records") == rows()
    assert Path(targets).parent == Path(file).parent


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(rows(2))}), "train"),
        ([1, 2], "row 1"),
        (7, "int"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_recipe(data)


def test_a_run_of_rows_that_cannot_be_used_says_why() -> None:
    image = {"role": "user", "content": [{"type": "image_url"}]}
    with pytest.raises(DataError, match="images are not supported"):
        nn.select([{"messages": [image, {"role": "assistant", "content": "a cat"}]}] * 3)


def test_a_recipe_saves_what_differs_and_selects_alike(tmp_path: Path) -> None:
    recipe = nn.Recipe(teacher="delift", cluster="local", selection={"objective": "graph_cut"})  # pyright: ignore
    recipe.save(tmp_path / "mine.yaml")
    tree = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert tree["teacher"] == {"kind": "delift"}
    assert "network" not in tree
    assert load_config(tmp_path / "mine.yaml").selection == recipe.selection
    made = make_recipe("a/corpus.jsonl", recipe=recipe, budget=5, teacher="less")
    assert (made.teacher.kind, made.selection.objective) == ("less", "graph_cut")
    assert (made.selection.budget, made.run_dir) == (5, "runs/corpus")


def test_a_teacher_of_ones_own_is_named_or_given() -> None:
    nn.register_teacher("length", LengthTeacher)
    path = f"{__name__}:LengthTeacher"
    assert make_recipe("x.jsonl", teacher="length").teacher.kind == path
    assert make_recipe("x.jsonl", teacher=LengthTeacher).teacher.kind == path
    with pytest.raises(ConfigError, match="built-in|cannot name"):
        nn.register_teacher("delift", LengthTeacher)
    with pytest.raises(ConfigError, match="lacks"):
        nn.register_teacher("empty", dict)


def test_facility_location_picks_as_by_hand() -> None:
    scores = np.array([[1.0, 0.0, 0.2], [0.9, 0.1, 0.3], [0.0, 0.8, 0.5]])
    picks, gains = nn.facility_location(scores, budget=2)
    assert list(picks) == [0, 1]  # 1.9 first; then 0.8 beats 0.5
    assert gains == pytest.approx([1.9, 0.8], abs=1e-6)
    order = np.argsort(-scores, axis=1)
    lists = (order, np.take_along_axis(scores, order, axis=1))
    assert list(nn.facility_location(lists, budget=2 / 3)[0]) == [0, 1]


def test_a_network_knows_the_cosine_it_was_shown() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = np.argwhere(np.ones((30, 30)))
    labels = np.maximum(np.einsum("pd,pd->p", vectors[pairs[:, 0]], vectors[pairs[:, 1]]), 0) ** 2
    helpers, influence = nn.influence_network(vectors, pairs, labels, top_k=5)
    unseen = helpers[30:]
    best = np.argsort(-(vectors[30:] @ vectors.T), axis=1)[:, :5]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(unseen, best, strict=True)])
    assert shared > 0.8
    assert (np.diff(influence, axis=1) <= 0).all()


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ModelError, match=r"nncift_ray\[evaluate\]"):
        need_packages("evaluate", "teacher.kind less", "json", "no_such_package")
