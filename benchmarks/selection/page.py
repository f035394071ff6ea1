"""Write the figures as a Markdown page and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
NAME = "selection_cpu"
GOALS = {
    "sparse_vs_apricot": ("times faster than apricot, lists", ">= 100"),
    "dense_vs_submodlib": ("times faster than submodlib, all pairs", ">= 10"),
    "objective_ratio": ("our value over theirs, the least", ">= 0.999999"),
    "million_seconds": ("seconds for 1M x 64, 100,000 picks, the slower kind of lists", "<= 15"),
    "million_peak_gb": ("peak of memory there, GB, lists included", "<= 3"),
    "partitioned_ratio": ("GreeDi over one piece, the least", ">= 0.98"),
}


def write_page(figures: dict[str, Any]) -> None:
    """Write benchmarks/selection_cpu.md and .json."""
    (FOLDER / f"{NAME}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (FOLDER / f"{NAME}.md").write_text(_page(figures), encoding="utf-8")


def _page(figures: dict[str, Any]) -> str:
    goals = [
        {"figure": text, "value": _number(figures[key]), "goal": goal}
        for key, (text, goal) in GOALS.items()
    ]
    comparisons = [*figures["sparse"], *figures["dense"], *figures.get("by_size", [])]
    columns = ("peer", "matrix", "rows", "budget", "seconds", "peer_seconds", "times",
               "objective_ratio", "same_picks", "share_of_best", "reason")  # fmt: skip
    compared = [{key: _number(row.get(key, "")) for key in columns} for row in comparisons]
    million = [{"lists": kind, **run} for kind, run in figures["million"].items()]
    parts = [
        f"# {NAME}\n",
        "Greedy selection by facility location: against other libraries, at a million rows, in"
        " parts, and on short lists.\n",
        f"Machine: {figures['machine']}. Commit {figures['commit']}.\n",
        "```bash\npython -m benchmarks.selection --json --full\n```\n",
        "Seconds are of the processor, in one thread.\n",
        _table(goals),
        "## Against other libraries\n",
        "The same matrix and budget, each in a process of its own, from"
        " `benchmarks/selection/peers.txt`."
        " Ours counts turning the matrix by column and the upper bound (a quarter of it);"
        " theirs counts the search alone."
        " `share_of_best`: at least this share of the best possible value, by our upper bound.\n",
        _table(compared),
        "## A million lists\n",
        "Hub lists have few columns in very many lists, as a network's lists have; uniform ones"
        " have no structure at all.\n",
        _table(million),
        "## In parts\n",
        "Values over that of the search in one piece.\n",
        _table(figures["parts"]),
        "## What short lists cost\n",
        "T0 rows, MiniLM embeddings: their cosines, and a network of random weights. `kept`: the"
        " value on all pairs of what was picked on lists of K, over that of what is picked on all"
        " pairs."
        " `reported`: the value that the lists show, over the same. `random`: a random subset.\n",
        _table(figures["short_lists"] or [{"reason": "no embeddings cached (benchmarks.t0)"}]),
    ]
    return "\n".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    lines += ["| " + " | ".join(_number(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
