"""Which rows each method picks: recipes of the package, and simple rivals over what a run knows.

    python -m benchmarks.rivals.picks POOL SEED --data FOLDER --work FOLDER [--only METHOD ...]

A file a method lies in WORK/picks/POOL-SEED: the rows in order, and processor seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.rivals.cells import DEFAULT, DELIFT, GATED
from benchmarks.rivals.pools import PLANTED, POOLS, Pool, make_pool
from benchmarks.rivals.tuning import UpperModel
from nncift_ray.demo.run import cover_by_cosine
from nncift_ray.evaluation.methods import variant
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import load_config, make_config
from nncift_ray.runtime.driver import execute_here, run_stage, stage_fingerprint
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, column_matrix
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Resources

LABELS, FEWER_LABELS = dict.fromkeys(PLANTED, 1000), 500
#: What every recipe has; the packaged models, one thread, bfloat16.
COMMON = """\
data: {{candidates: [{folder}/candidates.jsonl]{targets}}}
run_dir: {folder}/run
teacher: {{kind: {teacher}, model: "embedded:smollm2-135m-instruct", engine: transformers,
  dtype: bfloat16, max_length: 1024, template: paper}}
profiles: {{model: {profiles}, pool: {{shard_rows: 64}}}}
embedder: {{model: "embedded:all-minilm-l6-v2"}}
labels: {{label_pairs: {labels}, pool: {{shard_rows: 128}}}}
selection: {{objective: facility_location, budget: {budget}}}
"""
#: The adapters of what trains one; a few rows of a small pool.
ADAPTERS = (
    "teacher.less={rank: 8, alpha: 32, num_epochs: 2, learning_rate: 2.0e-4, batch_size: 8,"
    " warmup_fraction: 0.2, projection_dim: 1024, max_length: 512, num_landmarks: 64}",
)
NEED_TARGETS = ("loss_drop", "loss_drop_in_context")
#: Rivals as methods of `nncift evaluate`: teachers that rank all rows.
RIVALS = ("selectit", "deita", "less", "landmarks", *NEED_TARGETS)
PAPER = ("network.kind=paper", "selection.quality=none")
#: Recipe by method: teacher and keys beside the common ones.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    DELIFT: ("delift", ()),
    "nn_cift+delift_se": ("delift_se", ()),
    DEFAULT: ("cosine", ("profiles.model=null",)),
    GATED: ("cosine", ()),
    "paper+delift": ("delift", PAPER),
    "paper+delift_se": ("delift_se", PAPER),
}
#: One piece of DELIFT swapped at a time.
PIECES: dict[str, tuple[str, tuple[str, ...]]] = {
    "default without quality": ("delift", ("selection.quality=none",)),
    "default by pair_coverage": ("delift", ("selection.objective=pair_coverage",)),
}
Outputs = Mapping[str, StageOutput]
PROFILE = "embedded:smollm2-135m-instruct"


def run_recipe(pool: Pool, folder: Path, name: str) -> tuple[list[int], dict[str, float], Outputs]:
    """Return the picked rows, the processor seconds of each step, and their outputs."""
    teacher, keys = (RECIPES | PIECES).get(name, ("delift", ADAPTERS))
    recipe = folder / "recipe.yaml"
    targets = f", targets: [{folder}/targets.jsonl]" if pool.targets else ""
    recipe.write_text(
        COMMON.format(
            folder=folder,
            targets=targets,
            teacher=teacher,
            profiles=json.dumps("teacher" if teacher == "delift" else PROFILE),
            budget=pool.budget,
            labels=LABELS.get(pool.name, FEWER_LABELS),
        ),
        encoding="utf-8",
    )
    config = load_config(recipe, list(keys))
    if name in RIVALS:
        tree = variant(config, name, 0.5).model_dump(mode="json")
        tree["selection"]["budget"] = pool.budget
        config = make_config(tree, name)
    blueprint = Blueprint(config)
    outputs, seconds = dict[str, StageOutput](), dict[str, float]()
    run_dir = Location.of(str(folder / "run"))
    for step in list(blueprint.steps)[:-1]:  # all but the export
        stage = blueprint.steps[step](outputs)
        stage.resources = Resources(num_cpus=1)
        with spending(folder / "seconds.json", f"{step}/{stage_fingerprint(stage)}") as spent:
            done = run_stage(stage, run_dir, execute=execute_here, reporter=SilentReporter())
        outputs[step], seconds[step] = done, spent()
        print(f"{pool.name}, {name}: {step} {seconds[step]:.1f} s", flush=True)
    lines = outputs["deduplicate"].read("candidates", ["line"])["line"].to_pylist()
    ranked = outputs["select"].read("ranking", ["row_index"])["row_index"].to_pylist()
    return [lines[row] - 1 for row in ranked], seconds, outputs


@contextmanager
def spending(file: Path, key: str) -> Generator[Callable[[], float]]:
    """Add the processor seconds of what runs inside to those in a file; gives what reads them."""
    started = time.process_time()

    def known() -> dict[str, float]:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    try:
        yield lambda: known().get(key, 0.0)
    finally:
        spent = known().get(key, 0.0) + time.process_time() - started
        file.write_text(json.dumps(known() | {key: spent}), encoding="utf-8")


class Known:
    """What a run with DELIFT knows of the candidates [N] and the targets [M]."""

    def __init__(self, pool: Pool, outputs: Outputs, seconds: Mapping[str, float]) -> None:
        """Read embeddings, profiles and quality; a row that a run left out is NaN."""
        self.pool = pool
        read = outputs["deduplicate"].read("candidates", ["line"])
        self.rows = [line - 1 for line in read["line"].to_pylist()]
        self.seconds = seconds
        self.vectors = _vectors(outputs, "candidates")
        self.targets = _vectors(outputs, "targets") if pool.targets else None
        losses = outputs["profiles"].read("candidates", ["nll", "nll_alone", "num_response_tokens"])
        self.nll, self.alone, self.lengths = (
            np.array(losses[name].to_pylist(), dtype=float) for name in losses.column_names
        )
        shown = outputs["quality"].read("candidates", ["nll_shown", "quality"])
        self.shown, self.quality = (
            np.array(shown[name].to_pylist(), dtype=float) for name in shown.column_names
        )

    def best(self, scores: np.ndarray) -> list[int]:
        """Return the rows of the highest scores."""
        return self.named(np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"))

    def named(self, places: Sequence[int] | np.ndarray) -> list[int]:
        """Return the rows at these places, at most the budget."""
        return [self.rows[place] for place in places[: self.pool.budget]]

    def near(self, vectors: np.ndarray, targets: np.ndarray | None) -> list[int]:
        """Return the rows that targets take in turn, or that cover all others without targets."""
        if targets is None:
            return self.named(cover_by_cosine(vectors, self.pool.budget))
        return self.named(take_turns(targets @ vectors.T, self.pool.budget))


def take_turns(scores_MN: np.ndarray, size: int) -> list[int]:
    """Return columns: each row in turn takes its best free one."""
    order_MN = np.argsort(-scores_MN, axis=1, kind="stable")
    picks: list[int] = []
    while len(picks) < size:
        for row in range(len(order_MN)):
            if len(picks) < size:
                picks.append(next(int(j) for j in order_MN[row] if j not in picks))
    return picks


def simple_picks(known: Known, model: UpperModel) -> dict[str, tuple[list[int], float]]:
    """Return the picks and processor seconds of the rivals that need no recipe of their own."""
    ifd = known.nll / known.alone
    spent = known.seconds
    started = time.process_time()
    pooled = _weighted_states(model, known)
    rds_seconds = time.process_time() - started
    gate = np.where(known.quality >= 0.5)[0]
    gated = np.random.default_rng(0).permutation(gate)
    vectors, targets = known.vectors, known.targets
    cover = known.near(vectors[gate], targets)
    place = {row: at for at, row in enumerate(known.rows)}
    return {
        "longest": (known.best(known.lengths), 0.0),
        # Li et al. (arXiv 2308.12032): the largest ratio below 1.
        "ifd": (known.best(np.where(ifd < 1, ifd, -ifd)), spent["profiles"]),
        "consistency": (
            known.best(-known.shown / known.alone),
            spent["profiles"] + spent["quality"] + spent["embed"],
        ),
        "cosine": (known.near(vectors, targets), spent["embed"]),
        "rds_plus": (known.near(pooled[0], pooled[1]), rds_seconds),
        "quality, then random": (
            known.named(gated),
            spent["profiles"] + spent["quality"] + spent["embed"],
        ),
        "quality, then cosine": (
            [known.rows[gate[place[row]]] for row in cover],
            spent["profiles"] + spent["quality"] + spent["embed"],
        ),
    }


def _vectors(outputs: Outputs, role: str) -> np.ndarray:
    return column_matrix(outputs["embed"].read(role, ["embedding"])["embedding"])


def _weighted_states(model: UpperModel, known: Known) -> tuple[np.ndarray, np.ndarray | None]:
    """Return RDS+'s vectors (arXiv 2503.01807): last states, weighted by position, unit length."""
    pool = known.pool
    rows = model.read([pool.candidates[row].example for row in known.rows])
    found = model.weighted_states(rows)
    if not pool.targets:
        return found, None
    return found, model.weighted_states(model.read([row.example for row in pool.targets]))


def store(folder: Path, name: str, rows: Sequence[int], seconds: float) -> None:
    """Write one method's picks."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"method": name, "rows": list(rows), "seconds": round(seconds, 1)})
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Pick by every method that has no file yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals.picks")
    parser.add_argument("pool", choices=list(POOLS))
    parser.add_argument("seed", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[*RECIPES, *PIECES, *RIVALS])
    options = parser.parse_args(arguments)
    pool = make_pool(options.pool, options.seed, options.data)
    folder = options.work / "runs" / f"{options.pool}-{options.seed}"
    picks = options.work / "picks" / f"{options.pool}-{options.seed}"
    pool.write(folder)
    for name in options.only:
        cannot = name in NEED_TARGETS and not pool.targets
        if cannot or (picks / f"{name}.json").exists():
            continue
        rows, seconds, outputs = run_recipe(pool, folder, name)
        if name == DELIFT:
            for rival, (found, spent) in simple_picks(
                Known(pool, outputs, seconds), UpperModel()
            ).items():
                store(picks, rival, found, spent)
        store(picks, name, rows, sum(seconds.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
