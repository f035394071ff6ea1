"""Explaining and comparing finished runs, as functions and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nncift_ray.cli import app
from nncift_ray.errors import DataError, StageError
from nncift_ray.explain import Explanation, compare, explain
from nncift_ray.pipeline import (
    RUN_RECORD,
    publish_exports,
)
from nncift_ray.recipe.loading import make_config
from nncift_ray.runs import Run
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from tests.chain import run_chain

NUM_CANDIDATES, BUDGET = 60, 9


def make_run(folder: Path, objective: str, targets: int = 0, **plan: Any) -> Path:
    """Run the stages and leave the record that `nncift run` would."""
    outputs = run_chain(
        folder, num_candidates=NUM_CANDIDATES, num_targets=targets, objective=objective,
        budget=BUDGET, **plan,
    )  # fmt: skip
    data: dict[str, Any] = {"candidates": [str(folder / "corpus" / "candidates.jsonl")]}
    if targets:
        data["targets"] = [str(folder / "corpus" / "targets.jsonl")]
    config = make_config(
        {
            "run_dir": str(folder / "run"),
            "data": data,
            "teacher": {"kind": "delift_se"},
            "selection": {"objective": objective, "budget": BUDGET},
        }
    )
    record = {
        "config": config.model_dump(mode="json"),
        "stage_names": list(outputs),
        "stages": {name: output.fingerprint for name, output in outputs.items()},
    }
    (folder / "run" / RUN_RECORD).write_text(json.dumps(record))
    publish_exports(outputs["export"], Location.of(str(folder / "run")))
    return folder / "run"


@pytest.fixture(scope="module")
def covering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("covering"), "facility_location")


@pytest.fixture(scope="module")
def ranking_by_score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("score"), "top_k", targets=12)


def select_output(run: Path) -> StageOutput:
    return Run.open(str(run)).outputs["select"]


def ask(run: Path, example_id: str) -> Explanation:
    return explain(Run.open(str(run)), example_id)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


def test_a_pick_has_the_rank_gain_and_rows_of_the_run(covering: Path) -> None:
    ranking = select_output(covering).read("ranking").to_pylist()
    row = max(ranking, key=lambda pick: pick["num_covered"])
    found = ask(covering, row["example_id"][:14])
    assert (found.picked, found.place, found.gain) == (True, row["rank"], row["gain"])
    assert found.num_covered == row["num_covered"]
    coverage = select_output(covering).read("coverage")
    best = max(
        value
        for by, value in zip(
            coverage["covered_by"].to_pylist(), coverage["coverage"].to_pylist(), strict=True
        )
        if by == row["row_index"]
    )
    assert found.covers[0].coverage == pytest.approx(best)


def test_a_skipped_example_names_who_took_its_place_and_its_gain_now(covering: Path) -> None:
    row = select_output(covering).read("skipped").to_pylist()[0]
    found = ask(covering, row["example_id"])
    assert not found.picked
    assert found.gain == pytest.approx(row["final_gain"])
    assert found.redundant_with[0].example.subset_rank == row["redundant_with_rank"]
    assert found.redundant_with[0].share == pytest.approx(row["redundant_share"])
    assert found.redundant_with[0].cosine == pytest.approx(row["cosine"])
    assert found.gain <= found.last_gain
    assert BUDGET < found.place <= NUM_CANDIDATES


def test_what_picks_share_is_what_the_example_lost(covering: Path) -> None:
    row = select_output(covering).read("skipped").to_pylist()[0]
    found = explain(Run.open(str(covering)), row["example_id"], top=NUM_CANDIDATES)
    taken = sum(other.share for other in found.redundant_with)
    assert taken == pytest.approx(1 - found.gain / found.alone_gain, abs=1e-5)


def test_a_pick_names_the_skipped_it_stands_for(covering: Path) -> None:
    skipped = select_output(covering).read("skipped").to_pylist()
    left_out = next(row for row in skipped if row["redundant_with_rank"])
    picks = select_output(covering).read("ranking").to_pylist()
    found = ask(covering, picks[left_out["redundant_with_rank"] - 1]["example_id"])
    assert left_out["example_id"] in {other.example.example_id for other in found.stands_for}


def test_a_doubtful_candidate_is_explained_by_the_worth_that_selection_gave_it(
    tmp_path: Path,
) -> None:
    plain = make_run(tmp_path / "plain", "facility_location")
    first = select_output(plain).read("ranking").to_pylist()[0]
    judged = make_run(tmp_path / "judged", "facility_location", quality={first["row_index"]: 0.0})
    found = ask(judged, first["example_id"])
    assert not found.picked
    assert (found.gain, found.alone_gain) == (0.0, 0.0)
    assert ask(plain, first["example_id"]).alone_gain > 0.0


def test_under_top_k_a_score_and_the_cut_off_are_the_reason(ranking_by_score: Path) -> None:
    run = Run.open(str(ranking_by_score))
    picked = set(run.outputs["select"].read("ranking")["example_id"].to_pylist())
    names = run.outputs["deduplicate"].read("candidates", ["example_id"])["example_id"].to_pylist()
    found = explain(run, next(name for name in names if name not in picked))
    assert found.gain <= found.last_gain
    assert "below the cut-off" in found.reasons[0]
    assert not found.covers


def test_a_target_cannot_be_explained(ranking_by_score: Path) -> None:
    target = Run.open(str(ranking_by_score)).outputs["deduplicate"].read("targets")
    with pytest.raises(DataError, match="is a target, so it could not be selected"):
        ask(ranking_by_score, target["example_id"][0].as_py())


def test_a_selection_equals_itself(covering: Path) -> None:
    found = compare(str(covering), str(covering / "export" / "subset.jsonl"))
    assert found["num_only_a"] == found["num_only_b"] == 0
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert all(row["jaccard"] == row["contained"] == 1.0 for row in found["overlaps"])
    assert [row["share"] for row in found["overlaps"]] == [0.01, 0.05, 0.10, None]


def test_two_selections_share_what_both_have(covering: Path, ranking_by_score: Path) -> None:
    found = compare(str(covering), str(ranking_by_score))
    a, b = (
        set(select_output(run).read("ranking")["example_id"].to_pylist())
        for run in (covering, ranking_by_score)
    )
    whole = found["overlaps"][-1]
    assert whole["shared"] == len(a & b)
    assert whole["jaccard"] == pytest.approx(len(a & b) / len(a | b))
    assert {pick["example_id"] for pick in found["only_a"]} <= a - b
    assert sum(row["num_a"] for row in found["sources"]) == BUDGET


@pytest.mark.parametrize("name", ["subset.jsonl", "subset.parquet", "ids.txt"])
def test_every_exported_form_can_be_compared(covering: Path, name: str) -> None:
    assert compare(str(covering), str(covering / "export" / name))["overlaps"][-1]["jaccard"] == 1.0


def test_a_reversed_order_correlates_minus_one(covering: Path, tmp_path: Path) -> None:
    names = (covering / "export" / "ids.txt").read_text().split()
    (tmp_path / "back.txt").write_text("\n".join(reversed(names)))
    found = compare(str(covering), str(tmp_path / "back.txt"))
    assert found["rank_correlation"] == pytest.approx(-1.0)
    assert found["overlaps"][-1]["jaccard"] == 1.0


def test_a_file_that_is_no_subset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="not the subset of a run"):
        compare(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl"))


def test_an_unfinished_run_says_what_to_run(covering: Path) -> None:
    run = Run.open(str(covering))
    del run.outputs["select"]
    with pytest.raises(StageError, match="'select' of this run is not finished"):
        explain(run, "0")


def test_the_command_explains_in_words_and_in_json(covering: Path) -> None:
    name = select_output(covering).read("ranking")["example_id"][0].as_py()
    code, output = invoke("explain", str(covering), "--id", name)
    assert (code, "picked at rank 1 of 9" in output) == (0, True)
    code, output = invoke("explain", str(covering), "--id", name, "--json")
    assert (code, json.loads(output)["example"]["example_id"]) == (0, name)


def test_the_command_compares_in_words_and_in_json(covering: Path) -> None:
    code, output = invoke("diff", str(covering), str(covering))
    assert (code, "Spearman 1.000" in output) == (0, True)
    code, output = invoke("diff", str(covering), str(covering / "export" / "ids.txt"), "--json")
    assert (code, json.loads(output)["num_only_a"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("explain", "{run}", "--id", "zz"), 3, "no example of this run has an id"),
        (("explain", "{empty}", "--id", "00"), 6, "no run here"),
        (("diff", "{run}", "{empty}"), 6, "no run here"),
        (("diff", "{run}", "{empty}/ids.txt"), 6, "cannot be read"),
        (("explain", "{run}"), 2, "--id"),
    ],
)
def test_what_is_wrong_has_its_exit_code(
    covering: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    filled = [part.format(run=covering, empty=tmp_path) for part in arguments]
    found, output = invoke(*filled)
    assert found == code
    assert words in output


def test_nan_never_stands_in_an_explanation(covering: Path) -> None:
    names = Run.open(str(covering)).outputs["deduplicate"].read("candidates", ["example_id"])
    for name in names["example_id"].to_pylist()[:10]:
        found = ask(covering, name)
        assert np.isfinite([found.gain, found.alone_gain, found.last_gain]).all()
