"""The paper's tables on this machine: methods by use and metric, costs, the network's error.

    python -m benchmarks.paper_tables --data DATA --work WORK --labels FOLDER

DATA and WORK as for benchmarks.rivals (whose finished steps of the pool t0_rare are not run again);
FOLDER holds a matrix of `benchmarks.influence.labels`. Seconds are of one processor. The table of
methods is of an evaluation; the other tables stay as they are:

    python -m benchmarks.paper_tables --pool DATA
    nncift evaluate jobs/recipes/study_paper_table_cpu.yaml
    python -m benchmarks.paper_tables --evaluation runs/paper_tables
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.influence.__main__ import (
    Matrix,
    block_labels,
    predict,
    read_matrix,
    rivals,
    splits,
)
from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.rivals.cells import DEFAULT
from benchmarks.rivals.picks import FEWER_LABELS, run_recipe
from benchmarks.rivals.pools import make_pool
from nncift_ray.evaluation.methods import ICL, TUNED, UNTAUGHT
from nncift_ray.evaluation.results import EVALUATION_FOLDER, Evaluation
from nncift_ray.network.step import fit_block
from nncift_ray.recipe.sections import NetworkConfig
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.schemas import NOISE
from nncift_ray.scores.scorers import pair_backend

PAGE = Path(__file__).with_name("paper_tables_cpu")
SIZES, SHARES, NUM_SPLITS = (1_000, 5_000, 20_000), (0.05, 0.15, 0.3, 0.6), 3
LABEL_SHARE = 0.05  # of rows and of columns, as in the paper
MODE_WORDS = {UNTAUGHT: "untaught", TUNED: "fine-tuned", ICL: "in context"}
METRICS = {"nll": "NLL", "rouge1": "ROUGE-1", "rougeL": "ROUGE-L", "bge": "cosine"}
HIDDEN, TOP_K, BLOCK, DIM = 100, 64, 1_024, 384


def scored_seconds(num_rows: int) -> float:
    """Return the seconds in which a network of 100 numbers a pair lists each row's best 64."""
    rng = np.random.default_rng(0)
    a_IH, b_JH = (rng.standard_normal((num_rows, HIDDEN), np.float32) for _ in range(2))
    w_H = rng.standard_normal(HIDDEN, np.float32)
    score = pair_backend(num_threads=1)
    score(a_IH[:1], [(0, b_JH[:1])], w_H, 0.0, TOP_K)  # compiles
    started = time.process_time()
    for first in range(0, num_rows, BLOCK):
        score(a_IH[first : first + BLOCK], [(0, b_JH)], w_H, 0.0, TOP_K)
    return time.process_time() - started


def cosine_seconds(num_rows: int) -> float:
    """Return the seconds in which DELIFT (SE), all cosines, lists each row's best 64."""
    x_ND = np.random.default_rng(0).standard_normal((num_rows, DIM), np.float32)
    started = time.process_time()
    for first in range(0, num_rows, BLOCK):
        np.argpartition(-(x_ND[first : first + BLOCK] @ x_ND.T), TOP_K, axis=1)
    return time.process_time() - started


def fit_seconds(matrix: Matrix) -> Callable[[float], float]:
    """Return the seconds of a fit by labels: a line through two fits that were timed."""
    points: list[tuple[int, float]] = []
    for share in (SHARES[1], SHARES[-1]):
        seen_I, seen_J = next(splits(matrix, share, 1))
        data = block_labels(matrix, seen_I, seen_J, cut=matrix.raw_ND.shape[1])
        started = time.process_time()
        fit_block(data, "cross", NetworkConfig())
        points.append((len(data.utility), time.process_time() - started))
    (few, first), (many, last) = points
    slope = max(0.0, (last - first) / (many - few))
    return lambda labels: first + slope * max(0.0, labels - few)


