"""Seconds and memory of the whole pipeline, stage by stage, as a corpus grows.

    python -m benchmarks.scale_pipeline                     # 10,000 and 100,000 rows
    python -m benchmarks.scale_pipeline --full              # a million too; writes the page
    python -m benchmarks.scale_pipeline --rows 3000 --json  # the last line is one JSON object

The corpus is generated: one huge JSONL file, a compressed one, Parquet, and small CSV files. The
embedder averages the word vectors of the packaged model (64 numbers a text); labels are DELIFT
(SE)'s; there is no target, so each row's 64 best helpers are looked for among all rows, in mode
auto. The run is the real one, on a Ray of its own; memory is what the operating system says of the
driver and of its workers twice a second. What other programs do on the machine is in the seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.scale_pipeline.corpus import write_corpus
from benchmarks.scale_pipeline.embedder import write_embedder
from benchmarks.scale_pipeline.memory import MemoryWatch, Peak

ROWS, FULL_ROWS = (10_000, 100_000), (10_000, 100_000, 1_000_000)
MAX_DRIVER_GB = 2.0  # the goal
GB = 1e9
PAGE = Path(__file__).parents[1] / "scale_pipeline_cpu"
HEADER = ["stage", "seconds", "driver GB", "largest worker GB", "all workers GB"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, nargs="+", help="corpus sizes")
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: temporary)")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="to a million rows; writes the page")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    sizes = options.rows or (FULL_ROWS if options.full else ROWS)
    figures: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        words = write_embedder(folder / "embedder")
        figures["sizes"] = [measure(folder, rows, words, console) for rows in sizes]
    if options.full:
        write_page(figures)
    if options.json:
        print(json.dumps(figures))


def measure(folder: Path, num_rows: int, words: list[str], console: Console) -> dict[str, Any]:
    """Run the pipeline on a corpus of one size; return seconds and memory by stage."""
    place = folder / f"{num_rows}"
    started = time.perf_counter()
    patterns = write_corpus(place / "corpus", num_rows, words)
    console.print(f"{num_rows:,} rows written in {time.perf_counter() - started:,.0f} s")
    recipe = write_recipe(place, folder / "embedder", patterns)
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.scale_pipeline.watched_run", str(recipe)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    watch = MemoryWatch(child.pid)
    watch.start()
    seconds: dict[str, float] = {}
    decisions: list[str] = []
    for line in child.stdout or ():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        if event["event"] == "notice":
            decisions += [event["message"]] * event["message"].startswith("scores ")
            continue
        watch.stage = event["stage"]
        if event["event"] == "finished":
            seconds[event["stage"]] = event["seconds"]
            console.print(describe(event["stage"], seconds, watch.peaks[event["stage"]]))
    code = child.wait()
    watch.stop()
    if code:
        raise SystemExit(f"the run of {num_rows:,} rows ended with exit code {code}")
    whole = time.perf_counter() - started
    driver = max(peak.driver for peak in watch.peaks.values()) / GB
    console.print(f"{num_rows:,} rows: {whole:,.0f} s in all, driver at most {driver:.2f} GB")
    return {
        "rows": num_rows,
        "seconds": whole,
        "driver_gb": driver,
        "decisions": decisions,
        "stages": {
            name: {"seconds": seconds.get(name), **_gigabytes(peak)}
            for name, peak in watch.peaks.items()
        },
    }


def write_recipe(place: Path, embedder: Path, patterns: list[str]) -> Path:
    """Write the recipe of one size: that of ``million_auto_cpu`` with the small embedder."""
    recipe = {
        "run_dir": str(place / "run"),
        "data": {"candidates": patterns},
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": str(embedder), "pool": {"shard_rows": 16384}},
        "labels": {"label_pairs": 20_000},
        "pair_scores": {
            "mode": "auto",
            "top_k": 64,
            "min_recall": 0.98,
            "on_low_recall": "exact",
            "max_worker_bytes": "4G",
        },
        "selection": {"objective": "facility_location", "budget": 0.1},
        "export": {"formats": ["ids"]},
    }
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def describe(stage: str, seconds: dict[str, float], peak: Peak) -> str:
    """Say in one line what a stage took."""
    sizes = ", ".join(f"{name} {size}" for name, size in _gigabytes(peak).items())
    return f"  {stage}: {seconds[stage]:,.1f} s; {sizes}"


def _gigabytes(peak: Peak) -> dict[str, float]:
    sizes = {"driver_gb": peak.driver, "worker_gb": peak.worker, "workers_gb": peak.workers}
    return {name: round(size / GB, 3) for name, size in sizes.items()}


def write_page(figures: dict[str, Any]) -> None:
    """Write the page and the figures beside it."""
    lines = [
        "# The whole pipeline, 10,000 to 1,000,000 rows",
        "",
        f"`python -m benchmarks.scale_pipeline --full` on {figures['machine']}, "
        f"commit {figures['commit']}.",
        "",
        *(__doc__ or "").split("\n\n")[2].splitlines(),
        "",
        f"Goal: the driver stays below {MAX_DRIVER_GB:g} GB however long the corpus is.",
    ]
    for size in figures["sizes"]:
        rows = [
            [name, facts["seconds"] if facts["seconds"] is not None else "",
             facts["driver_gb"], facts["worker_gb"], facts["workers_gb"]]
            for name, facts in size["stages"].items()
        ]  # fmt: skip
        total = f"{size['seconds']:,.0f} s in all, the driver at most {size['driver_gb']:.2f} GB"
        lines += ["", f"## {size['rows']:,} rows: {total}", "", markdown_table(HEADER, rows)]
        lines += [f"\nIt {decision}." for decision in size["decisions"]]
    PAGE.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
