"""How fast answers are written: vLLM and batches in transformers, beside the usual loop.

    python -m benchmarks.generation              # some minutes on two cores; prints a table
    python -m benchmarks.generation --json       # the last line is one JSON object
    python -m benchmarks.generation --prompts 4 --max-tokens 8 --rounds 1   # a first look

The usual loop is ``model.generate``, one prompt at a time. All ways write the same greedy answers
to the same rows of T0 (``--data``), in float32, with the packaged SmolLM2-135M or ``--model``. Each
runs in a process of its own. A share says how near a way is to what the machine's memory bandwidth
and matrix products allow at the least, measured in the same process right before it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.generation.ways import PLAIN, WAYS, Task, measure_way
from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.engines.embedded import EMBEDDED_LANGUAGE_MODEL
from nncift_ray.engines.models import resolve_language_model

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--model", default=EMBEDDED_LANGUAGE_MODEL, help="as evaluation.model")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: all cores")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # how the processes are told
    options = parser.parse_args()
    if options.task:
        way, task = json.loads(options.task)
        print(json.dumps(measure_way(way, Task(**task))))
        return
    started = time.perf_counter()
    task = Task(
        resolve_language_model(options.model).path,
        str(options.data),
        options.prompts,
        options.max_tokens,
        options.rounds,
        options.threads,
    )
    measured = {way: _measure_apart(way, task) for way in options.ways}
    figures: dict[str, Any] = {"commit": describe_commit(), "machine": describe_machine()}
    figures |= {"model": options.model, "num_prompts": task.num_prompts}
    figures |= {"max_tokens": task.max_tokens, "ways": summarise(measured)}
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, Console(stderr=options.json))
    if options.json:
        print(json.dumps(figures))


def _measure_apart(way: str, task: Task) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.generation"]
    done = subprocess.run(  # noqa: S603
        [*command, "--task", json.dumps([way, asdict(task)])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def summarise(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return rates, shares of what is possible and how many answers are those of the usual loop."""
    ways: dict[str, dict[str, Any]] = {}
    plain = measured.get(PLAIN)
    for way, found in measured.items():
        written = sum(answer["num_tokens"] for answer in found["answers"])
        prompts = sum(answer["num_prompt_tokens"] for answer in found["answers"])
        limit = max(found["least_seconds"], key=found["least_seconds"].__getitem__)
        ways[way] = {
            "tokens_per_second": written / found["seconds"],
            "tokens_with_prompts_per_second": (written + prompts) / found["seconds"],
            "num_tokens": written,
            "num_prompt_tokens": prompts,
            "seconds": found["seconds"],
            "limit": limit,
            "share_of_limit": found["least_seconds"][limit] / found["seconds"],
            "bandwidth_seconds": found["least_seconds"]["bandwidth"],
            "matmul_seconds": found["least_seconds"]["matmul"],
            "gbytes_per_second": found["limits"]["bytes_per_second"] / 1e9,
            "gflops_per_second": found["limits"]["operations_per_second"] / 1e9,
            "load_seconds": found["load_seconds"],
            "peak_memory_gb": found["peak_memory_bytes"] / 1e9,
        }
        if plain is not None:
            pairs = list(zip(found["answers"], plain["answers"], strict=True))
            equal = sum(a["text"] == b["text"] for a, b in pairs)
            ways[way]["vs_plain"] = plain["seconds"] / found["seconds"]
            ways[way]["equal_answers_fraction"] = equal / len(pairs)
    return ways


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures as a table."""
    ways = figures["ways"]
    title = f"{figures['num_prompts']} prompts, up to {figures['max_tokens']} tokens"
    table = Table(title=f"{title}; {figures['machine']}")
    table.add_column("")
    for way in ways:
        table.add_column(way, justify="right")
    for key in next(iter(ways.values())):
        table.add_row(key, *(_cell(ways[way][key]) for way in ways))
    console.print(table)


def _cell(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
