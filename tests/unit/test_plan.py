"""What a plan counts for a pointwise teacher and for the objective top_k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from nncift_ray import plan as planner
from nncift_ray.errors import DataError
from nncift_ray.plan import STEP_START_SECONDS, RunPlan, make_plan
from nncift_ray.recipe.loading import make_config
from nncift_ray.scores.index_step import BlockDecision
from tests.chain import write_corpus

RATER = "tests.chain:LastDigitTeacher"


def plan(folder: Path, *, kind: str, num_candidates: int = 80, num_targets: int = 0) -> RunPlan:
    candidates, targets, *_ = write_corpus(folder, num_candidates, num_targets)
    tree = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [candidates], "targets": [targets] if num_targets else []},
        "teacher": {"kind": kind},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "labels": {"label_pairs": 20},
        "selection": {"objective": "top_k", "budget": 0.1},
    }
    return make_plan(make_config(tree))


def amounts(plan: RunPlan) -> dict[str, str]:
    return {stage.name: stage.amount for stage in plan.stages}


def test_a_pointwise_teacher_is_asked_once_for_each_example(tmp_path: Path) -> None:
    made = plan(tmp_path, kind=RATER)
    assert (made.num_requests, made.num_pairs_to_label, made.num_pairs_to_score) == (20, 20, 80)
    assert amounts(made)["label"] == "20 examples by 20 requests"
    assert amounts(made)["fit"] == "20 examples"
    assert amounts(made)["score_pairs"] == "80 examples"


def test_a_plan_that_lacks_examples_tells_of_the_rows_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "response": "b"}, {"prompt": "c"')
    data = {"candidates": [str(tmp_path / "rows.json")]}
    for teacher, said in (("delift_se", "at least one pair"), ("cosine", "only one row can be")):
        config = make_config({"data": data, "teacher": teacher})
        with pytest.raises(DataError, match=rf"(?s){said}.*rows\.json:2: the file ends"):
            make_plan(config, hardware="cpu")


def test_a_glance_reads_the_head_of_a_file_and_refuses_nothing(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "What is it?", "response": "It is that."})
    lines = [row.replace("it", f"{n}", 1) for n in range(1000)]
    lines[150:800] = ["broken"] * 650
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = make_config({"data": {"candidates": [str(tmp_path / "rows.jsonl")]}})
    with pytest.raises(DataError):
        make_plan(config, hardware="cpu")
    corpus = make_plan(config, hardware="cpu", glance=True).corpus
    assert not corpus.exact
    assert 350 < corpus.num_candidates < 1000


@pytest.mark.parametrize(("targets", "pairs"), [(5, "400"), (0, "6,400")])
def test_top_k_sums_pairs_and_keeps_no_list(tmp_path: Path, targets: int, pairs: str) -> None:
    made = plan(tmp_path, num_targets=targets, kind="delift_se")
    assert amounts(made)["label"] == "20 pairs by 20 requests"
    assert amounts(made)["score_pairs"] == f"{pairs} pairs, summed by candidate"


def test_a_corpus_of_no_example_has_no_plan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable row for data\\.candidates"):
        plan(tmp_path, num_candidates=0, kind=RATER)


def auto_plan(folder: Path, **labels: Any) -> RunPlan:
    candidates, *_ = write_corpus(folder, 80, 0)
    tree = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [candidates]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "labels": {"label_pairs": 20, **labels},
        "pair_scores": {"mode": "auto"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    return make_plan(make_config(tree))


@pytest.mark.parametrize(
    ("here", "num_gpus", "planned"), [("cpu", 1, "gpu"), ("gpu", 0, "cpu"), ("cpu", None, "cpu")]
)
def test_a_plan_counts_on_the_gpus_that_the_recipe_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, num_gpus: int | None, planned: str
) -> None:
    monkeypatch.setattr(planner, "detect_hardware", lambda: here)
    assert auto_plan(tmp_path, pool={"num_gpus": num_gpus}).hardware == planned


def test_a_plan_tells_both_ways_of_scoring_where_pairs_may_be_left_out(tmp_path: Path) -> None:
    told = amounts(auto_plan(tmp_path))
    assert "all pairs" in told["score_pairs"]
    assert "pruned" in told["score_pairs"]
    assert "measured" not in told["score_pairs"]
    assert "index" in told


@pytest.mark.parametrize(("mode", "seconds"), [("exact", 900.0), ("pruned", 290.0)])
def test_a_plan_after_the_index_tells_what_that_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["exact", "pruned"],
    seconds: float,
) -> None:
    decision = BlockDecision(
        mode, "", exact_seconds=900.0, pruned_seconds=300.0, build_seconds=10.0
    )
    monkeypatch.setattr(planner, "measured_decisions", lambda outputs: {"within": decision})
    made = auto_plan(tmp_path)
    told = "; all pairs 900 s, pruned 300 s with its index, by rates that this run measured"
    assert amounts(made)["score_pairs"].endswith(told)
    found = {stage.name: stage.seconds - STEP_START_SECONDS for stage in made.stages}
    assert found["score_pairs"] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("kind", "objective", "scored", "reads"),
    [
        ("longest", "top_k", "80 examples", None),
        ("ifd", "top_k", "80 examples", "profiles"),
        ("consistency", "top_k", "80 examples", "quality"),
        ("deita", "top_k", "80 examples", "quality"),
        ("loss_drop", "top_k", "80 examples", "loss_drop"),
        ("loss_drop_in_context", "top_k", "80 examples", "loss_drop"),
        ("less", "top_k", "400 pairs, summed by candidate", "gradients"),
        ("rds_plus", "round_robin", "400 pairs, top 64", "states"),
        ("landmarks", "round_robin", "400 pairs, top 64", "states"),
    ],
)
def test_what_is_measured_is_priced_by_what_it_reads(
    tmp_path: Path, kind: str, objective: str, scored: str, reads: str | None
) -> None:
    candidates, targets, *_ = write_corpus(tmp_path, 80, 5)
    tree = {
        "run_dir": str(tmp_path / "run"),
        "data": {"candidates": [candidates], "targets": [targets]},
        "teacher": {"kind": kind, "model": "embedded:smollm2-135m-instruct"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "pair_scores": {"by": "teacher"},
        "selection": {"objective": objective, "budget": 0.1},
    }
    made = make_plan(make_config(tree), hardware="cpu")
    assert (made.num_pairs_to_label, made.num_requests) == (0, 0)
    assert amounts(made)["teacher_scores"] == scored
    assert (made.num_teacher_tokens > 0) == (reads not in (None, "gradients"))
    seconds = {stage.name: stage.seconds - STEP_START_SECONDS for stage in made.stages}
    assert reads is None or seconds[reads] > 0


def test_a_cosine_scores_all_pairs_and_labels_none(tmp_path: Path) -> None:
    made = plan(tmp_path, num_targets=5, kind="cosine")
    assert (made.num_pairs_to_label, made.num_requests, made.num_teacher_tokens) == (0, 0, 0)
    assert "label" not in amounts(made)
    assert amounts(made)["score_pairs"] == "400 pairs, summed by candidate"


def test_a_long_scoring_of_all_pairs_is_told_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, *_ = write_corpus(tmp_path, 80, 0)
    tree: dict[str, Any] = {"run_dir": str(tmp_path), "data": {"candidates": [candidates]}}

    def told(**scoring: str) -> bool:
        made = make_plan(make_config(tree | {"pair_scores": scoring}))
        return any("pair_scores.mode: auto" in line for line in made.notices)

    assert not told()
    monkeypatch.setattr(planner, "PAIRS_PER_SECOND_PER_CORE", 1.0)
    assert told()
    assert not told(mode="auto")


def test_a_plan_by_teacher_labels_everything_and_trains_nothing(tmp_path: Path) -> None:
    candidates, targets, *_ = write_corpus(tmp_path, 80, 5)
    tree = {
        "run_dir": str(tmp_path / "run"),
        "data": {"candidates": [candidates], "targets": [targets]},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "pair_scores": {"by": "teacher"},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }
    made = make_plan(make_config(tree))
    assert (made.num_pairs_to_label, made.num_pairs_to_score) == (400, 0)
    assert amounts(made)["teacher_scores"] == "400 labels, top 64"
    assert not {"fit", "project", "score_pairs"} & set(amounts(made))
