"""Sampling designs at equal teacher cost: which pairs to label.

    python -m benchmarks.sampling_designs --json        # the last line is one JSON object
    python -m benchmarks.sampling_designs --full        # more budgets and seeds; writes the page

Networks are trained on the pairs that a budget buys in each layout of the label sample, and
measured on pairs of rows and columns that no layout was offered (Q4), the same for all. For DELIFT
a budget is tokens that the teacher computes; its labels come from a matrix that takes the better
part of an hour to make, once (``python -m benchmarks.sampling_designs.labels FOLDER``); without it
only DELIFT (SE) is measured, whose labels are cosines and cost nothing: there a budget is pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.sampling_designs import page
from benchmarks.sampling_designs.costs import TokenCost, measure_cost
from benchmarks.sampling_designs.labels import COMPLETE, DATA, PARTIAL, LabelMatrix
from benchmarks.sampling_designs.trials import Outcome, Pairs, Table, Trial, draw, run
from benchmarks.teacher.texts import read_rows
from nncift_ray.corpus.examples import Example, embedding_text
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.models import resolve_embedder, resolve_language_model
from nncift_ray.labels.sample import LAYOUTS, PAPER

CACHE = Path.home() / ".cache" / "nncift_ray" / "benchmarks"
EMBEDDER, LANGUAGE_MODEL = "embedded:all-minilm-l6-v2", "embedded:smollm2-135m-instruct"
SE_ROWS = 1500  # on each axis
SE_HELD_OUT, DELIFT_HELD_OUT = (150, 100), (40, 20)
#: The sides of the square blocks whose cost is the budget.
SIDES = (16, 32, 50)
QUICK_SIDES = (32,)
SEEDS, QUICK_SEEDS = 6, 2
ENGINE_PAIRS, QUICK_ENGINE_PAIRS = 192, 48
DELIFT, DELIFT_SE = "delift", "delift_se"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling_designs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--labels", type=Path, default=CACHE, help="folder of the label matrix")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="all budgets and seeds; a page")
    parser.add_argument("--no-engine", action="store_true", help="do not check costs on the engine")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    started = time.perf_counter()
    options.labels.mkdir(parents=True, exist_ok=True)
    sides, seeds = (SIDES, SEEDS) if options.full else (QUICK_SIDES, QUICK_SEEDS)
    found: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    matrix = load_matrix(options.labels)
    if matrix is None:
        console.print(
            f"No label matrix in {options.labels}, so DELIFT is left out. Make it once, in the "
            f"better part of an hour:\n  python -m benchmarks.sampling_designs.labels "
            f"{options.labels}"
        )
    tables = make_tables(read_rows(options.data / "t0_train.jsonl.gz"), matrix, options.labels)
    outcomes = run_all(tables, sides, seeds)
    found["rows"] = [summary for table in tables for summary in page.summarise(table, outcomes)]
    if matrix is not None:
        found["matrix"] = [int(np.isfinite(matrix.utility).sum()), *matrix.utility.shape]
        if not options.no_engine:
            most = ENGINE_PAIRS if options.full else QUICK_ENGINE_PAIRS
            found["engine"] = check_costs(matrix, tables[DELIFT], sides[len(sides) // 2], most)
            page.add_seconds(found["rows"], found["engine"])
    found |= page.headline(found["rows"])
    found["seconds"] = round(time.perf_counter() - started, 1)
    page.show(found, console)
    if options.full:
        for path in page.write(found):
            console.print(f"wrote {path}")
    if options.json:
        print(json.dumps(found))


def load_matrix(folder: Path) -> LabelMatrix | None:
    """Read the label matrix, as far as it is measured; None where there is none."""
    for name in (COMPLETE, PARTIAL):
        if (folder / name).exists():
            return LabelMatrix.load(folder / name).compact()
    return None


def make_tables(
    rows: Sequence[Example], matrix: LabelMatrix | None, cache: Path
) -> dict[str, Table]:
    """Embed, and return what pairs are drawn from, by teacher."""
    helped, helpers = list(rows[:SE_ROWS]), list(rows[SE_ROWS : 2 * SE_ROWS])
    tables = {DELIFT_SE: cosine_table(embed(helped, cache), embed(helpers, cache))}
    if matrix is not None:
        tables[DELIFT] = Table(
            DELIFT,
            embed(matrix.helped, cache),
            embed(matrix.helpers, cache),
            functools.partial(_look_up, matrix.utility),
            TokenCost.of(matrix),
            DELIFT_HELD_OUT,
        )
    return tables


def cosine_table(helped_ED: np.ndarray, helper_ED: np.ndarray) -> Table:
    """Return the table of DELIFT (SE)."""
    labels = functools.partial(_cosine, helped_ED, helper_ED)
    return Table(DELIFT_SE, helped_ED, helper_ED, labels, _count, SE_HELD_OUT)


def _cosine(
    helped_ED: np.ndarray, helper_ED: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    return np.einsum("pd,pd->p", helped_ED[rows], helper_ED[columns])


def _look_up(utility_IJ: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return utility_IJ[rows, columns]


def _count(pairs: Pairs) -> float:
    return float(len(pairs[0]))


def embed(examples: Sequence[Example], cache: Path) -> np.ndarray:
    """Embed examples as the pipeline does; remembered by their texts."""
    texts = [embedding_text(one.prompt, one.response) for one in examples]
    path = cache / f"embeddings_{len(texts)}_{_digest(texts)}.npy"
    if not path.exists():
        embedder = SentenceTransformerEmbedder(resolve_embedder(EMBEDDER).path)
        np.save(path, embedder.embed(texts).astype(np.float32))
    return np.load(path, allow_pickle=False)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def run_all(tables: dict[str, Table], sides: Sequence[int], seeds: int) -> list[Outcome]:
    """Run every trial, a process a core."""
    trials = [
        (table, Trial(table.name, layout, side, seed))
        for table in tables.values()
        for side in sides
        for seed in range(seeds)
        for layout in LAYOUTS
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_run_trial, *zip(*trials, strict=True)))


def _run_trial(table: Table, trial: Trial) -> Outcome:
    """Turn the side of a square block into its cost, and run."""
    square = dataclasses.replace(trial, layout=PAPER, budget=np.inf)
    (rows, columns), _ = draw(_first(table, int(trial.budget)), square)
    outcome = run(table, dataclasses.replace(trial, budget=table.cost((rows, columns))))
    return dataclasses.replace(outcome, trial=trial)


def _first(table: Table, side: int) -> Table:
    """Leave all but a square block of a side unoffered: what is drawn then is that block."""
    held_out = table.size[0] - side, table.size[1] - side
    return dataclasses.replace(table, held_out=held_out)


def check_costs(matrix: LabelMatrix, table: Table, side: int, most: int) -> list[dict[str, Any]]:
    """Ask the real engine for a part of each design."""
    from nncift_ray.engines.vllm import VllmEngine
    from nncift_ray.teachers.delift import DeliftTeacher

    teacher = DeliftTeacher(VllmEngine(resolve_language_model(LANGUAGE_MODEL).path))
    cost = TokenCost.of(matrix)
    square = Trial(DELIFT, PAPER, np.inf, 0)
    (rows, columns), _ = draw(_first(table, side), square)
    budget = table.cost((rows, columns))
    measure_cost(teacher, matrix, cost, (rows, columns), 4)  # caches of kernels and tokens
    found: list[dict[str, Any]] = []
    for layout in LAYOUTS:
        pairs, _ = draw(table, Trial(DELIFT, layout, budget, 0))
        measured = measure_cost(teacher, matrix, cost, pairs, most)
        found.append({"layout": layout} | dataclasses.asdict(measured))
    teacher.close()
    return found


if __name__ == "__main__":
    main()
