"""The demo: write a corpus with planted faults, select from it, count the faults that got through.

nncift demo --run-dir runs/demo
nncift demo --run-dir runs/demo_targets --targets
nncift demo --json    # ends with a line of figures
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from nncift_ray import pipeline
from nncift_ray.demo.corpus import (
    MEASURES,
    REWORDED_REPEAT,
    WRONG,
    DemoCorpus,
    PlantedRow,
    RandomShare,
    family_shares,
    junk_shares,
    random_junk_shares,
    read_planted,
    rows_by_id,
    usable_rows,
    write_demo_corpus,
)
from nncift_ray.demo.tasks import FAMILIES, Draw
from nncift_ray.errors import NnciftError
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.output import StageOutput, column_matrix

RECIPE = Path(__file__).parent / "recipe.yaml"
NUM_FAMILIES_SHOWN = 4


def main(arguments: Sequence[str] | None = None, *, families: Mapping[str, Draw] = FAMILIES) -> int:
    """Run the demo, on a corpus of these families of tasks, and return the exit code."""
    options, started = _parse(arguments), time.perf_counter()
    console = Console()
    run_dir = Path(options.run_dir)
    corpus = write_demo_corpus(run_dir / "corpus", seed=options.seed, families=families)
    console.print(f"corpus: {corpus.candidates} ({sum(corpus.counts.values())} rows)")
    overrides = [*_overrides(run_dir, corpus, with_targets=options.targets), *options.set]
    try:
        result = pipeline.run(load_config(RECIPE, overrides))
    except NnciftError as error:
        Console(stderr=True).print(f"demo: {error}", markup=False)
        return error.exit_code
    subset = run_dir / "export" / "subset.parquet"
    ids = map(str, pq.read_table(subset, columns=["example_id"])["example_id"].to_pylist())
    planted = read_planted(corpus.planted)
    chosen = rows_by_id(planted, ids)
    rivals = {
        name: rows_by_id(planted, picks)
        for name, picks in rival_picks(result.outputs, len(chosen)).items()
    }
    console.print(make_junk_table(planted, chosen, rivals))
    console.print("\n".join(describe_gain(planted, chosen)))
    console.print(make_family_table(planted, chosen))
    console.print(f"subset: {subset.with_suffix('.jsonl')}\nreport: {run_dir / 'report.html'}")
    if options.json:
        decided = decided_share(result.outputs["select"])
        seconds = time.perf_counter() - started
        print(json.dumps(make_figures(planted, chosen, rivals, decided, seconds)))
    return 0


def rival_picks(outputs: Mapping[str, StageOutput], size: int) -> dict[str, list[str]]:
    """Return the ids that simple rivals pick of the same rows, by the name of the rival.

    "cosine" is facility location on the embeddings' cosines; "IFD" takes the rows of largest
    NLL(y | x) / NLL(y) below 1 (Li et al., arXiv 2308.12032).
    """
    embedded = outputs["embed"].read("candidates", ["example_id", "embedding"])
    ids = [str(each) for each in embedded["example_id"].to_pylist()]
    vectors = column_matrix(embedded["embedding"])
    picks = {"cosine": [ids[j] for j in cover_by_cosine(vectors, size)]}
    if "profiles" in outputs:
        losses = outputs["profiles"].read("candidates", ["nll", "nll_alone"])
        nll, alone = (losses[name].to_numpy(zero_copy_only=False) for name in losses.column_names)
        ratio = np.nan_to_num(nll / alone, nan=np.inf)
        order = np.lexsort((-ratio, ratio >= 1))
        picks["IFD"] = [ids[j] for j in order[:size]]
    return picks


def cover_by_cosine(vectors_ND: np.ndarray, size: int) -> list[int]:
    """Return the greedy picks of facility location on the cosines of unit vectors."""
    cosine_IJ = np.maximum(vectors_ND @ vectors_ND.T, 0)
    cover_I = np.zeros(len(vectors_ND), np.float32)
    picks: list[int] = []
    for _ in range(size):
        gain_J = np.maximum(cosine_IJ - cover_I[:, None], 0).sum(axis=0)
        gain_J[picks] = -1
        picks.append(int(np.argmax(gain_J)))
        np.maximum(cover_I, cosine_IJ[:, picks[-1]], out=cover_I)
    return picks


def decided_share(select: StageOutput) -> float:
    """Return the share of the picks that the objective decided."""
    decided = select.read("ranking", ["decided_by"])["decided_by"].to_pylist()
    return decided.count("objective") / max(1, len(decided))


def make_figures(
    planted: Sequence[PlantedRow],
    subset: Sequence[PlantedRow],
    rivals: Mapping[str, Sequence[PlantedRow]],
    decided: float,
    seconds: float,
) -> dict[str, Any]:
    """Return the figures of ``--json``; shares are of rows, the pool is what ingest leaves."""
    usable = usable_rows(planted)
    pool, picks = junk_shares(usable), junk_shares(subset)
    random = random_junk_shares(usable, len(subset))
    figures: dict[str, Any] = {
        "pool_wrong": pool[WRONG],
        "picks_wrong": picks[WRONG],
        "pool_reworded": pool[REWORDED_REPEAT],
        "picks_reworded": picks[REWORDED_REPEAT],
        "decided_share": decided,
        "families": len(family_shares(usable)),
        "families_picked": len(family_shares(subset)),
        "seconds": round(seconds, 1),
        "random_wrong": [random[WRONG].mean, random[WRONG].low, random[WRONG].high],
    }
    for name, rows in rivals.items():
        figures[f"{name.lower()}_wrong"] = junk_shares(rows)[WRONG]
        figures[f"{name.lower()}_families_picked"] = len(family_shares(rows))
    return figures


def make_junk_table(
    planted: Sequence[PlantedRow],
    subset: Sequence[PlantedRow],
    rivals: Mapping[str, Sequence[PlantedRow]],
) -> Table:
    """Set the planted faults of the subset beside those of the corpus and of its rivals."""
    usable = usable_rows(planted)
    random = random_junk_shares(usable, len(subset))
    shares = {"corpus": junk_shares(planted), "pool": junk_shares(usable)}
    picked = {name: junk_shares(rows) for name, rows in rivals.items()}
    picked["nncift"] = junk_shares(subset)
    table = Table(
        title=(
            f"Planted faults, share of rows: corpus {len(planted)}, pool (after ingest) "
            f"{len(usable)}, else {len(subset)} picks; random: 200 draws and their 99 % range"
        ),
        box=None,  # rules would not fit into 80 columns
        padding=(0, 1),
    )
    table.add_column("fault", no_wrap=True)
    for name in (*shares, "random", *picked):
        table.add_column(name, justify="right", no_wrap=True)
    for measure in MEASURES:
        drawn = random[measure]
        table.add_row(
            measure,
            *(f"{each[measure]:.1%}" for each in shares.values()),
            f"{drawn.mean:.0%} {_range(drawn)}",
            *(f"{each[measure]:.1%}" for each in picked.values()),
        )
    return table


def describe_gain(planted: Sequence[PlantedRow], subset: Sequence[PlantedRow]) -> list[str]:
    """Say of wrong answers and reworded repeats whether the picks differ from random draws."""
    picked, random = junk_shares(subset), random_junk_shares(usable_rows(planted), len(subset))
    lines: list[str] = []
    for measure in (WRONG, REWORDED_REPEAT):
        share, drawn = picked[measure], random[measure]
        verdict = "within what chance gives"
        if share < drawn.low:
            verdict = "fewer than chance gives"
        elif share > drawn.high:
            verdict = "MORE than chance gives"
        lines.append(f"{measure}: {share:.1%} of the picks, {verdict} ({_range(drawn)}).")
    return lines


def _range(drawn: RandomShare) -> str:
    return f"{drawn.low:.0%}-{drawn.high:.0%}"


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
    parser = argparse.ArgumentParser(prog="nncift demo", description=main.__doc__)
    parser.add_argument("--run-dir", default="runs/demo", help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus")
    parser.add_argument("--json", action="store_true", help="end with one line of figures")
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
