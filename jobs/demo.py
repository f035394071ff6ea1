"""The demo: write a corpus with planted faults, select from it, count the faults that got through.

python -m jobs.demo --run-dir runs/demo
python -m jobs.demo --run-dir runs/demo_targets --targets
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jobs.demo_corpus import DemoCorpus, write_demo_corpus
from jobs.demo_metrics import (
    MEASURES,
    PlantedRow,
    family_shares,
    junk_shares,
    random_junk_shares,
    read_planted,
    rows_by_id,
    usable_rows,
)
from nncift_ray import pipeline
from nncift_ray.errors import NnciftError
from nncift_ray.recipe.loading import load_config

RECIPE = Path(__file__).parent / "recipes" / "demo_delift_cpu.yaml"
NUM_FAMILIES_SHOWN = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    options = _parse(arguments)
    console = Console()
    run_dir = Path(options.run_dir)
    corpus = write_demo_corpus(run_dir / "corpus", seed=options.seed)
    console.print(f"corpus: {corpus.candidates} ({sum(corpus.counts.values())} rows)")
    overrides = [*_overrides(run_dir, corpus, with_targets=options.targets), *options.set]
    try:
        pipeline.run(load_config(RECIPE, overrides))
    except NnciftError as error:
        Console(stderr=True).print(f"demo: {error}", markup=False)
        return error.exit_code
    subset = run_dir / "export" / "subset.parquet"
    ids = map(str, pq.read_table(subset, columns=["example_id"])["example_id"].to_pylist())
    planted = read_planted(corpus.planted)
    chosen = rows_by_id(planted, ids)
    console.print(make_junk_table(planted, chosen))
    console.print(make_family_table(planted, chosen))
    console.print(f"subset: {subset.with_suffix('.jsonl')}\nreport: {run_dir / 'report.html'}")
    return 0


def make_junk_table(planted: Sequence[PlantedRow], subset: Sequence[PlantedRow]) -> Table:
    """Set the planted faults of the subset beside those of the corpus and of random subsets."""
    usable = usable_rows(planted)
    columns = {
        f"corpus ({len(planted)})": junk_shares(planted),
        f"after ingest ({len(usable)})": junk_shares(usable),
        f"random ({len(subset)})": random_junk_shares(usable, len(subset)),
        f"nncift ({len(subset)})": junk_shares(subset),
    }
    table = Table(title="Planted faults, share of rows (random: mean of 200 draws)")
    table.add_column("fault")
    for name in columns:
        table.add_column(name, justify="right")
    for measure in MEASURES:
        table.add_row(measure, *(f"{shares[measure]:.1%}" for shares in columns.values()))
    return table


def make_family_table(planted: Sequence[PlantedRow], subset: Sequence[PlantedRow]) -> Table:
    """Show the task families whose share rose and fell the most."""
    before, after = family_shares(usable_rows(planted)), family_shares(subset)
    change = {family: after.get(family, 0.0) - before[family] for family in before}
    by_change = sorted(change, key=lambda family: (-change[family], family))
    table = Table(title=f"Families that rose and fell most ({len(after)} of {len(before)} present)")
    for name in ("family", "after ingest", "nncift"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for family in by_change[:NUM_FAMILIES_SHOWN] + by_change[-NUM_FAMILIES_SHOWN:]:
        table.add_row(family, f"{before[family]:.1%}", f"{after.get(family, 0.0):.1%}")
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=main.__doc__)
    parser.add_argument("--run-dir", default="runs/demo", help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus")
    parser.add_argument("--targets", action="store_true", help="select for four of the families")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="recipe key"
    )
    return parser.parse_args(arguments)


def _overrides(run_dir: Path, corpus: DemoCorpus, *, with_targets: bool) -> list[str]:
    # JSON strings are YAML: quotes keep odd characters of a path from being read as YAML.
    values = [f'run_dir="{run_dir}"', f'data.candidates=["{corpus.candidates}"]']
    return [*values, f'data.targets=["{corpus.targets}"]'] if with_targets else values


if __name__ == "__main__":
    sys.exit(main())
