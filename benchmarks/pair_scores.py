"""How fast all pairs are scored: the CPU kernel beside its core's peak and beside plain torch.

    python -m benchmarks.pair_scores              # a minute or two; prints a table
    python -m benchmarks.pair_scores --json       # the last line is one JSON object
    python -m benchmarks.pair_scores --full       # also by K, hidden units, rows and columns;
                                                  # writes benchmarks/pair_scores_cpu.md and .json

On a core with AVX-512 everything is measured once more in a process that is held to AVX2 (figures
that begin with avx2_): that is what the goal for the share of the peak speaks of.
A rate is the best of several interleaved rounds, in processor time of the measuring thread (the
two-core rate in wall time). The kernel keeps the top K and the statistics of every row; what it is
compared with only makes the scores. Activations are made once per example and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pair_scores_page import write_page
from benchmarks.peak import peak_loops, peak_rate, seconds_of, vector_floats
from nncift_ray.network.factored import FactoredNetwork
from nncift_ray.scores.exact import score_block, top_k_rows

DIM, HIDDEN, TOP_K = 1024, 100, 64
ROWS, COLUMNS = 2048, 131_072
SMALL = 256  # examples per side of the comparisons with torch
ONE_BY_ONE = 200  # pairs
ROUNDS = 7
AVX2_FLOATS = 8
HELD_TO_AVX2 = {"NUMBA_CPU_NAME": "znver3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
PAGE = Path(__file__).parent / "pair_scores_cpu"
MIN_PEAK_SHARE, MIN_VS_BATCHED, MAX_RELATIVE_ERROR = 0.60, 1500, 1e-5  # the goals

FULL_SHAPES = (  # rows, columns, hidden units, K
    *((512, 131_072, 100, k) for k in (1, 16, 64, 256)),
    *((512, 131_072, hidden, 64) for hidden in (50, 200)),
    *((rows, 131_072, 100, 64) for rows in (64, 256, 2048)),
    *((2048, columns, 100, 64) for columns in (4096, 16_384)),
)


@dataclass(frozen=True)
class Pairs:
    """Activations of some rows and columns, and the output layer."""

    a_IH: np.ndarray
    b_JH: np.ndarray
    w_H: np.ndarray
    bias: float = 0.1

    @property
    def num_pairs(self) -> int:
        """Rows times columns."""
        return len(self.a_IH) * len(self.b_JH)

    def keep_best(self, k: int = TOP_K) -> Any:
        """Score all pairs and keep the best K of every row."""
        return top_k_rows(self.a_IH, self.b_JH, self.w_H, self.bias, k)

    def halves(self) -> tuple[Pairs, Pairs]:
        """Return two problems of half the rows each."""
        half = len(self.a_IH) // 2
        first, second = self.a_IH[:half], self.a_IH[half:]
        return Pairs(first, self.b_JH, self.w_H), Pairs(second, self.b_JH, self.w_H)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pair_scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="also by K, hidden units and sizes")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    options = parser.parse_args()
    started = time.perf_counter()
    figures: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    figures |= measure()
    if options.full:
        figures["by_shape"] = measure_shapes(figures["peak_gsteps_per_second"])
    if figures["vector_floats"] > AVX2_FLOATS:
        figures |= measure_held_to_avx2(options.full)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, Console(stderr=options.json))
    if options.full and HELD_TO_AVX2.items() - os.environ.items():
        write_page(PAGE, figures, goals(figures))
    if options.json:
        print(json.dumps(figures))
    if options.check and not all(goals(figures).values()):
        sys.exit(1)


def measure() -> dict[str, Any]:
    """Return rates, ratios and errors, flat."""
    pairs = draw_pairs(ROWS, COLUMNS, HIDDEN)
    pairs.keep_best()
    # Before torch is imported: what a scoring worker needs, its columns included.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    network, embedding_ND = draw_network()
    small = Pairs(
        network.project_rows(embedding_ND[:SMALL]),
        network.project_columns(embedding_ND[SMALL:]),
        network.w_H,
        network.bias,
    )
    loops = peak_loops()
    rivals = torch_rivals(network, embedding_ND, small)
    pool = ThreadPoolExecutor(2)
    halves = pairs.halves()
    kernel, two_cores = [], []
    peaks: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(ROUNDS):
        peaks.append(peak_rate(loops))
        kernel.append(seconds_of(pairs.keep_best))
        two_cores.append(_wall_seconds(lambda: list(pool.map(Pairs.keep_best, halves))))
        for name, (run, _) in rivals.items():
            rates[name].append(seconds_of(run))
    peak = max(peaks)
    rate = pairs.num_pairs / min(kernel)
    rival = {name: rivals[name][1] / min(seconds) for name, seconds in rates.items()}
    return {
        "vector_floats": vector_floats(),
        "mpairs_per_second_per_core": round(rate / 1e6, 1),
        "mpairs_per_second_two_cores": round(pairs.num_pairs / min(two_cores) / 1e6, 1),
        "peak_gsteps_per_second": round(peak / 1e9, 1),
        "peak_share": round(rate * HIDDEN / peak, 3),
        **{f"{name}_mpairs_per_second": round(value / 1e6, 5) for name, value in rival.items()},
        **{f"vs_{name}": round(rate / value, 1) for name, value in rival.items()},
        **measure_errors(network, embedding_ND, small),
        "peak_memory_gb": round(memory / 1e9, 2),
    }


def measure_held_to_avx2(full: bool) -> dict[str, Any]:
    """Return the figures of a process that compiles for AVX2, each named avx2_."""
    command = [sys.executable, "-m", "benchmarks.pair_scores", "--json"]
    done = subprocess.run(  # noqa: S603
        [*command, *(["--full"] if full else [])],
        env=os.environ | HELD_TO_AVX2,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    return {f"avx2_{name}": value for name, value in figures.items()
            if name not in ("commit", "machine", "seconds")}  # fmt: skip


def goals(figures: Mapping[str, Any]) -> dict[str, bool]:
    """Return what was wanted and whether it was met; the share of the peak is AVX2's."""
    share = figures.get("avx2_peak_share", figures["peak_share"])
    return {
        f"share of the AVX2 peak >= {MIN_PEAK_SHARE}": share >= MIN_PEAK_SHARE,
        f"vs batched concat >= {MIN_VS_BATCHED:,}": figures["vs_batched_concat"] >= MIN_VS_BATCHED,
        f"relative error <= {MAX_RELATIVE_ERROR}": figures["max_relative_error"]
        <= MAX_RELATIVE_ERROR,
    }


