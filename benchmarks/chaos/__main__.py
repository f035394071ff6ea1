"""A run whose spot nodes die, beside the same run with none lost.

    python -m benchmarks.chaos              # one run begun on another cluster, two disturbed ones
    python -m benchmarks.chaos --seeds 1    # one disturbed run, and the other
    python -m benchmarks.chaos --only-faults    # what befalls single workers; written to the page

Ray's own multi-node cluster on this machine: a head, and three spot nodes that hold everything that
embeds, labels and scores. A node is killed as a cloud takes it, with no warning, at moments that a
seed draws while a stage is at work. Once in each stage all nodes die at once, and no replacement
comes for a while. In one run driver, head and all nodes are killed in the middle of labelling, and
the same command is given to a new cluster.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.chaos import faults
from benchmarks.chaos.cluster import spot_cluster
from benchmarks.chaos.faults import FaultRecord, faulty_run
from benchmarks.chaos.harness import (
    Death,
    Plan,
    Record,
    disturbed_run,
    draw_deaths,
    kill_in_the_middle,
)
from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table

NUM_SPOT = 3
NUM_CANDIDATES, NUM_TARGETS = 1200, 60
#: Moments at which nodes die; one of each stage's takes all of them.
DEATHS = {"embed": 1, "label": 3, "score_pairs": 1}
NUM_KILLS = sum(DEATHS.values()) + (NUM_SPOT - 1) * len(DEATHS)
WHOLE, RESTARTED = "undisturbed", "head lost, new cluster"
PAGE = Path(__file__).parents[1] / "chaos_cpu"


def main() -> int:
    """Measure, print, write; the exit code says whether every disturbed run gave the same bytes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=2, help="disturbed runs")
    parser.add_argument("--pairs", type=int, default=160, help="labels to make")
    parser.add_argument("--model", help="of the teacher DELIFT (default: DELIFT (SE), without one)")
    parser.add_argument("--shard-seconds", type=float, default=1.0, help="a shard's extra time")
    parser.add_argument("--folder", help="where to keep runs and logs (default: nowhere)")
    parser.add_argument("--fault-seeds", type=int, default=3, help="runs of faulty workers")
    parser.add_argument("--only-faults", action="store_true", help="leave out the lost nodes")
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args()
    faulty: dict[str, FaultRecord] = {}
    for seed in range(options.fault_seeds):
        faulty[f"seed {seed}"] = faulty_run(seed)
        print(f"faults, seed {seed}: {faulty[f'seed {seed}']}", flush=True)
        if not options.no_page:
            write_faults(faulty)
    are_right = all(record.is_right for record in faulty.values())
    if options.only_faults:
        return int(not are_right)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.folder or name).absolute()
        records: dict[str, Record] = {}
        for run, record in measure(folder, options):
            records[run] = record
            print(describe(records, run), flush=True)
            if not options.no_page:  # after each run: they take minutes
                write_page(records, options)
    is_enough = all(records[f"seed {seed}"].num_kills >= NUM_KILLS for seed in range(options.seeds))
    return 0 if is_enough and are_right and all(same_bytes(records).values()) else 1


