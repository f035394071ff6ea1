"""Which options of training earn their place, on real labels of examples no training saw (Q4).

    python -m benchmarks.training_options --labels delift_t0.npz --json    # last line: one object

For each seed some rows and columns of a matrix of labels are seen: their block is trained on as the
fit stage trains (five folds of unseen examples choose the number of epochs), and the pairs of
unseen rows with unseen columns are predicted. DELIFT's labels are the file's; DELIFT (SE) labels of
the same pairs are cosines of the very vectors the network reads, so nothing in them is hidden from
it. Writes ``training_options_cpu.md`` and ``.json`` beside the other results. Every finished trial
is kept in a file (``--trials``), so that a run can be cut off and go on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.training_options.matrix import LabelMatrix, read_matrix
from benchmarks.training_options.variants import BENCHMARK, VARIANTS
from nncift_ray.network.fidelity import NETWORK, ROW_COLUMN_MEAN, fidelity_table, spearman

FOLDER = Path(__file__).parents[1]
MEASURES = {
    "relative_mse": "MSE / row + column mean's",
    "r2": "R2",
    "centred_r2": "R2, rows centred",
    "spearman": "Spearman",
    "row_spearman": "Spearman within rows",
    "top_overlap": "best helpers found",
}
BASE = "network"


def main() -> None:
    """Run the trials that are not done yet and write the page."""
    options = _read_options()
    torch.set_num_threads(1)
    started = time.perf_counter()
    matrix = read_matrix(options.labels)
    teachers = {"DELIFT": matrix, "DELIFT (SE)": matrix.with_cosines()}
    trials = json.loads(options.trials.read_text()) if options.trials.exists() else []
    done = {(t["teacher"], t["variant"], t["seed"]) for t in trials}
    for seed in range(options.seeds):
        for teacher, labels in teachers.items():
            for variant in VARIANTS:
                if (teacher, variant, seed) not in done:
                    trials.append(run_trial(teacher, labels, variant, seed, options.seen))
                    options.trials.write_text(json.dumps(trials))
    figures = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "labels": int(np.isfinite(matrix.utility_IJ).sum()),
        "matrix": list(matrix.utility_IJ.shape),
        "seen": options.seen,
        "seeds": len({t["seed"] for t in trials}),
        "steps": f"batches of {BENCHMARK.training.batch_size}, learning rate "
        f"{BENCHMARK.training.learning_rate}, at most {BENCHMARK.min_steps} steps or so",
        "seconds": round(time.perf_counter() - started, 1),
        "table": summarise(trials),
    }
    (FOLDER / "training_options_cpu.md").write_text(to_markdown(figures))
    (FOLDER / "training_options_cpu.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(to_markdown(figures))
    if options.json:
        print(json.dumps(figures))


def run_trial(
    teacher: str, matrix: LabelMatrix, variant: str, seed: int, seen: tuple[int, int]
) -> dict[str, Any]:
    """Train one variant on one draw of seen examples and measure it on Q4."""
    data = matrix.draw(*seen, seed)
    started = time.process_time()
    found = VARIANTS[variant](matrix, data, seed)
    seconds = time.process_time() - started
    rows = fidelity_table(
        data.utility, found.influence, data.split, data.helped_index, data.helper_index, seed
    )
    measured = {row.model: row.flat() for row in rows if row.split == "Q4"}
    mine = measured[NETWORK]
    q4 = data.split == "Q4"
    error = np.abs(found.influence - data.utility)[q4]
    return {
        "teacher": teacher,
        "variant": variant,
        "seed": seed,
        "cpu_seconds": round(seconds, 2),
        "relative_mse": mine["mse"] / measured[ROW_COLUMN_MEAN]["mse"],
        **{name: mine[name] for name in MEASURES if name != "relative_mse"},
        "num_pairs": mine["num_pairs"],
        "num_rows": mine["num_rows"],
        "chance_overlap": mine["chance_overlap"],
        "spread_spearman": None if found.spread is None else spearman(error, found.spread[q4]),
    }


def summarise(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard error over the seeds, and of the difference from the network."""
    table: list[dict[str, Any]] = []
    for teacher in dict.fromkeys(t["teacher"] for t in trials):
        of_teacher = [t for t in trials if t["teacher"] == teacher]
        base = {t["seed"]: t for t in of_teacher if t["variant"] == BASE}
        for variant in dict.fromkeys(t["variant"] for t in of_teacher):
            mine = [t for t in of_teacher if t["variant"] == variant]
            row: dict[str, Any] = {"teacher": teacher, "variant": variant, "trials": len(mine)}
            for name in MEASURES:
                row[name] = _mean([t[name] for t in mine])
                row[f"{name}_gain"] = _mean(
                    [
                        t[name] - base[t["seed"]][name]
                        for t in mine
                        if t["seed"] in base and None not in (t[name], base[t["seed"]][name])
                    ]
                )
            row["chance_overlap"] = _mean([t["chance_overlap"] for t in mine])
            row["spread_spearman"] = _mean([t["spread_spearman"] for t in mine])
            row["cpu_seconds"] = _mean([t["cpu_seconds"] for t in mine])
            table.append(row)
    return table


