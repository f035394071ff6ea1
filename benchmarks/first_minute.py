"""The first minute of a user: what a command costs beyond the embedding and labelling it is for.

    python -m benchmarks.first_minute --data corpus.jsonl --json

Runs the command line in processes of their own, on the first rows of a corpus, twice: with no
compiled kernel on the disk, as behind an installation, and again in another run directory. Seconds
are of the wall, and of processors, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from nncift_ray.runtime.output import MANIFEST_NAME

PAGE = Path(__file__).parent / "first_minute_cpu"
WORK = ("embed", "label")  # what a run is for
RATIO, SECONDS = 1.3, 5.0  # a run should take at most so many times that, and so many more
COLUMNS = ("", "wall s", "CPU s", "first line s", "embed + label s", "beyond them s", "ratio")


def timed(arguments: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Run the command line; return its seconds, and those to its first line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    command = [sys.executable, "-m", "nncift_ray.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:  # noqa: S603
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
        first_line = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - started, "cpu": used, "first_line": first_line}


def work_seconds(run_dir: Path) -> dict[str, float]:
    """Return the seconds of every step of a finished run."""
    found = (json.loads(path.read_text()) for path in run_dir.glob(f"*/*/{MANIFEST_NAME}"))
    return {manifest["stage"]: manifest["wall_seconds"] for manifest in found}


def measure(data: Path, rows: int, mode: str) -> dict[str, Any]:
    """Measure plan, run without kernels on the disk, and run with them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
        corpus.write_text("".join(lines[:rows]), encoding="utf-8")
        environment = dict(
            os.environ, NUMBA_CACHE_DIR=str(folder / "kernels"), PYTHONUNBUFFERED="1"
        )
        options = ["--data", str(corpus), "-s", f"cluster={mode}"]
        found: dict[str, Any] = {"plan": timed(["plan", *options], environment)}
        for case in ("run, first time", "run, again"):
            run_dir = folder / case.replace(", ", "_")
            found[case] = timed(["run", *options, "--run-dir", str(run_dir)], environment)
            steps = work_seconds(run_dir)
            work = sum(steps[step] for step in WORK)
            beyond = found[case]["wall"] - work
            found[case] |= {"steps": steps, "work": work, "beyond": beyond}
            found[case]["ratio"] = found[case]["wall"] / work
            found[case]["met"] = found[case]["wall"] <= RATIO * work + SECONDS
    return found


def main() -> None:
    """Measure, and write page and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--mode", default="local", choices=["local", "ray"])
    parser.add_argument("--json", action="store_true", help="print one object, write no page")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "load_before": load,
        "rows": options.rows,
        "mode": options.mode,
        "cases": measure(options.data, options.rows, options.mode),
    }
    if options.json:
        print(json.dumps(figures))
        return
    rows = [
        (
            case,
            *(float(found[key]) for key in ("wall", "cpu", "first_line")),
            *(float(found[key]) if key in found else "" for key in ("work", "beyond", "ratio")),
        )
        for case, found in figures["cases"].items()
    ]
    steps = figures["cases"]["run, again"]["steps"]
    page = [
        "# The first minute",
        f"{options.rows:,} rows of T0, DELIFT (SE), `cluster: {options.mode}`; "
        f"{figures['machine']}, load {load:.1f} before, commit {figures['commit']}. "
        "`python -m benchmarks.first_minute --data t0.jsonl`",
        markdown_table(COLUMNS, rows),
        "Steps of the second run, seconds: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in steps.items())
        + ".",
    ]
    PAGE.with_suffix(".md").write_text("\n\n".join(page) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print("\n\n".join(page))


if __name__ == "__main__":
    main()
