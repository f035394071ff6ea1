"""What the demo's picks teach: NLL of clean rows of all families after fine-tuning on them.

    python -m benchmarks.demo_teaches runs/demo       # a finished run of `make demo`

LoRA on the packaged language model (benchmarks/rivals/tuning.py), the demo's picks beside as many
of facility location on the embedder's cosines and as many random rows of the pool. The test rows
are clean ones of another seed of the generator that the pool does not hold, six a family. Three
seeds of adapters and order (and of the random rows). Writes ``demo_teaches_cpu.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.rivals.tuning import UpperModel
from nncift_ray.corpus.examples import Example, make_example_id
from nncift_ray.demo.corpus import CLEAN, make_demo_rows, read_planted, usable_rows
from nncift_ray.demo.run import cover_by_cosine
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix

TEST_SEED, NUM_DRAWN, TEST_ROWS_A_FAMILY = 1_000, 500, 6
SEEDS = (0, 1, 2)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_teaches", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    run_dir, started = parser.parse_args().run_dir, time.perf_counter()
    torch.set_num_threads(1)
    pool = read_pool(run_dir)
    picks = pq.read_table(run_dir / "export" / "subset.parquet", columns=["example_id"])
    picked = [str(each) for each in picks["example_id"].to_pylist()]
    embedded = read_stage(run_dir, "embed").read("candidates", ["example_id", "embedding"])
    ids = [str(each) for each in embedded["example_id"].to_pylist()]
    covering = cover_by_cosine(column_matrix(embedded["embedding"]), len(picked))
    model, usable = UpperModel(), sorted(pool)
    test = model.read(test_rows(pool))
    found: dict[str, list[float]] = {"untuned": [], "picks": [], "cosine": [], "random": []}
    for seed in SEEDS:
        subsets = {
            "untuned": [],
            "picks": picked,
            "cosine": [ids[j] for j in covering],
            "random": Random(seed).sample(usable, len(picked)),
        }
        for name, subset in subsets.items():
            rows = model.read([pool[each] for each in subset])
            found[name].append(float(model.tune_and_test(rows, test, seed).mean()))
            print(name, seed, round(found[name][-1], 3), flush=True)
    write_page(found, len(picked), len(test), time.perf_counter() - started)


def read_pool(run_dir: Path) -> dict[str, Example]:
    """Return the rows that any ingest leaves, by id."""
    kept = {row.example_id for row in usable_rows(read_planted(run_dir / "corpus/planted.jsonl"))}
    lines = (run_dir / "corpus/candidates.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Example] = {}
    for record in map(json.loads, lines):
        name = make_example_id(record["prompt"], record["completion"])
        if name in kept:
            found.setdefault(name, Example(name, record["prompt"], record["completion"]))
    return found


def read_stage(run_dir: Path, name: str) -> StageOutput:
    """Return the output of a step of a finished run."""
    (manifest,) = (run_dir / name).glob("*/manifest.json")
    output = StageOutput.open(Location.of(str(manifest.parent)))
    assert output is not None  # noqa: S101
    return output


def test_rows(pool: dict[str, Example]) -> list[Example]:
    """Return clean rows of every family that are not in the pool."""
    by_family: dict[str, list[Example]] = {}
    for row in make_demo_rows(TEST_SEED, NUM_DRAWN, 0)[0]:
        name = make_example_id(row.prompt, row.completion)
        if row.kind == CLEAN and name not in pool:
            by_family.setdefault(row.family, []).append(Example(name, row.prompt, row.completion))
    return [each for rows in by_family.values() for each in rows[:TEST_ROWS_A_FAMILY]]


def write_page(found: dict[str, list[float]], size: int, tested: int, seconds: float) -> None:
    """Write means and standard errors over seeds."""
    lines = [
        [name, *(f"{each:.3f}" for each in values), f"{np.mean(values):.3f}"]
        for name, values in found.items()
    ]
    figures = {"machine": describe_machine(), "commit": describe_commit(), "picks": size} | found
    path = Path(__file__).parent / "demo_teaches_cpu"
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    header = ["subset", *(f"seed {seed}" for seed in SEEDS), "mean"]
    path.with_suffix(".md").write_text(
        f"# {path.name}\n\n`python -m benchmarks.demo_teaches runs/demo`. Machine: "
        f"{figures['machine']}. Commit {figures['commit']}. {size} rows each, {tested} clean test "
        f"rows, nats a response token. {seconds:.0f} s in all.\n\n{markdown_table(header, lines)}\n"
    )


if __name__ == "__main__":
    main()
