"""Seconds and memory of reading conversations: of one core by layout, and of a run on Ray.

    python -m benchmarks.chat_ingest --rows 1000000 --json

Rows have 100 words: as instruction and output, as messages with a system text, and as messages of
two exchanges, a file each. The run is ``nncift stage deduplicate`` on the last, near-duplicates
(which near_duplicates_cpu measures) aside; memory is what the operating system says twice a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.scale_pipeline.memory import MemoryWatch
from nncift_ray.corpus.ingest import Tally, batch_tables, expand_sources, read_examples

PAGE = Path(__file__).parent / "chat_ingest_cpu"
TIMED_ROWS, REPEATS, WORDS = 100_000, 3, 5_000
MAX_DRIVER_GB, GB = 2.0, 1e9

Record = dict[str, Any]
TURNS = ("user", "assistant", "user", "assistant")
SHAPES: dict[str, Callable[[list[str]], Record]] = {
    "instruction and output": lambda texts: {
        "instruction": " ".join(texts[:2]),
        "input": "",
        "output": " ".join(texts[2:]),
    },
    "messages, one exchange": lambda texts: {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": " ".join(texts[:2])},
            {"role": "assistant", "content": " ".join(texts[2:])},
        ]
    },
    "messages, two exchanges": lambda texts: {
        "messages": [
            {"role": role, "content": text} for role, text in zip(TURNS, texts, strict=True)
        ]
    },
}


def write(path: Path, num_rows: int, shape: Callable[[list[str]], Record]) -> None:
    """Write a JSONL file of rows in a shape."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            words = [f"w{word}" for word in random.integers(WORDS, size=100)]
            texts = [" ".join([*words[at : at + 25], f"r{row}"]) for at in range(0, 100, 25)]
            file.write(json.dumps(shape(texts)) + "\n")


def cpu_seconds(path: Path) -> float:
    """Return the least seconds of one core in which a file becomes tables."""
    (source,) = expand_sources([str(path)])
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        for _tables in batch_tables(Tally().watch(read_examples(source, "candidate"))):
            pass
        best = min(best, time.process_time() - start)
    return round(best, 2)


def run_on_ray(folder: Path, corpus: Path) -> dict[str, float]:
    """Return wall seconds and gigabytes of reading and numbering a corpus by the command."""
    recipe = folder / "recipe.yaml"
    data = {"candidates": [str(corpus)], "near_duplicates": None}
    recipe.write_text(json.dumps({"run_dir": str(folder / "run"), "data": data}))
    command = [sys.executable, "-m", "nncift_ray.cli", "stage", "deduplicate", str(recipe)]
    started = time.perf_counter()
    child = subprocess.Popen(command)  # noqa: S603
    watch = MemoryWatch(child.pid)
    watch.start()
    code = child.wait()
    watch.stop()
    if code:
        raise SystemExit(f"the run ended with exit code {code}")
    peak = watch.peaks["start"]
    sizes = {"driver_gb": peak.driver, "worker_gb": peak.worker}
    seconds = round(time.perf_counter() - started, 1)
    return {"wall_seconds": seconds} | {name: round(size / GB, 2) for name, size in sizes.items()}


def main() -> None:
    """Measure, write the page, assert the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the run on Ray")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, path = Path(temporary), Path(temporary) / "rows.jsonl"
        seconds: dict[str, float] = {}
        for name, shape in SHAPES.items():
            write(path, TIMED_ROWS, shape)
            seconds[name] = cpu_seconds(path)
        write(path, options.rows, SHAPES["messages, two exchanges"])
        run = run_on_ray(folder, path)
    figures = {"rows": options.rows, "cpu_seconds": seconds, "run": run}
    figures |= {"commit": describe_commit(), "machine": describe_machine()}
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    rows = [[name, str(found)] for name, found in seconds.items()]
    PAGE.with_suffix(".md").write_text(f"""# Reading conversations

`python -m benchmarks.chat_ingest --rows {options.rows}`, {figures["commit"]},
{figures["machine"]}.

{markdown_table([f"{TIMED_ROWS:,} rows", "seconds of one core"], rows)}

`nncift stage deduplicate` on {options.rows:,} rows of two exchanges, Ray's start included:
{run["wall_seconds"]:,} s, the driver at most {run["driver_gb"]} GB, a worker {run["worker_gb"]} GB.
Other programs ran on the machine.
""")
    if options.json:
        print(json.dumps(figures))
    if run["driver_gb"] > MAX_DRIVER_GB:
        raise SystemExit(f"the driver took more than {MAX_DRIVER_GB} GB")


if __name__ == "__main__":
    main()
