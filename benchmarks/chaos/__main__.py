"""A run whose spot nodes die every few seconds, beside the same run with none lost.

    python -m benchmarks.chaos              # some ten deaths in each of three runs; writes the page
    python -m benchmarks.chaos --seeds 1    # one disturbed run

Ray's own multi-node cluster on this machine: a head, and three spot nodes that hold everything that
embeds, labels and scores. A node is killed as a cloud takes it, with no warning; every fourth death
takes all of them at once and brings no replacement for a while. The recipe is DELIFT with the
packaged language model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.chaos.cluster import spot_cluster
from benchmarks.chaos.harness import Plan, Record, disturbed_run
from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table

NUM_SPOT = 3
NUM_CANDIDATES, NUM_TARGETS = 1200, 60
PAGE = Path(__file__).parents[1] / "chaos_cpu"


def main() -> int:
    """Measure, print, write; the exit code says whether every disturbed run gave the same bytes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="disturbed runs")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two deaths")
    parser.add_argument("--pairs", type=int, default=600, help="labels to make")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="teacher")
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, spot_cluster(NUM_SPOT) as cluster:
        folder = Path(name)
        recipe = make_recipe(folder, options.pairs, options.model)
        print("undisturbed")
        records = {"undisturbed": disturbed_run(cluster, recipe, folder / "0", Plan(1e9, most=0))}
        for seed in range(options.seeds):
            print(f"disturbed, seed {seed}")
            plan = Plan(options.every, seed)
            records[f"seed {seed}"] = disturbed_run(cluster, recipe, folder / f"{seed + 1}", plan)
            print(describe(records, f"seed {seed}"))
    if not options.no_page:
        write_page(records, options)
    return 0 if all(same_bytes(records).values()) else 1


def make_recipe(folder: Path, num_pairs: int, model: str) -> dict[str, Any]:
    """Write a corpus of sums and return a recipe for it."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, count, step in (("candidates", NUM_CANDIDATES, 9), ("targets", NUM_TARGETS, 7)):
        rows = [
            {"prompt": f"{name}: add {i} and {i % step}.", "completion": f"It is {i + i % step}."}
            for i in range(count)
        ]
        (corpus / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return {
        "run_dir": "",
        "data": {
            "candidates": [str(corpus / "candidates.jsonl")],
            "targets": [str(corpus / "targets.jsonl")],
        },
        "teacher": {
            "kind": "delift",
            "model": model,
            "engine": "transformers",
            "max_length": 256,
        },
        "embedder": {"model": "embedded:all-minilm-l6-v2", "pool": {"shard_rows": 256}},
        "labels": {"label_pairs": num_pairs, "group_pairs": 16, "pool": {"shard_rows": 16}},
        "network": {"num_epochs": 5, "min_steps": 0},
        "pair_scores": {"pool": {"shard_rows": 100}},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }


def same_bytes(records: dict[str, Record]) -> dict[str, bool]:
    """Say of each disturbed run whether it left what the undisturbed one left."""
    whole = records["undisturbed"].digests
    return {
        name: record.exit_code == 0 and bool(whole) and record.digests == whole
        for name, record in records.items()
    }


def describe(records: dict[str, Record], name: str) -> str:
    """Return one line on a disturbed run."""
    record, whole = records[name], records["undisturbed"]
    verdict = "the same bytes" if same_bytes(records)[name] else "OTHER BYTES"
    return (
        f"{name}: {verdict}; {record.num_kills} nodes lost {record.kills_by_stage}; "
        f"{record.lost_attempts} of {record.num_begun} attempts lost, {record.repeated_items} of "
        f"{record.num_items} items done again; {record.seconds:.0f} s against {whole.seconds:.0f} s"
    )


def write_page(records: dict[str, Record], options: argparse.Namespace) -> None:
    """Write the page and the figures beside it."""
    same = same_bytes(records)
    header = ["run", "nodes lost", "rows lost", "attempts lost", "items done again", "items",
              "seconds", "same bytes"]  # fmt: skip
    rows = [
        [name, record.num_kills, 0 if same[name] else "?", record.lost_attempts,
         record.repeated_items, record.num_items, record.seconds, "yes" if same[name] else "NO"]
        for name, record in records.items()
    ]  # fmt: skip
    text = [
        "# Nodes that die",
        "",
        f"`python -m benchmarks.chaos` on {describe_machine()}, commit {describe_commit()}: "
        f"{NUM_SPOT} spot nodes, a death every {options.every:g} s on average while something runs "
        f"on them, {options.pairs} labels by {options.model}.",
        "",
        *(__doc__ or "").strip().split("\n\n")[-1].splitlines(),
        "",
        markdown_table(header, rows),
        "",
        "An item is the smallest piece of work of a stage: a group of label requests, a padded "
        "batch of texts, a block of rows to score. Rows lost is 0 where all exported files have "
        "the undisturbed run's SHA-256. The seconds hold the restarts of workers and the loading "
        "of their models, on a machine whose cores the nodes share.",
    ]
    PAGE.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figures = {name: dataclasses.asdict(record) for name, record in records.items()}
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