def measure_errors(
    network: FactoredNetwork, embedding_ND: np.ndarray, small: Pairs
) -> dict[str, float]:
    """Compare scores with the concatenated network in float64, and with float64 sums alone."""
    top = small.keep_best(SMALL)
    score_IJ = np.empty((SMALL, SMALL), np.float32)
    np.put_along_axis(score_IJ, top.index_IK.astype(np.int64), top.score_IK, axis=1)
    wide_ND = embedding_ND.astype(np.float64)
    a_IH = wide_ND[:SMALL] @ network.w_row_HD.T.astype(np.float64) + network.b_row_H
    b_JH = wide_ND[SMALL:] @ network.w_col_HD.T.astype(np.float64)
    exact_IJ = np.maximum(a_IH[:, None] + b_JH[None], 0) @ network.w_H.astype(np.float64)
    exact_IJ += network.bias
    error = np.abs(score_IJ - exact_IJ).max()
    sums_only = np.abs(score_IJ - score_block(small.a_IH, small.b_JH, small.w_H, small.bias)).max()
    return {
        "max_abs_error": float(f"{error:.3g}"),
        "max_relative_error": float(f"{error / np.abs(exact_IJ).max():.3g}"),
        "max_error_in_standard_deviations": float(f"{error / exact_IJ.std():.3g}"),
        "max_abs_error_of_the_sums": float(f"{sums_only:.3g}"),
    }


