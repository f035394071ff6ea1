"""Which objective picks a subset of most worth, on planted worlds where the worth is known.

    python -m benchmarks.objectives --json          # a few minutes; last line: one JSON object
    python -m benchmarks.objectives --json --page   # writes objectives_cpu.md and .json

Settings are chosen on the seeds `TUNE`; what is reported is of the seeds `REPORT`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.objectives.worlds import World, best_known, draw_world
from benchmarks.pages import markdown_table
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import TINY_SHARE, lazy_greedy
from nncift_ray.selection.objectives import facility_location
from nncift_ray.selection.problem import SparseScores
from nncift_ray.selection.ties import TieBreak, directions

FOLDER = Path(__file__).parents[1]
NUM, LENGTH = 1500, 64
BUDGETS = (0.02, 0.05, 0.1)
TUNE, REPORT = range(3), range(10, 15)
WORLDS = {
    "pairs": {"hubs": 0.0, "strength": 1.0, "noise": 0.5},
    "as measured": {"hubs": 0.33, "strength": 1.0, "noise": 0.5},
    "hubs": {"hubs": 0.7, "strength": 1.0, "noise": 0.5},
    "strong hubs": {"hubs": 2.0, "strength": 1.0, "noise": 0.5},
    "nearly additive": {"hubs": 1.0, "strength": 0.15, "noise": 0.1},
    "noisy": {"hubs": 0.7, "strength": 1.0, "noise": 1.5},
}
Picks = tuple[np.ndarray, np.ndarray]  # order, gains
Lists = tuple[np.ndarray, np.ndarray]  # columns [I, K], values [I, K]


def top(score_NN: np.ndarray, length: int = LENGTH) -> Lists:
    """Return the best columns of every row, with their scores."""
    index = np.argpartition(-score_NN, length - 1, axis=1)[:, :length]
    return index, np.take_along_axis(score_NN, index, axis=1)


def cover(lists: Lists, world: World, count: int) -> Picks:
    """Facility location on lists on the scale 0 to 1, as a run has it, ties by distance."""
    index, value = lists
    scaled = (value - value.min()) / max(np.ptp(value), 1e-12)
    indptr = np.arange(len(index) + 1, dtype=np.int64) * index.shape[1]
    flat = index.reshape(-1).astype(np.int32), scaled.reshape(-1).astype(np.float32)
    scores = SparseScores(indptr, *flat, len(world.kind_N))
    width = world.vector_ND.shape[1]
    tie_break = TieBreak(
        np.ones(len(world.kind_N), np.float32), lambda c: directions(world.vector_ND[c], width)
    )
    ranking = lazy_greedy(facility_location(scores), Budget(count), tie_break=tie_break)
    return ranking.order, ranking.gain


def concave(lists: Lists, world: World, count: int, bend: Callable[..., np.ndarray]) -> Picks:
    """Greedy on sum_i bend(sum of the picks' values in i's list)."""
    index, value = lists
    rows = np.repeat(np.arange(len(index)), index.shape[1])
    columns, value = index.reshape(-1), np.clip(value, 0, None).reshape(-1)
    most = np.bincount(rows, value, len(index))
    sums, num = np.zeros(len(index)), len(world.kind_N)
    open_, order, gains = np.ones(num, bool), [], []
    for _ in range(count):
        added = bend(sums[rows] + value, most[rows]) - bend(sums[rows], most[rows])
        gain = np.where(open_, np.bincount(columns, added, num), -1)
        j = int(gain.argmax())
        order.append(j)
        gains.append(gain[j])
        open_[j] = False
        at = columns == j
        np.add.at(sums, rows[at], value[at])
    return np.array(order), np.array(gains)


def ranks(lists: Lists) -> Lists:
    """Replace values by 1 for the best of a row down to 1/K for its last."""
    index, value = lists
    place = np.argsort(np.argsort(-value, axis=1), axis=1)
    return index, 1 - place / value.shape[1]


def corrected(score_NN: np.ndarray) -> np.ndarray:
    """Return scores less the mean of their column over all rows."""
    return score_NN - score_NN.mean(axis=0)


def double_centred(score_NN: np.ndarray) -> np.ndarray:
    """Return scores less the means of their row and column."""
    return corrected(score_NN) - corrected(score_NN).mean(axis=1, keepdims=True)


def local_scaling(score_NN: np.ndarray) -> np.ndarray:
    """Return 2 s_ij less the mean of row i's and of column j's ten best (CSLS)."""
    row = np.sort(score_NN, axis=1)[:, -10:].mean(axis=1)
    column = np.sort(score_NN, axis=0)[-10:].mean(axis=0)
    return 2 * score_NN - row[:, None] - column


def root(total: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Square root."""
    return np.sqrt(total)