def measure(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Run undisturbed, on two clusters in turn, and for each seed; yields names and records."""
    recipe = make_recipe(folder, options.pairs, options.model)
    calm = Plan(shard_seconds=options.shard_seconds)
    with spot_cluster(NUM_SPOT) as cluster:
        whole = disturbed_run(cluster, recipe, folder / "undisturbed", calm)
        yield WHOLE, whole
        num_shards = whole.shards_by_stage
        middle = dataclasses.replace(calm, deaths=(Death("label", 0.4, all_nodes=True),))
        spent = kill_in_the_middle(cluster, recipe, folder / "restarted", middle, num_shards)
    with spot_cluster(NUM_SPOT) as cluster:
        record = disturbed_run(cluster, recipe, folder / "restarted", calm)
        seconds, num_kills = record.seconds + spent, NUM_SPOT + 1
        yield RESTARTED, dataclasses.replace(record, seconds=seconds, num_kills=num_kills)
        for seed in range(options.seeds):
            plan = dataclasses.replace(calm, deaths=draw_deaths(DEATHS, seed))
            own = folder / f"seed-{seed}"
            yield f"seed {seed}", disturbed_run(cluster, recipe, own, plan, num_shards)


def make_recipe(folder: Path, num_pairs: int, model: str | None) -> dict[str, Any]:
    """Write a corpus of sums and return a recipe for it."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, count, step in (("candidates", NUM_CANDIDATES, 9), ("targets", NUM_TARGETS, 7)):
        rows = [
            {"prompt": f"{name}: add {i} and {i % step}.", "completion": f"It is {i + i % step}."}
            for i in range(count)
        ]
        (corpus / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    # What is tried are nodes, not teachers: the default is the one that loads fastest.
    teacher: dict[str, Any] = {"kind": "delift_se"}
    if model is not None:
        teacher = {"kind": "delift", "model": model, "engine": "transformers", "max_length": 256}
    return {
        "run_dir": "",
        "data": {
            "candidates": [str(corpus / "candidates.jsonl")],
            "targets": [str(corpus / "targets.jsonl")],
        },
        "teacher": teacher,
        "embedder": {"model": "embedded:all-minilm-l6-v2", "pool": {"shard_rows": 64}},
        "labels": {"label_pairs": num_pairs, "group_pairs": 8, "pool": {"shard_rows": 8}},
        "network": {"num_epochs": 5, "min_steps": 0},
        "pair_scores": {"pool": {"shard_rows": 100}},
        "selection": {"objective": "facility_location", "budget": 0.1},
    }


def same_bytes(records: Mapping[str, Record]) -> dict[str, bool]:
    """Say of each run whether it left what the undisturbed one left."""
    whole = records[WHOLE].digests
    return {
        name: record.exit_code == 0 and bool(whole) and record.digests == whole
        for name, record in records.items()
    }


def describe(records: Mapping[str, Record], name: str) -> str:
    """Return one line on a run."""
    record, whole = records[name], records[WHOLE]
    verdict = "the same bytes" if same_bytes(records)[name] else "OTHER BYTES"
    return (
        f"{name}: exit {record.exit_code}, {verdict}; {record.num_kills} nodes lost "
        f"{record.kills_by_stage}; of {record.num_begun} attempts at shards {record.num_lost} "
        f"lost, {record.num_redone} of finished ones; {record.repeated_items} of "
        f"{record.num_items} items done again; {record.seconds:.0f} s against "
        f"{whole.seconds:.0f} s"
    )


def write_faults(records: Mapping[str, FaultRecord]) -> None:
    """Write the second page, on faults of single workers."""
    kinds = [*faults.KINDS, faults.LOADS, faults.HANGS_ALWAYS]
    header = ["run", *kinds, "faults", "rows", "rows lost", "condemned", "wrongly", "orphans",
              "seconds"]  # fmt: skip
    rows = [
        [name, *(record.faults.get(kind, 0) for kind in kinds), sum(record.faults.values()),
         record.rows, record.rows_lost, record.rows_condemned, record.rows_wrongly_condemned,
         record.orphans, f"{record.seconds:.0f}"]
        for name, record in records.items()
    ]  # fmt: skip
    total = sum(sum(record.faults.values()) for record in records.values())
    text = [
        "# Workers that die, hang and cannot load",
        "",
        f"`python -m benchmarks.chaos --only-faults` on {describe_machine()}, commit "
        f"{describe_commit()}: {total} faults, rows lost "
        f"{sum(record.rows_lost for record in records.values())}.",
        "",
        (faults.__doc__ or "").strip().split("\n\n")[-1],
        "",
        markdown_table(header, rows),
    ]
    page = PAGE.with_name("chaos_faults_cpu")
    page.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figures = {name: dataclasses.asdict(record) for name, record in records.items()}
    page.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def write_page(records: Mapping[str, Record], options: argparse.Namespace) -> None:
    """Write the page and the figures beside it."""
    same = same_bytes(records)
    header = ["run", "nodes lost", "rows lost", "attempts at shards", "lost", "of finished ones",
              "items done again", "items", "seconds", "same bytes"]  # fmt: skip
    rows = [
        [name, record.num_kills, 0 if same[name] else "?", record.num_begun, record.num_lost,
         record.num_redone, record.repeated_items, record.num_items, f"{record.seconds:.0f}",
         "yes" if same[name] else "NO"]
        for name, record in records.items()
    ]  # fmt: skip
    shards = records[WHOLE].shards_by_stage
    text = [
        "# Nodes that die",
        "",
        f"`python -m benchmarks.chaos` on {describe_machine()}, commit {describe_commit()}: "
        f"{NUM_SPOT} spot nodes, {NUM_CANDIDATES:,} candidates, {options.pairs} labels by "
        f"{options.model or 'DELIFT (SE)'}; shards: "
        + ", ".join(f"{stage} {shards[stage]}" for stage in DEATHS)
        + ".",
        "",
        (__doc__ or "").strip().split("\n\n")[-1],
        "",
        markdown_table(header, rows),
        "",
        "An item is the smallest piece of work of a stage: a group of label requests, a padded "
        "batch of texts, a block of rows to score; items of all stages are added up. Rows lost is "
        "0 where all exported files have the undisturbed run's SHA-256.",
        "",
        f"Each shard of the three stages takes {options.shard_seconds:g} s beyond its work, so "
        "that a small corpus is under way long enough to be disturbed. The seconds hold the "
        "shortages, the starts of nodes and workers and the loading of their models, on one "
        "machine whose cores all nodes share: read them as an upper bound of what a death costs.",
    ]
    PAGE.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figures = {name: dataclasses.asdict(record) for name, record in records.items()}
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
