"""How fast the teachers label: prefix reuse, batched gradients, ratings; beside the plain loops.

    python -m benchmarks.teacher              # some three minutes on two cores; prints a table
    python -m benchmarks.teacher --json       # the last line is one JSON object
    python -m benchmarks.teacher --full       # more pairs and rows, LESS with the paper's rank

Texts are rows of T0 (``--data``), the model is the packaged SmolLM2-135M in float32 on vLLM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.teacher import delift, less
from benchmarks.teacher.texts import LONG, SHORT, choose, choose_pairs, read_rows
from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine
from nncift_ray.engines.models import EMBEDDED_LANGUAGE_MODEL, resolve_language_model
from nncift_ray.engines.vllm import VllmEngine
from nncift_ray.recipe.sections import EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement
from nncift_ray.teachers.selectit import SelectItTeacher

DATA = Path(__file__).parents[2].parent / "shared" / "data"
RATED_TOKENS = (30, 120)


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    long_helpers: int = 2
    short_helpers: int = 4
    queries: int = 16
    rated: int = 12
    gradients: int = 16
    rank: int = 8
    projection_dim: int = 1024
    repeats: int = 2


FULL = Sizes(8, 16, 48, 64, 64, 128, 8192, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of t0_train.jsonl.gz")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--full", action="store_true", help="larger samples, the paper's LESS")
    options = parser.parse_args()
    started = time.perf_counter()
    rows = read_rows(options.data / "t0_train.jsonl.gz")
    figures = {"commit": describe_commit(), "machine": describe_machine()}
    figures |= measure(rows, FULL if options.full else Sizes())
    figures["seconds"] = round(time.perf_counter() - started, 1)
    show(figures, Console(stderr=options.json))
    if options.json:
        print(json.dumps(figures))


def measure(rows: Sequence[Example], sizes: Sizes) -> dict[str, Any]:
    """Run all parts and return their figures, flat."""
    path = resolve_language_model(EMBEDDED_LANGUAGE_MODEL).path
    engine = VllmEngine(path, EngineConfig(template="paper"))
    pairs = {
        LONG.name: choose_pairs(rows, engine.encode, LONG, sizes.long_helpers, sizes.queries),
        SHORT.name: choose_pairs(rows, engine.encode, SHORT, sizes.short_helpers, sizes.queries),
    }
    reuse = delift.measure_engine(engine, pairs, sizes.repeats)
    figures = measure_selectit(engine, rows, sizes.rated)
    engine.close()
    engine = VllmEngine(path, EngineConfig(template="paper"))
    engine._llm.reset_prefix_cache = lambda: False  # what the engine takes for "read no cache"
    plain = delift.measure_engine(engine, pairs, sizes.repeats)
    engine.close()
    loop = delift.measure_reference(path, {name: reuse[name]["requests"] for name in pairs})
    for name, requests in pairs.items():
        speed = reuse[name]["pairs_per_second"]
        figures |= {
            f"{name}_num_pairs": len(requests),
            f"{name}_pairs_per_second": speed,
            f"{name}_pairs_per_second_without_reuse": plain[name]["pairs_per_second"],
            f"{name}_reuse_speedup": speed / plain[name]["pairs_per_second"],
            f"{name}_vs_reference_loop": speed / loop[name]["pairs_per_second"],
            f"{name}_tokens_computed_over_minimum": reuse[name]["tokens_computed_over_minimum"],
            f"{name}_tokens": reuse[name]["tokens"],
            f"{name}_tokens_computed": reuse[name]["tokens_computed"],
            f"{name}_idle_share": reuse[name]["idle_share"],
            f"{name}_max_difference": delift.largest_difference(
                reuse[name]["answers"], loop[name]["log_probs"]
            ),
        }
    headline = (
        "pairs_per_second", "reuse_speedup", "vs_reference_loop", "tokens_computed_over_minimum"
    )  # fmt: skip
    figures |= {key: figures[f"{LONG.name}_{key}"] for key in headline}
    return figures | less.measure(
        path, rows, sizes.gradients, sizes.rank, sizes.projection_dim, sizes.repeats
    )


def measure_selectit(engine: Engine, rows: Sequence[Example], count: int) -> dict[str, float]:
    """Rate some rows: five short prompts each."""
    teacher = SelectItTeacher([engine])
    requests = [LabelRequest(row) for row in choose(rows, engine.encode, RATED_TOKENS, count)]
    teacher.measure(requests[:1])
    started = time.perf_counter()
    rated = teacher.measure(requests)
    seconds = time.perf_counter() - started
    good = [one for one in rated if isinstance(one, Measurement)]
    return {
        "selectit_rows": len(good),
        "selectit_rows_per_second": len(good) / seconds,
        "selectit_tokens_per_second": sum(one.num_tokens for one in good) / seconds,
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Print the figures."""
    table = Table(title=f"Teachers on {figures['machine']}, commit {figures['commit']}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in figures.items():
        if key not in ("machine", "commit"):
            table.add_row(key, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(table)


if __name__ == "__main__":
    main()