def cost_rows(
    steps: Mapping[str, float],
    pool_rows: int,
    fit: Callable[[float], float],
    *,
    score: Callable[[int], float] = scored_seconds,
    cosine: Callable[[int], float] = cosine_seconds,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the seconds of each teacher, alone and with the network, by size.

    Args:
        steps: Seconds of the steps of a run over ``pool_rows`` rows with 500 labels.
        pool_rows: Rows of that run, targets included.
        fit: Seconds of a fit by labels.
        score: Seconds of the network's scores of all pairs.
        cosine: Seconds of all cosines.
    """
    a_row = {name: steps[name] / pool_rows for name in ("embed", "profiles", "quality")}
    a_label = steps["label"] / FEWER_LABELS
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        labels = (LABEL_SHARE * size) ** 2
        embed, scored, cosines = size * a_row["embed"], score(size), cosine(size)
        fitted = fit(labels)
        read = size * (a_row["profiles"] + a_row["quality"])
        alone = {"delift": size * (size - 1) * a_label, "delift_se": embed + cosines}
        network = {
            "delift": embed + read + labels * a_label + fitted + scored,
            "delift_se": embed + fitted + scored,
        }
        rows += [
            {"teacher": name, "rows": size, "teacher_seconds": alone[name],
             "network_seconds": network[name], "scores_seconds": scored}
            for name in alone
        ]  # fmt: skip
    return rows


def exponent(rows: Sequence[Mapping[str, Any]], teacher: str, column: str) -> float:
    """Return the power of the rows with which seconds grow, from the smallest to the largest."""
    first, *_, last = [row for row in rows if row["teacher"] == teacher]
    return log(last[column] / first[column]) / log(last["rows"] / first["rows"])


def error_rows(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the squared error in Q4 by share of labels, over the labels' variance there."""
    num_helpers, width = matrix.num_helpers, matrix.widths[0]
    vectors_ND = matrix.raw_ND[:, :width]
    cosine_IJ = vectors_ND[num_helpers:] @ vectors_ND[:num_helpers].T
    rows: list[dict[str, Any]] = []
    for name, labels_IJ in (("delift", matrix.label_IJ), ("delift_se", cosine_IJ)):
        labelled = replace(matrix, label_IJ=labels_IJ)
        for share in SHARES:
            found: dict[str, list[float]] = {}
            for seen_I, seen_J in splits(labelled, share, NUM_SPLITS):
                data = block_labels(labelled, seen_I, seen_J, cut=matrix.raw_ND.shape[1])
                ridge = rivals(labelled, data, (seen_I, seen_J))["additive ridge, same inputs"]
                models = {"network": predict(labelled, data, NetworkConfig()), "ridge": ridge,
                          "mean": np.full_like(labels_IJ, data.utility.mean())}  # fmt: skip
                at = np.ix_(~seen_I, ~seen_J)
                for model, score_IJ in models.items():
                    error = np.mean((score_IJ[at] - labels_IJ[at]) ** 2) / labels_IJ[at].var()
                    found.setdefault(model, []).append(float(error))
            means = {model: float(np.mean(each)) for model, each in found.items()}
            rows.append({"teacher": name, "share": share} | means)
    return rows


def duration(seconds: float) -> str:
    """Return seconds as they are read."""
    for limit, unit, size in ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600)):
        if seconds < limit:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def method_rows(data: Evaluation) -> list[dict[str, Any]]:
    """Return the summary of an evaluation: means and differences to random, null if not there."""
    keys = ("method", "mode", "metric", "num_seeds", "num_rows", "num_examples", "mean", "low",
            "high", "difference", "difference_low", "difference_high", "adjusted_p_value",
            "verdict")  # fmt: skip
    return [
        {key: None if row[key] != row[key] else row[key] for key in keys}
        for row in data.summary.to_pylist()
    ]


def method_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of methods by use and metric: means, and differences to random."""
    by_line: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_line.setdefault((row["mode"], row["method"]), {})[row["metric"]] = row
    lines = [
        [method, MODE_WORDS[mode], *(_mean_cell(cells.get(metric)) for metric in METRICS)]
        for wanted in MODE_WORDS
        for (mode, method), cells in by_line.items()
        if mode == wanted
    ]
    return markdown_table(["method", "use", *METRICS.values()], lines)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    judged = [row for row in rows if row["verdict"] is not None]
    told = sum(row["verdict"] != NOISE for row in judged)
    return f"**{told} of {len(judged)} differences are told from noise.**"


def _mean_cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["mean"] is None:
        return "-"
    if row["difference"] is None:
        return f"{row['mean']:.3f}"
    star = "" if row["verdict"] == NOISE else "*"
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['mean']:.3f}: {row['difference']:+.3f}{star} ({low:+.2f} to {high:+.2f})"


def measure(costs: list[dict[str, Any]], errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the page's other tables."""
    powers = {
        f"{teacher}_{column}": exponent(costs, teacher, f"{column}_seconds")
        for teacher in ("delift", "delift_se")
        for column in ("teacher", "network")
    } | {"scores": exponent(costs, "delift", "scores_seconds")}
    return {"machine": describe_machine(), "commit": describe_commit(), "costs": costs,
            "exponents": powers, "errors": errors}  # fmt: skip