def logarithm(total: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Logarithm, relative to the mean of the row's list."""
    return np.log1p(total / np.maximum(most / LENGTH, 1e-12))


def saturation(share: float) -> Callable[..., np.ndarray]:
    """Count until a share of the row's list."""
    return lambda total, most: np.minimum(total, share * most)


def positive_above_row(score_NN: np.ndarray) -> np.ndarray:
    """Return scores above the row's mean."""
    return score_NN - score_NN.mean(axis=1, keepdims=True)


Method = Callable[[World, int], Picks]
METHODS: dict[str, Method] = {
    "facility location, as it was": lambda w, n: cover(top(w.score_NN), w, n),
    "FL, column mean removed": lambda w, n: cover(top(corrected(w.score_NN)), w, n),
    "FL, double-centred": lambda w, n: cover(top(double_centred(w.score_NN)), w, n),
    "FL, half the column mean removed": lambda w, n: cover(
        top(double_centred(w.score_NN) + 0.5 * (w.score_NN - double_centred(w.score_NN))), w, n
    ),
    "FL, pair part alone": lambda w, n: cover(top(w.pair_NN), w, n),
    "FL, local scaling": lambda w, n: cover(top(local_scaling(w.score_NN)), w, n),
    "FL, column mean removed in raw lists": lambda w, n: cover(
        _with_values(top(w.score_NN), double_centred(w.score_NN)), w, n
    ),
    "FL, row ranks": lambda w, n: cover(ranks(top(w.score_NN)), w, n),
    "FL, row ranks, centred": lambda w, n: cover(ranks(top(double_centred(w.score_NN))), w, n),
    "sqrt of sums above the row": lambda w, n: concave(
        top(positive_above_row(w.score_NN)), w, n, root
    ),
    "sqrt of sums, double-centred": lambda w, n: concave(
        top(double_centred(w.score_NN)), w, n, root
    ),
    "log of sums, double-centred": lambda w, n: concave(
        top(double_centred(w.score_NN)), w, n, logarithm
    ),
    "saturation 2 %, double-centred": lambda w, n: concave(
        top(double_centred(w.score_NN)), w, n, saturation(0.02)
    ),
    "saturation 5 %, double-centred": lambda w, n: concave(
        top(double_centred(w.score_NN)), w, n, saturation(0.05)
    ),
    "saturation 10 %, double-centred": lambda w, n: concave(
        top(double_centred(w.score_NN)), w, n, saturation(0.1)
    ),
    "FL on plain cosines": lambda w, n: cover(top(w.vector_ND @ w.vector_ND.T), w, n),
}


def _with_values(lists: Lists, score_NN: np.ndarray) -> Lists:
    return lists[0], np.take_along_axis(score_NN, lists[0], axis=1)


def measure(seeds: range, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row a world, method and budget: means over the seeds."""
    table: list[dict[str, Any]] = []
    for name, settings in WORLDS.items():
        rows: dict[tuple[str, float], list[tuple[float, ...]]] = {}
        for seed in seeds:
            world = draw_world(seed, NUM, **settings)
            most = round(BUDGETS[-1] * NUM)
            best = best_known(world, most)
            none = np.zeros(0)
            drawn = np.random.default_rng(seed)
            found = {m: method(world, most) for m, method in METHODS.items()}
            found |= {f"random {i}": (drawn.permutation(NUM)[:most], none) for i in range(20)}
            for method, (order, gain) in found.items():
                for budget in BUDGETS:
                    count = round(budget * NUM)
                    share = np.divide(world.values(order[:count]), world.values(best[:count]))
                    head = gain[:count]
                    decided = (head > TINY_SHARE * head.mean()).mean() if len(head) else np.nan
                    covered = world.num_covered(order[:count])
                    key = ("random" if method.startswith("random") else method, budget)
                    rows.setdefault(key, []).append((*share, covered, decided))
        for (method, budget), values in rows.items():
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
            table.append(
                {
                    "world": name, "method": method, "budget": budget,
                    "by_rows": round(float(mean[0]), 3), "by_clusters": round(float(mean[1]), 3),
                    "by_rows_std": round(float(spread[0]), 3), "clusters": round(float(mean[2]), 1),
                    "decided": None if np.isnan(mean[3]) else round(float(mean[3]), 3),
                }
            )  # fmt: skip
        say(f"{name}: done")
    return table


def overall(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a method: means over worlds and budgets, the best first."""
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys(row["method"] for row in table):
        mine = [row for row in table if row["method"] == method]
        worth = [(row["by_rows"] + row["by_clusters"]) / 2 for row in mine]
        by_world = {
            world: round(float(np.mean([w for w, r in zip(worth, mine, strict=True)
                                        if r["world"] == world])), 3)
            for world in WORLDS
        }  # fmt: skip
        decided = [row["decided"] for row in mine if row["decided"] is not None]
        rows.append(
            {
                "method": method, "value": round(float(np.mean(worth)), 3), **by_world,
                "clusters": round(float(np.mean([row["clusters"] for row in mine])), 1),
                "decided": round(float(np.mean(decided)), 3) if decided else None,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["value"])


def write_page(figures: dict[str, Any]) -> None:
    """Write benchmarks/objectives_cpu.md and .json."""
    (FOLDER / "objectives_cpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = figures["overall"]
    lines = [[str(value) if value is not None else "" for value in row.values()] for row in rows]
    settings = ", ".join(f"{name} {value}" for name, value in WORLDS.items())
    (FOLDER / "objectives_cpu.md").write_text(
        "# objectives_cpu\n\nWhich objective picks the most valuable subset of pools whose true"
        f" value is planted: {NUM} examples in 40 clusters of unequal size, 12 % wrong, 15 % near"
        " copies, 8 % of no cluster; scores are row effects, hubs, cosines and noise. `value`: the"
        " mean of two true values (noisy or over rows; learning curves of clusters) over that of"
        " greedy on the truth, budgets 2, 5 and 10 %. `decided`: share of picks that gain more"
        f" than a thousandth of the mean.\n\nMachine: {figures['machine']}. Commit"
        f" {figures['commit']}. Seeds {figures['seeds']}; forms and settings were chosen on"
        f" {list(TUNE)}. Worlds, in spreads of the cosines: {settings}.\n\n"
        "```bash\npython -m benchmarks.objectives --json --page\n```\n\n"
        f"{markdown_table(list(rows[0]), lines)}\n",
        encoding="utf-8",
    )


def main() -> None:
    """Measure, print, and with --page write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=__doc__)
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--tune", action="store_true", help="measure the seeds for choosing")
    parser.add_argument("--page", action="store_true", help="write the page")
    options = parser.parse_args()
    started = time.perf_counter()
    seeds = TUNE if options.tune else REPORT
    table = measure(seeds, lambda line: print(line, flush=True))
    best = overall(table)
    for row in best:
        print(row)
    figures: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    figures |= {"seeds": list(seeds), "overall": best, "table": table}
    figures["seconds"] = round(time.perf_counter() - started, 1)
    if options.page:
        write_page(figures)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
