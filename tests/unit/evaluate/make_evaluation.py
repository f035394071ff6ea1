"""An evaluation for tests: values drawn with a seed, summarised by the real statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from nncift_ray.evaluation.metrics import LOWER_IS_BETTER
from nncift_ray.evaluation.results import Evaluation, EvaluationFacts
from nncift_ray.runtime import schemas
from tests.unit.evaluate.make_scores import make_scores
from tests.unit.report.make_data import make_fidelity

NUM_ROWS = 40
#: By how much each method is better than random, in deviations of a row.
GAINS = {
    "initial": -1.5,
    "random": 0.0,
    "delift": 0.8,
    "nn_cift+delift": 0.6,
    "selectit": -0.7,
    "full": 1.0,
}
CURVES = ("random", "nn_cift+delift")
BUDGETS = (0.05, 0.1, 0.3)
MEANS = {"nll": 2.4, "rouge1": 0.31, "judge": 3.0}
SPREADS = {"nll": 0.2, "rouge1": 0.05, "judge": 0.9}


def cells() -> Iterator[tuple[str, float, int, str]]:
    """Name every subset and its use: method, budget, seed, mode."""
    yield "initial", 0.0, 0, "none"
    for mode in ("tuned", "icl"):
        yield "full", 1.0, 0, mode
        for method in GAINS:
            for budget in BUDGETS if method in CURVES else (0.1,):
                if method not in ("initial", "full"):
                    for seed in range(3 if method == "random" else 1):
                        yield method, budget, seed, mode


def make_evaluation_scores(tests: tuple[str, ...] = ("gsm8k", "t0")) -> pa.Table:
    """Draw the scores of all cells: rows are hard or easy for all, methods shift them."""
    generator, tables = np.random.default_rng(0), list[pa.Table]()
    for test in tests:
        for metric, mean in MEANS.items():
            row_effect = generator.normal(size=NUM_ROWS)
            sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
            for method, budget, seed, mode in cells():
                size = np.log(max(budget, 0.01) / 0.1) * 0.2 if method in CURVES else 0.0
                shift = (GAINS[method] if mode != "icl" else 0.3 * GAINS[method]) + size
                values = mean + SPREADS[metric] * (
                    row_effect + sign * shift + 0.3 * generator.normal(size=NUM_ROWS)
                )
                if metric == "judge":
                    values = np.clip(np.round(values), 1, 5)
                kept: list[float | None] = values.tolist()
                if metric == "judge" and method == "delift":
                    kept[::5] = [None] * len(kept[::5])
                tables.append(
                    make_scores(
                        method, kept, budget=budget, seed=seed, mode=mode, test=test,
                        metric=metric, num_examples=round(1000 * budget),
                    )
                )  # fmt: skip
    return pa.concat_tables(tables)


def make_costs() -> pa.Table:
    """Make costs whose savings are 90 % measured and 99 % extrapolated."""
    farther = {"delift": 1e5, "nn_cift+delift": 1e3}
    steps = {
        "delift": {"embed": 20.0, "label": 980.0},
        "nn_cift+delift": {"embed": 20.0, "label": 60.0, "fit": 20.0},
    }
    rows: list[dict[str, object]] = []
    for method, seconds in steps.items():
        whole = sum(seconds.values())
        for step, value in (*seconds.items(), ("all", whole)):
            rows.append(_cost(method, step, 1000, value, False))
        rows.append(_cost(method, "all", 1_000_000, whole * farther[method], True))
    return pa.Table.from_pylist(rows, schemas.COSTS)


def _cost(
    method: str, step: str, num_candidates: int, seconds: float, extrapolated: bool
) -> dict[str, object]:
    return {
        "method": method, "step": step, "num_candidates": num_candidates, "seconds": seconds,
        "accelerator_seconds": 0.0, "cpu_seconds": 2 * seconds,
        "num_tokens": round(1000 * seconds) if step in ("label", "all") else None,
        "price": seconds / 3600, "extrapolated": extrapolated, "shared": step == "embed",
        "labelled_fraction": 1.0 if step == "label" else None,
    }  # fmt: skip


def make_agreement() -> pa.Table:
    """Make the agreement of one network with its teacher."""
    row = {"method": "nn_cift+delift", "teacher": "delift", "budget": 0.1, "overlap": 0.4}
    row |= {"chance_overlap": 0.1, "objective": 95.0, "teacher_objective": 100.0}
    return pa.Table.from_pylist([row | {"random_objective": 80.0}], schemas.AGREEMENT)


def make_network_fidelity() -> pa.Table:
    """Make the fidelity of one network."""
    table = make_fidelity("cross")
    names = pa.array(["nn_cift+delift"] * table.num_rows)
    rows = table.append_column("method", names).to_pylist()
    return pa.Table.from_pylist(rows, schemas.NETWORK_FIDELITY)


def make_answers(text: str = "There are 12 apples, so each gets 3.") -> pa.Table:
    """Make the answers of four methods to two rows."""
    rows = [
        {
            "test": test, "row_index": row, "prompt": f"{text} How many are left?",
            "reference": text, "method": method, "budget": budget, "seed": 0, "mode": mode,
            "response": None if method == "delift" else f"{method}: {text}",
            "verdict": 3 if method == "random" else None,
        }
        for test, row in (("gsm8k", 3), ("t0", 1234))
        for method, budget, mode in (("initial", 0.0, "none"), ("random", 0.1, "tuned"),
                                     ("delift", 0.1, "tuned"), ("nn_cift+delift", 0.1, "tuned"))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schemas.ANSWERS)


def make_evaluation(text: str = "There are 12 apples, so each gets 3.") -> Evaluation:
    """Make an evaluation with every part filled; ``text`` stands where corpus text can stand."""
    facts = EvaluationFacts(
        name="tiny",
        num_samples=400,
        num_candidates=1000,
        model="SmolLM2-135M-Instruct",
        judge="prometheus",
        created="2026-11-26 07:00 UTC",
        config={"evaluation": {"budgets": [0.1]}},
        environment={"python": "3.11"},
        notices=(text,),
    )
    return Evaluation(
        facts,
        make_evaluation_scores(),
        make_costs(),
        make_agreement(),
        make_network_fidelity(),
        make_answers(text),
    )


def make_empty_evaluation() -> Evaluation:
    """Make an evaluation in which nothing was measured."""
    return Evaluation(EvaluationFacts(name="empty", num_samples=400))


def with_scores(data: Evaluation, scores: pa.Table) -> Evaluation:
    """Put other scores in the place of an evaluation's."""
    return replace(data, scores=scores)