def write_page(found: Mapping[str, Any]) -> None:
    """Write page and figures."""
    powers = found["exponents"]
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    cost_table = markdown_table(
        ["teacher", "rows", "teacher alone", "teacher + network", "ratio"],
        [
            [row["teacher"], row["rows"], duration(row["teacher_seconds"]),
             duration(row["network_seconds"]),
             f"{row['teacher_seconds'] / row['network_seconds']:,.1f}"]
            for row in found["costs"]
        ],
    )  # fmt: skip
    error_table = markdown_table(
        ["labels", "rows and helpers labelled", "network", "additive ridge", "mean"],
        [[row["teacher"], f"{row['share']:.0%}",
          *(f"{row[name]:.2f}" for name in ("network", "ridge", "mean"))]
         for row in found["errors"]],
    )  # fmt: skip
    PAGE.with_suffix(".md").write_text(
        f"""# paper_tables_cpu

Machine: {found["machine"]}, shared with other work. Commit {found["commit"]}.
{_methods(found)}
## What a choice costs

```bash
python -m benchmarks.paper_tables --data DATA --work WORK --labels FOLDER
```

Processor seconds (one thread, SmolLM2-135M in bfloat16, short rows of T0), from the corpus to a
list of each row's best 64 helpers. The network is told {LABEL_SHARE:.0%} of rows and of columns.
**Measured: all pair scores and all cosines at each size; embedding, profiles and quality on 220
rows, DELIFT on {FEWER_LABELS} labels and the fit on 468 and 7,632, extrapolated by rows and by
labels.** DELIFT of all pairs was not run.

{cost_table}

Seconds grow as rows to the power {powers["delift_teacher"]:.2f} (DELIFT alone),
{powers["delift_network"]:.2f} (with the network), {powers["delift_se_teacher"]:.2f} (DELIFT (SE)
alone), {powers["delift_se_network"]:.2f} (with the network); all pair scores as
{powers["scores"]:.2f}. A share of rows and columns is a share of pairs, so labelling stays
quadratic, {LABEL_SHARE**2:.2%} of DELIFT's; `labels.label_pairs` bounds it.

## The network's error by share of labels

Squared error over the labels' variance among pairs of which neither example was labelled (Q4),
mean of {NUM_SPLITS} splits of 240 x 88 labels of five sources; 1 is the mean of those very pairs.
Inputs were chosen on these DELIFT labels ([influence_cpu](influence_cpu.md)).

{error_table}
""",
        encoding="utf-8",
    )


def _methods(found: Mapping[str, Any]) -> str:
    if "methods" not in found:
        return ""
    return f"""
## What 30 % teach

The paper's budget on pool `instructions` of [rivals_cpu](rivals_cpu.md): 198 candidates, no target,
a tenth of the answers wrong, 59 picks. SmolLM2-135M-Instruct, after an epoch of LoRA or with the
nearest picks in its prompt, answers 24 of 48 held-out rows in at most 32 tokens; NLL is
of all 48, in context of 24. Means, and **differences to three random subsets** with 95 %
intervals; * Holm p < 0.05. NLL: lower is better, else higher. `cosine` is of answer and
reference by MiniLM-L6 where the paper has BGE; `full` is all 198 rows. Commit
{found["methods_commit"]}.
Not run: `delift` of all 39,000 pairs. One epoch in place of two, for time, before any result.

{_verdict(found["methods"])} Three random subsets tell nothing below 0.3 nats after
fine-tuning: they differ by 0.06, and Student's t with two degrees of freedom is 4.3.

{method_table(found["methods"])}

```bash
python -m benchmarks.paper_tables --pool DATA
nncift evaluate jobs/recipes/study_paper_table_cpu.yaml
python -m benchmarks.paper_tables --evaluation runs/paper_tables
```
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pool, or measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_tables")
    for name in ("--data", "--work", "--labels", "--pool", "--evaluation"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--commit", default=describe_commit(), help="on which the evaluation ran")
    options = parser.parse_args(arguments)
    if options.pool:
        make_pool("instructions", 1, options.pool).write(Path("corpora/instructions"))
        return 0
    known = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    if options.evaluation:
        data = Evaluation.read(Location.of(str(options.evaluation)) / EVALUATION_FOLDER)
        found = known | {"methods": method_rows(data), "methods_commit": options.commit}
    else:
        pool = make_pool("t0_rare", 1, options.data)
        _, steps, _ = run_recipe(pool, options.work / "runs" / "t0_rare-1", DEFAULT)
        matrix = read_matrix(options.labels)
        costs = cost_rows(steps, len(pool.candidates) + len(pool.targets), fit_seconds(matrix))
        found = known | measure(costs, error_rows(matrix))
    write_page(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
