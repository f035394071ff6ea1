"""How much of a block is labelled where the labels are the scores, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from nncift_ray.errors import ConfigError
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import label_designs
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config

CROSS, WITHIN, POINTS = ("cross",), ("within",), ("points",)
#: How labels of everything were asked for before labels could be scores.
ALL_LABELS = {"fraction": 1.0, "label_pairs": None, "holdout_pairs": 0}


def config(by: str, labels: dict[str, Any], **more: Any) -> Config:
    tree: dict[str, Any] = {
        "run_dir": "runs/x",
        "data": {"candidates": ["c.jsonl"], "targets": ["t.jsonl"]},
        "teacher": {"kind": "less"},
        "selection": {"objective": "top_k", "budget": 0.1},
        "labels": labels,
        "pair_scores": {"by": by},
    }
    return make_config(tree | more)


@pytest.mark.parametrize("blocks", [CROSS, WITHIN, POINTS, ("within", "cross")])
@pytest.mark.parametrize("labels", [{}, {"fraction": 0.05, "holdout_pairs": 50}, ALL_LABELS])
def test_labels_of_everything_are_those_that_a_fraction_of_one_asks_for(
    blocks: tuple[str, ...], labels: dict[str, Any]
) -> None:
    of_training = label_designs(config("network", ALL_LABELS), blocks, 1000, 100)
    assert label_designs(config("teacher", labels), blocks, 1000, 100) == of_training


def test_a_run_by_teacher_draws_groups_and_labels_as_one_by_network() -> None:
    by_network, by_teacher = (
        Blueprint(config(by, ALL_LABELS, teacher={"kind": "delift"}), fetch=False)
        for by in ("network", "teacher")
    )
    names = tuple(by_network.steps)
    upstream = names[: names.index("label") + 1]
    assert tuple(by_teacher.steps) == (*upstream, "teacher_scores", "repeats", "select", "export")
    assert names == (
        *upstream, "fit", "project", "score_pairs", "repeats", "select", "export"
    )  # fmt: skip


def test_less_over_all_rows_reads_the_candidates_by_themselves_and_labels_nothing() -> None:
    names = tuple(Blueprint(config("teacher", {}), fetch=False).steps)
    own = ("pool_ingest", "pool", "warmup", "gradients", "target_gradients", "teacher_scores")
    assert names[3 : names.index("teacher_scores") + 1] == own


@pytest.mark.parametrize("key", ["label_pairs", "max_pairs"])
def test_fewer_labels_are_whole_rows(key: str) -> None:
    designs = label_designs(config("teacher", {key: 25_500}), ("within", "cross"), 1000, 100)
    expected = {"within": 25 * 999, "cross": 25 * 1000}
    assert designs == {
        block: SampleDesign(None, pairs, 0, 0.1, 0, True) for block, pairs in expected.items()
    }


@pytest.mark.parametrize(
    ("blocks", "labels", "message"),
    [
        (CROSS, {"label_pairs": 999}, r"labels.label_pairs = 999.* one row is 1,000 pairs"),
        (POINTS, {"label_pairs": 999}, r"labels.label_pairs = 999.* 1,000 examples are to be"),
        (POINTS, {"max_pairs": 10}, r"labels.max_pairs = 10.* Raise labels.max_pairs"),
    ],
)
def test_labels_too_few_to_select_by_are_refused(
    blocks: tuple[str, ...], labels: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        label_designs(config("teacher", labels), blocks, 1000, 100)


def test_a_graph_cut_needs_every_pair() -> None:
    more = {"data": {"candidates": ["c.jsonl"]}, "teacher": {"kind": "delift"},
            "selection": {"objective": "graph_cut", "budget": 0.1}}  # fmt: skip
    whole = config("teacher", {}, **more)
    assert label_designs(whole, WITHIN, 100, 0)["within"].label_pairs is None
    with pytest.raises(ConfigError, match=r"graph_cut reads .* 9,900 pairs, and labels.lab"):
        label_designs(
            config("teacher", {"label_pairs": 5000}, **more), WITHIN, 100, 0, compares_picks=True
        )


def test_existing_data_are_refused() -> None:
    data = {"candidates": ["c.jsonl"], "existing": ["e.jsonl"]}
    selection = {"objective": "facility_location", "budget": 0.1}
    with pytest.raises(ConfigError, match=r"data.existing are never\s+labelled"):
        config("teacher", {}, data=data, selection=selection, teacher={"kind": "delift"})


def test_keys_that_only_a_network_reads_are_named() -> None:
    assert config("teacher", ALL_LABELS).unread == []
    named = config("teacher", {"fraction": 0.3}, network={"num_hidden": 8},
                   pair_scores={"by": "teacher", "mode": "auto"})  # fmt: skip
    assert named.unread == ["labels.fraction", "pair_scores.mode", "network"]
    notices = Blueprint(named, fetch=False)._teacher_notices()
    assert "labels.fraction, pair_scores.mode, network are not read" in notices[0]
