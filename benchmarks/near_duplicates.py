"""Seconds and memory of near-duplicates at a million rows, beside exact copies.

    python -m benchmarks.near_duplicates --rows 1000000 --json

Rows are drawn by a seed: words by Zipf's law, 20 to 160 a prompt; a twentieth repeat another row
with two words of the prompt changed, a twentieth have its prompt and another answer.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.corpus.examples import LeftOut, find_first_copies, make_example_id
from nncift_ray.recipe.sections import DataConfig

HERE = Path(__file__).parent
NAME = "near_duplicates_cpu"
BATCH_ROWS, WORDS, SHARE = 4_096, 100_000, 0.05
MAX_SECONDS_A_MILLION, MAX_BYTES = 900.0, 4e9  # of one core

Rows = list[tuple[str, str]]


def make_batches(num_rows: int, seed: int = 0) -> Iterator[tuple[Rows, list[str]]]:
    """Yield rows and what each is: "own", "twin" (of a row before it) or "other answer"."""
    random = np.random.default_rng(seed)
    for first in range(0, num_rows, BATCH_ROWS):
        count = min(BATCH_ROWS, num_rows - first)
        rows: Rows = []
        kinds: list[str] = []
        for kind in random.choice(["own", "twin", "other answer"], count, p=[0.9, SHARE, SHARE]):
            answer = " ".join(f"w{w}" for w in random.zipf(1.3, 12) % WORDS)
            if kind == "own" or len(rows) < 100:
                words = [f"w{w}" for w in random.zipf(1.3, int(random.integers(20, 160))) % WORDS]
                kind = "own"
            else:
                prompt, old = rows[int(random.integers(100))]
                words = prompt.split()
                if kind == "twin":
                    answer, words[-2:] = old, ["w1", "w2"]
            rows.append((" ".join(words), answer))
            kinds.append(str(kind))
        yield rows, kinds


def measure(num_rows: int) -> dict[str, Any]:
    """Return seconds of one core and of the clock, bytes, and what was found of what is there."""
    left_out = LeftOut([], DataConfig.model_construct())
    ids: list[bytes] = []
    kinds: list[str] = []
    exact = near = 0.0
    began = time.perf_counter()
    for rows, of_rows in make_batches(num_rows):
        start = time.process_time()
        ids += [bytes.fromhex(make_example_id(*row)) for row in rows]
        exact += time.process_time() - start
        start = time.process_time()
        numbers = np.arange(len(kinds), len(kinds) + len(rows))
        left_out.look(numbers, *([row[side] for row in rows] for side in (0, 1)))
        near += time.process_time() - start
        kinds += of_rows
    start = time.process_time()
    copies = int((find_first_copies(pa.array(ids, pa.binary(16))) < 0).sum())
    exact += time.process_time() - start
    start = time.process_time()
    left_out.finish(0)
    near += time.process_time() - start
    found = {kind: sum(kinds[row] == kind for row in left_out.twins) for kind in sorted(set(kinds))}
    return {
        "rows": num_rows,
        "exact_cpu_seconds": round(exact, 1),
        "near_cpu_seconds": round(near, 1),
        "ratio": round(near / exact, 1),
        "wall_seconds_with_making": round(time.perf_counter() - began, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "exact_copies": copies,
        "planted": {kind: kinds.count(kind) for kind in found},
        "found": found,
    }


def page(figures: dict[str, Any]) -> str:
    """Return the page of the figures."""
    found, planted = figures["found"], figures["planted"]
    kinds = ("twin", "other answer", "own")
    lines = "\n".join(f"| {kind} | {planted[kind]:,} | {found[kind]:,} |" for kind in kinds)
    return f"""# Near-duplicates of {figures["rows"]:,} rows

`python -m benchmarks.near_duplicates --rows {figures["rows"]} --json`, {figures["commit"]},
{figures["machine"]}. Memory is of the process, the making of the rows included.

| | |
|---|---|
| exact copies, CPU seconds | {figures["exact_cpu_seconds"]:,} |
| near-duplicates, CPU seconds | {figures["near_cpu_seconds"]:,} ({figures["ratio"]} times) |
| peak memory, GB | {figures["peak_bytes"] / 1e9:.2f} |

| rows | planted | left out as near-duplicates |
|---|---|---|
{lines}

Of twins those are missed whose prompt is so short that two other words bring the similarity of runs
of three words below 0.95.
"""


def main() -> None:
    """Measure, write the page, assert the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.rows)
    figures |= {"commit": describe_commit(), "machine": describe_machine()}
    (arguments.out / f"{NAME}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (arguments.out / f"{NAME}.md").write_text(page(figures))
    if arguments.json:
        print(json.dumps(figures))
    allowed = MAX_SECONDS_A_MILLION * max(1.0, arguments.rows / 1e6)
    if figures["near_cpu_seconds"] > allowed or figures["peak_bytes"] > MAX_BYTES:
        raise SystemExit(f"over the bounds of {allowed:.0f} s and {MAX_BYTES:.0g} bytes")


if __name__ == "__main__":
    main()