def torch_rivals(
    network: FactoredNetwork, embedding_ND: np.ndarray, small: Pairs
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return other ways to score, each with the number of its pairs; torch on one thread."""
    import torch

    torch.set_num_threads(1)
    layer, output = torch.nn.Linear(2 * DIM + 1, HIDDEN), torch.nn.Linear(HIDDEN, 1)
    zero_H1 = np.zeros((HIDDEN, 1), np.float32)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.hstack([network.w_row_HD, zero_H1, network.w_col_HD])))
        layer.bias.copy_(torch.tensor(network.b_row_H))
        output.weight.copy_(torch.tensor(network.w_H[None]))
        output.bias.fill_(network.bias)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), output)
    row_ID, column_JD = torch.tensor(embedding_ND[:SMALL]), torch.tensor(embedding_ND[SMALL:])
    a_IH, b_JH, w_H = (torch.tensor(array) for array in (small.a_IH, small.b_JH, small.w_H))
    zero_J1 = torch.zeros(SMALL, 1)

    @torch.inference_mode()
    def concatenated() -> None:
        for i in range(0, SMALL, 8):
            model(torch.cat([row_ID[i].expand(SMALL, DIM), zero_J1, column_JD], dim=1))

    @torch.inference_mode()
    def broadcast() -> None:
        for i in range(0, SMALL, 16):
            torch.relu(a_IH[i : i + 16, None] + b_JH) @ w_H + network.bias

    @torch.inference_mode()
    def one_by_one() -> None:
        for n in range(ONE_BY_ONE):
            model(torch.cat([row_ID[n], zero_J1[0], column_JD[n]]))

    return {
        "batched_concat": (concatenated, SMALL // 8 * SMALL),
        "torch_broadcast": (broadcast, SMALL * SMALL),
        "one_by_one": (one_by_one, ONE_BY_ONE),
    }


def measure_shapes(peak_gsteps: float) -> list[dict[str, Any]]:
    """Return rate and share of the peak by rows, columns, hidden units and K."""
    table: list[dict[str, Any]] = []
    for rows, columns, hidden, k in FULL_SHAPES:
        pairs = draw_pairs(rows, columns, hidden)
        seconds = min(seconds_of(lambda: pairs.keep_best(k)) for _ in range(4))  # noqa: B023
        rate = pairs.num_pairs / seconds
        row = {"rows": rows, "columns": columns, "hidden": hidden, "k": k}
        row |= {"mpairs_per_second_per_core": round(rate / 1e6, 1)}
        table.append(row | {"peak_share": round(rate * hidden / peak_gsteps / 1e9, 3)})
    return table


def draw_pairs(rows: int, columns: int, hidden: int) -> Pairs:
    """Draw activations around zero, where half of the units are on."""
    rng = np.random.default_rng(0)
    a_IH, b_JH = (rng.standard_normal((n, hidden), np.float32) for n in (rows, columns))
    return Pairs(a_IH, b_JH, rng.standard_normal(hidden, np.float32))


def draw_network() -> tuple[FactoredNetwork, np.ndarray]:
    """Draw unit embeddings around centres, and a network whose activations have deviation 1."""
    rng = np.random.default_rng(1)
    centre_CD = rng.standard_normal((32, DIM), np.float32)
    embedding_ND = centre_CD[rng.integers(0, 32, 2 * SMALL)]
    embedding_ND = embedding_ND + rng.standard_normal(embedding_ND.shape, np.float32)
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    w_row_HD, w_col_HD = (rng.standard_normal((HIDDEN, DIM), np.float32) for _ in range(2))
    b_H, w_H = (rng.standard_normal(HIDDEN, np.float32) for _ in range(2))
    return FactoredNetwork(w_row_HD, b_H, w_col_HD, w_H / np.float32(10), 0.1), embedding_ND


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the figures as tables."""
    table = Table("figure", "value", title="pair_scores")
    for name, value in figures.items():
        if not isinstance(value, list):
            table.add_row(name, str(value))
    console.print(table)
    for name in ("by_shape", "avx2_by_shape"):
        _show_rows(figures.get(name, []), console)
    met = goals(figures)
    console.print("; ".join(f"{goal}: {'met' if good else 'missed'}" for goal, good in met.items()))


def _show_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    if rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table)


def _wall_seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
