"""A whole evaluation in one process: what is done, what is not done again, what fails alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from nncift_ray.errors import ConfigError, DataError
from nncift_ray.evaluation.run import EvaluationResult, evaluate
from nncift_ray.recipe.sections import Config
from nncift_ray.runs import StatusReader
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import StageBegun
from tests.unit.evaluate.fakes import (
    NUM_CANDIDATES,
    NUM_TESTS,
    Heard,
    diverging_at,
    execute_pickled,
    fake_models,
    recipe,
    without_ray,
)

NUM_CELLS = 2 * (1 + 2 + 1 + 1 + 2 + 1)  # tests x (initial, random, two methods, curve, full)
PLAIN = ("initial", "random", "full")  # methods that cost no selection
NUM_PLAIN_CELLS = 2 * (1 + 2 + 2 + 1)


@pytest.fixture(autouse=True, scope="module")
def no_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_ray(monkeypatch)
        yield


@dataclass(frozen=True)
class Done:
    config: Config
    result: EvaluationResult
    heard: Heard


@pytest.fixture(scope="module")
def done(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    config = recipe(tmp_path_factory.mktemp("done"))
    return Done(config, *run(config))


def run(config: Config, find: Any = None) -> tuple[EvaluationResult, Heard]:
    heard = Heard()
    find = find or fake_models()
    return evaluate(config, reporter=heard, execute=execute_pickled, find=find), heard


def cells(scores: pa.Table) -> set[tuple[Any, ...]]:
    names = ["method", "budget", "seed", "mode", "test", "metric"]
    return {tuple(row.values()) for row in scores.select(names).to_pylist()}


def values(result: EvaluationResult, more: list[str]) -> list[tuple[Any, ...]]:
    names = ["method", "budget", "seed", "mode", "test", "metric", *more]
    return [tuple(row.values()) for row in result.data.scores.select(names).to_pylist()]


def mean(scores: pa.Table, method: str, budget: float) -> float:
    keep = pc.and_(pc.equal(scores["method"], method), pc.equal(scores["budget"], budget))
    return float(pc.mean(scores.filter(keep)["value"]).as_py())


def test_every_cell_has_a_value_for_every_row_and_more_examples_teach_more(done: Done) -> None:
    scores = done.result.data.scores
    assert scores.schema.equals(schemas.SCORES)
    assert len(cells(scores)) == NUM_CELLS
    assert scores.num_rows == NUM_CELLS / 2 * (NUM_TESTS + NUM_TESTS)
    assert scores["value"].null_count == 0
    assert not done.result.failures
    by_size = [("initial", 0.0), ("random", 0.1), ("random", 0.2), ("full", 1.0)]
    nats = [mean(scores, method, budget) for method, budget in by_size]
    assert nats == sorted(nats, reverse=True)


def test_the_untaught_model_comes_first_and_all_data_last(done: Done) -> None:
    measured = [line for line in done.heard.headings if line.startswith("cell")]
    assert measured[0] == f"cell 1 of {NUM_CELLS}: initial clean, likelihood"
    assert measured[-1] == f"cell {NUM_CELLS} of {NUM_CELLS}: full 100 % tuned seen, likelihood"


def test_all_methods_have_equally_many_examples(done: Done) -> None:
    scores = done.result.data.scores
    at_budget = scores.filter(pc.equal(scores["budget"], 0.2))
    assert set(at_budget["method"].to_pylist()) == {"random", "delift_se", "nn_cift+delift_se"}
    assert set(at_budget["num_examples"].to_pylist()) == {12}


def test_costs_agreement_and_fidelity_stand_beside_the_scores(done: Done) -> None:
    data = done.result.data
    assert set(data.costs["method"].to_pylist()) == {"delift_se", "nn_cift+delift_se"}
    assert {"label", "teacher_scores", "fit", "all"} <= set(data.costs["step"].to_pylist())
    (agreement,) = data.agreement.to_pylist()
    assert (agreement["method"], agreement["budget"]) == ("nn_cift+delift_se", 0.2)
    assert agreement["teacher_objective"] >= agreement["random_objective"]
    assert set(data.fidelity["method"].to_pylist()) == {"nn_cift+delift_se"}
    assert data.answers.num_rows == 0  # no metric needs any


def test_the_picks_of_every_subset_but_the_whole_corpus_are_written(done: Done) -> None:
    folder = Path(done.config.run_dir) / "evaluation"
    picks = pq.read_table(folder / "subsets.parquet")
    assert picks.schema.equals(schemas.SUBSETS)
    sizes = Counter((row["method"], row["seed"], row["budget"]) for row in picks.to_pylist())
    assert sizes == {
        ("random", 0, 0.2): 12, ("random", 1, 0.2): 12,
        ("random", 0, 0.1): 6, ("random", 1, 0.1): 6,
        ("delift_se", 0, 0.2): 12, ("nn_cift+delift_se", 0, 0.2): 12,
    }  # fmt: skip
    distinct = {(row["method"], row["seed"], row["budget"], row["example_id"])
                for row in picks.to_pylist()}  # fmt: skip
    assert len(distinct) == picks.num_rows


def test_doing_it_again_starts_no_stage(done: Done) -> None:
    again, heard = run(done.config)
    assert heard.started == []
    assert heard.headings == []
    assert again.data.scores.equals(done.result.data.scores)


ANSWERS = ["rouge", "bge", "exact_match", "judge"]


def test_answers_are_written_in_both_modes_and_graded_by_every_metric(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "methods": ["initial", "random"],
        "modes": ["icl", "tuned"],
        "budgets": [0.2],
        "random_seeds": 1,
        "tests": {"clean": [str(tmp_path / "clean.jsonl")]},
        "generation": {"max_rows": 5},
        "nll_max_rows": 4,
    }
    first, heard = run(recipe(tmp_path, **changes, metrics=["nll", "rouge", "bge"]))
    # Tuning comes before showing; of the untaught model there is one mode.
    order = ["initial", "random (seed 0) 20 % tuned", "random (seed 0) 20 % icl"]
    assert heard.headings == [
        f"cell {number} of 3: {cell} clean, {what}"
        for what in ("likelihood", "answers")
        for number, cell in enumerate(order, 1)
    ]
    rows = Counter((row[3], row[5]) for row in values(first, ["row_index"]))
    assert {mode: rows[mode, "nll"] for mode in ("none", "tuned", "icl")} == {
        "none": 12, "tuned": 12, "icl": 4,
    }  # fmt: skip
    assert all(count == 5 for (_, metric), count in rows.items() if metric != "nll")

    second, heard = run(recipe(tmp_path, **changes, metrics=["nll", *ANSWERS]))
    assert set(heard.started) == {"judge"}  # exact match came with ROUGE
    verdicts = {row[3]: row[-1] for row in values(second, ["value"]) if row[5] == "judge"}
    assert verdicts == {"none": None, "tuned": 3.0, "icl": 3.0}  # a judge that babbles: no grade
    texts = second.data.answers
    assert set(texts["response"].to_pylist()) > {"taught nothing", "taught 12"}
    shown = texts.filter(pc.equal(texts["mode"], "icl"))["response"].to_pylist()
    assert all(text.startswith("answer") for text in shown)  # as a candidate has it

    shown = second.data.answers.to_pylist()
    assert Counter(row["mode"] for row in shown) == {"none": 3, "tuned": 3, "icl": 3}
    assert all(row["response"] for row in shown)
    assert {row["verdict"] for row in shown} == {None, 3}


def test_candidates_that_hold_a_test_row_are_left_out_and_told(done: Done) -> None:
    (told,) = [line for line in done.heard.notices if "left out" in line]
    assert told.startswith("2 candidates hold the prompt of one of 24 rows of benchmarks and tests")
    assert done.result.data.facts.num_candidates == NUM_CANDIDATES - 2


def test_status_reads_a_run_directory_that_only_evaluated(done: Done) -> None:
    states = {stage.name: stage.state for stage in StatusReader(done.config.run_dir).read().stages}
    assert states["embed"] == "done"
    assert states["select"] == "missing"


def test_another_method_and_budget_cost_only_themselves(tmp_path: Path) -> None:
    run(recipe(tmp_path, methods=PLAIN, budgets=[0.2]))
    _, heard = run(recipe(tmp_path, methods=[*PLAIN, "delift_se"]))
    assert "embed" not in heard.started
    # Of delift_se one model at 0.2, of random two at 0.1; two test sets each.
    assert heard.started.count("tune") == 3
    assert heard.started.count("likelihood") == 6


def test_a_cell_that_fails_is_told_and_missing_and_the_others_go_on(tmp_path: Path) -> None:
    config = recipe(tmp_path, methods=PLAIN)
    result, heard = run(config, fake_models(diverging_at(6)))  # random at 10 %
    assert [part for parts in result.failures.values() for part in parts] == [
        f"random (seed {seed}) 10 % tuned {test}, likelihood"
        for seed in (0, 1)
        for test in ("clean", "seen")
    ]
    # One model that cannot be tuned is one failure, though two test sets miss it.
    assert sum("failed, the others go on" in line for line in heard.notices) == len(result.failures)
    assert all("learning_rate" in message for message in result.failures)
    assert any("failed: random (seed 0)" in line for line in result.data.facts.notices)
    scores = result.data.scores
    assert len(cells(scores)) == NUM_PLAIN_CELLS
    missing = scores.filter(pc.is_null(scores["value"]))
    assert cells(missing) == {row for row in cells(scores) if row[:2] == ("random", 0.1)}
    assert heard.started.count("tune") == len({row[:3] for row in cells(scores)}) - 1
    # The next run tries again what failed, and that alone.
    again, heard = run(config)
    assert not again.failures
    assert heard.started == ["tune", "likelihood", "likelihood"] * 2


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    class Stopping(Heard):
        def stage_started(self, begun: StageBegun, done: int) -> None:
            super().stage_started(begun, done)
            if self.started.count("likelihood") == 4:
                raise KeyboardInterrupt

    config, stopped = recipe(tmp_path, methods=PLAIN), Stopping()
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, reporter=stopped, execute=execute_pickled, find=fake_models())
    result, heard = run(config)
    assert len(cells(result.data.scores)) == NUM_PLAIN_CELLS
    _, whole = run(config.model_copy(update={"run_dir": str(tmp_path / "other")}))
    assert sorted(stopped.started[:-1] + heard.started) == sorted(whole.started)


def test_without_tests_the_error_shows_how_to_name_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tests:\n +gsm8k: \[corpora/gsm8k_test.jsonl\]"):
        run(recipe(tmp_path, tests={}))


def test_a_test_file_that_is_not_there_is_named_with_its_test_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation.tests.mine: .*nowhere.jsonl"):
        run(recipe(tmp_path, tests={"mine": [str(tmp_path / "nowhere.jsonl")]}))
