"""The page and the JSON file of a full run of `pair_scores`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown_table

FIGURES = {
    "mpairs_per_second_per_core": "million pairs a second and core",
    "mpairs_per_second_two_cores": "the same on two cores, wall time",
    "peak_gsteps_per_second": "peak, 10^9 (max, fma) a second",
    "peak_share": "share of the peak",
    "vs_batched_concat": "times batched concat forward in torch, D = 1024",
    "vs_torch_broadcast": "times torch broadcast of the activations",
    "vs_one_by_one": "times one forward a pair",
    "max_abs_error": "largest error, absolute",
    "max_relative_error": "largest error, of the largest score",
    "max_error_in_standard_deviations": "largest error, of the standard deviation of scores",
    "peak_memory_gb": "peak memory of the process, GB",
}


def write_page(path: Path, figures: Mapping[str, Any], goals: Mapping[str, bool]) -> None:
    """Write `path`.md and `path`.json."""
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    both = "avx2_peak_share" in figures
    widths = {"": "AVX-512", "avx2_": "AVX2"} if both else {"": "vectors as they are"}
    rows = [
        [text, *(figures[f"{width}{key}"] for width in widths)] for key, text in FIGURES.items()
    ]
    shapes = [
        [*(row[key] for key in ("rows", "columns", "hidden", "k")), *_rates(figures, widths, n)]
        for n, row in enumerate(figures["by_shape"])
    ]
    rates = [f"{name} {what}" for name in widths.values() for what in ("M/s", "of peak")]
    lines = [
        "# pair_scores_cpu",
        "",
        "All pairs of 2,048 rows and 131,072 columns, 100 hidden units, top 64 and statistics of"
        " every row kept; one core, float32.",
        "",
        f"Machine: {figures['machine']}. Commit {figures['commit']}. {figures['seconds']:,} s in"
        " all.",
        "",
        "```bash",
        "python -m benchmarks.pair_scores --json --full",
        "```",
        "",
        *(f"- {goal}: {'met' if good else '**missed**'}" for goal, good in goals.items()),
        "",
        "AVX2 is the same core held to it; torch keeps its widest vectors in both.",
        "",
        markdown_table(["figure", *widths.values()], rows),
        "",
        markdown_table(["rows", "columns", "hidden", "K", *rates], shapes),
        "",
        "Each line of the second table is the best of four calls, not interleaved.",
        "",
        HOW_TO_READ,
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rates(figures: Mapping[str, Any], widths: Mapping[str, str], n: int) -> list[Any]:
    rows = [figures[f"{width}by_shape"][n] for width in widths]
    return [row[key] for row in rows for key in ("mpairs_per_second_per_core", "peak_share")]


HOW_TO_READ = """How to read it.

- A rate is the best of seven interleaved rounds, in processor time of the measuring thread. The
  two-core rate is wall time: a lower bound where other programs run.
- The peak is the fastest of four loops of (max, fma) steps whose operands stay in registers and the
  first cache, run for 50 ms in every round. The kernel adds by a fused multiplication with 1 or -1:
  the bits of an addition, on units that would be idle.
- What it is compared with makes scores only and keeps no lists. Activations are not counted: they
  are made once an example.
- Errors are against the concatenated network in float64, projection included.
- Why the share is smaller on AVX-512: scores are but half of the time there. Of 1.5 ns a pair
  (measured 2026-11-23, commit 61b0d22) they take 0.8, which is the peak; float64 sums 0.14,
  extremes 0.06, column maxima 0.05. The rest is paid per column (packing and checks, some 170 ns,
  shared by the rows of a call) and per insertion into a list (some 40 ns; K (1 + ln(columns / K))
  of them a row), and shows in the table by rows, columns and K. None of it is the inner loop's.

## What was tried and left out

- A histogram of all scores, 256 bins, one look-up a pair: 0.57 ns a pair (AVX-512: +38 %, AVX2:
  +18 %). The stage counts a sample of rows instead.
- Activations in float16, on 200 rows x 5,000 T0 examples and seven networks (384 dimensions; DELIFT
  and DELIFT (SE) among them): largest error 0.0003 to 0.0011 standard deviations of the scores,
  overlap of the top 64 0.9991 to 0.9999, mean score of the list lower by less than 1e-7 standard
  deviations. Half the size of the table at no loss that selection could see.
- The kernel before (numba's own vector code, 4 rows x 4 units a pass), interleaved with this one:
  319 against 665 million pairs a second on AVX-512, 226 against 372 on AVX2.
- The GPU kernel (`scores/triton_kernel.py`) was compared with this one bit by bit in Triton's
  interpreter, and compiles for compute capability 8.0 and 9.0. It has not run on a GPU."""