def _mean(values: list[float | None]) -> list[float] | None:
    """Return mean and standard error; None where nothing is defined."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = float(np.std(known, ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0
    return [round(float(np.mean(known)), 4), round(error, 4)]


def to_markdown(figures: dict[str, Any]) -> str:
    """Write the page."""
    parts = [
        "# training_options_cpu",
        f"`python -m benchmarks.training_options --labels delift_t0.npz --json`. Machine: "
        f"{figures['machine']}. Commit {figures['commit']}. {figures['labels']:,} labels of a "
        f"{figures['matrix'][0]} x {figures['matrix'][1]} matrix of short T0 rows; each seed sees "
        f"{figures['seen'][0]} rows x {figures['seen'][1]} columns and is measured on pairs of "
        f"unseen rows and unseen columns (Q4). {figures['seeds']} seeds; mean ± standard error; in "
        f"brackets the difference from `network` on the same draws. Training: {figures['steps']}.",
        "DELIFT (SE) labels are cosines of the vectors that the network reads.",
    ]
    for teacher in dict.fromkeys(row["teacher"] for row in figures["table"]):
        rows = [row for row in figures["table"] if row["teacher"] == teacher]
        head = ["variant", *MEASURES.values(), "CPU seconds"]
        lines = [head, ["---"] * len(head)]
        for row in rows:
            cells = [_cell(row[name], row[f"{name}_gain"], row["variant"]) for name in MEASURES]
            lines.append([row["variant"], *cells, f"{row['cpu_seconds'][0]:.1f}"])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        chance = rows[0]["chance_overlap"]
        notes = [f"By chance {chance[0]:.2f} of the best helpers are found." if chance else ""]
        notes += [
            f"{row['variant']}: rank correlation of its members' spread with its errors "
            "{:.2f} ± {:.2f}.".format(*row["spread_spearman"])
            for row in rows
            if row["spread_spearman"]
        ]
        parts += [f"## {teacher}", table, " ".join(notes)]
    return "\n\n".join(parts) + "\n"


def _cell(value: list[float] | None, gain: list[float] | None, variant: str) -> str:
    if value is None:
        return "n/a"
    text = f"{value[0]:.3f} ± {value[1]:.3f}"
    return text if variant == BASE or gain is None else f"{text} ({gain[0]:+.3f} ± {gain[1]:.3f})"


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_options",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--labels", type=Path, required=True, help="an .npz of labels and texts")
    parser.add_argument("--trials", type=Path, help="finished trials; default beside the labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seen", type=int, nargs=2, default=[100, 40], metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    options = parser.parse_args()
    options.trials = options.trials or options.labels.with_suffix(".trials.json")
    return options


if __name__ == "__main__":
    main()
