"""Sweep a recipe's labels: how much error is left by label fraction and hidden units.

Labels are made once, by the recipe itself; smaller fractions are parts of them, and networks that
an earlier sweep has trained on the same labels are not trained again.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from nncift_ray.errors import ConfigError
from nncift_ray.labels.sample import TRAIN, VALIDATION, SampleDesign, count_pairs
from nncift_ray.network.sweep import CELLS_TABLE, Cell, SweepStage
from nncift_ray.pipeline import Blueprint, give_resources, observed, run
from nncift_ray.plan import make_plan
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.report.sweep import plot_sweep
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import Executor, finished_shards, run_stage
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import LineReporter, Reporter
from nncift_ray.runtime.ray_pool import execute_on_ray, ray_session
from nncift_ray.runtime.schemas import POINTS, WITHIN, helped_role

LABELS_STAGE = "label"
SWEEP_FOLDER = "sweep"
DEFAULT_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the labelled fraction
DIGITS = 4  # significant, of a fraction that nobody typed


@dataclass(frozen=True)
class SweepGrid:
    """What to vary; None takes what the recipe has."""

    fractions: tuple[float, ...] | None = None
    hidden: tuple[int, ...] | None = None
    num_seeds: int = 1

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be swept, naming the option."""
        if self.fractions is not None and not all(0 < each <= 1 for each in self.fractions):
            raise ConfigError("--label-fraction: fractions must be above 0 and at most 1")
        for option, values in (("--hidden", self.hidden), ("--seeds", (self.num_seeds,))):
            if values is not None and not all(each >= 1 for each in values):
                raise ConfigError(f"{option}: must be 1 or more")


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do."""

    config: Config  # the recipe, with enough labels
    cells: tuple[Cell, ...]
    notices: tuple[str, ...]
    labels: str  # what there is to label, in words


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind."""

    cells: pa.Table  # SWEEP_CELLS
    csv: Location
    parquet: Location
    plot: Location


def plan_sweep(config: Config, grid: SweepGrid) -> SweepPlan:
    """Work out the cells, and the recipe that makes labels enough; starts nothing.

    Raises:
        ConfigError: If the fractions ask for more labels than ``labels.max_pairs`` allows, or the
            recipe trains no network.
        NnciftError: As ``make_plan``.
    """
    if config.pair_scores.by == "teacher":
        raise ConfigError(
            "pair_scores.by: teacher trains no network, and a sweep compares networks; set it to "
            "network (-s pair_scores.by=network)"
        )
    notices: list[str] = []
    labelled = _labelled_fractions(config)
    wanted = max(grid.fractions or (0.0,))
    if wanted > min(labelled.values()) * (1 + 1e-6):
        config = _with_fraction(config, wanted)
        labelled = _labelled_fractions(config)
        notices.append(
            f"the recipe labels less than a fraction of {wanted:g}, so labels.fraction is set to "
            "it: the teacher is asked for what is not there yet"
        )
        if wanted > min(labelled.values()) * (1 + 1e-6):
            raise ConfigError(
                f"--label-fraction {wanted:g}: labels.max_pairs = {config.labels.max_pairs:,} "
                f"allows {min(labelled.values()):.4g}; raise it, or give smaller fractions"
            )
    least = min(labelled.values())
    shares = [float(f"{share * least:.{DIGITS}g}") for share in DEFAULT_SHARES]
    axes = (
        labelled,
        sorted(set(grid.fractions or shares)),
        sorted(set(grid.hidden or (config.network.num_hidden,))),
        range(config.network.seed, config.network.seed + grid.num_seeds),
    )
    cells = tuple(Cell(*values) for values in itertools.product(*axes))
    label = next(row for row in make_plan(config).stages if row.name == LABELS_STAGE)
    return SweepPlan(config, cells, tuple(notices), f"{label.name}: {label.state}, {label.amount}")


def sweep(
    plan: SweepPlan, *, reporter: Reporter | None = None, execute: Executor | None = None
) -> SweepResult:
    """Label what is not labelled, train what is not trained; write table and plot.

    Args:
        plan: Of ``plan_sweep``.
        reporter: Hears of progress; plain lines by default.
        execute: Runs shards; a Ray Data actor pool by default.

    Raises:
        NnciftError: With what is wrong and the remedy; finished cells are kept.
    """
    reporter, execute = reporter or LineReporter(), execute or execute_on_ray
    config = plan.config
    run_dir = Location.of(config.run_dir)
    with ray_session(config.cluster):
        outputs = run(
            config, reporter=reporter, until=LABELS_STAGE, execute=execute, record=False
        ).outputs
        with locked(run_dir), observed(config, run_dir, reporter) as reporter:
            for notice in plan.notices:
                reporter.notice(notice)
            stage = _make_stage(plan, outputs, run_dir, reporter)
            give_resources(stage, Blueprint(config))
            output = run_stage(stage, run_dir, execute=execute, reporter=reporter)
    return publish(output.read(CELLS_TABLE, schema=schemas.SWEEP_CELLS), run_dir / SWEEP_FOLDER)


def publish(cells: pa.Table, folder: Location) -> SweepResult:
    """Write the cells as CSV, Parquet and a picture."""
    result = SweepResult(
        cells, folder / "sweep.csv", folder / "sweep.parquet", folder / "sweep.png"
    )
    text, table = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(cells, text)
    pq.write_table(cells, table)
    result.csv.write_bytes(text.getvalue())
    result.parquet.write_bytes(table.getvalue())
    result.plot.write_bytes(plot_sweep(cells))
    return result


def _make_stage(
    plan: SweepPlan, outputs: dict[str, StageOutput], run_dir: Location, reporter: Reporter
) -> SweepStage:
    config = plan.config
    labels, examples = outputs[LABELS_STAGE], outputs["deduplicate"]
    blocks = {cell.block for cell in plan.cells}
    stage = SweepStage(
        labels,
        outputs["embed"],
        plan.cells,
        Blueprint(config).block_training,
        {block: measured_fraction(labels, examples, block) for block in blocks},
    )
    known = known_rows(run_dir, stage.base)
    if reused := sum(cell in known for cell in plan.cells):
        reporter.notice(f"{reused} of {len(plan.cells)} networks were trained by an earlier sweep")
    return stage.knowing(known)


def known_rows(run_dir: Location, base: str) -> dict[Cell, list[dict[str, Any]]]:
    """Return the rows of all cells of a base that any sweep has finished, whole or not."""
    folder = run_dir / SWEEP_FOLDER
    sweeps = {file.uri.removeprefix(f"{folder}/").split("/")[0]
              for file in folder.list_files(recursive=True)}  # fmt: skip
    known: defaultdict[Cell, list[dict[str, Any]]] = defaultdict(list)
    for name in sorted(sweeps):
        seen: set[Cell] = set(known)
        for record in finished_shards(folder / name):
            for part in record.parts:
                if part.table != CELLS_TABLE:
                    continue
                table = pq.read_table(io.BytesIO((folder / name / part.name).read_bytes()))
                if not table.schema.equals(schemas.SWEEP_CELLS):
                    continue
                for row in table.filter(pc.equal(table["base"], pa.scalar(base))).to_pylist():
                    cell = Cell(*(row[field.name] for field in dataclasses.fields(Cell)))
                    if cell not in seen:
                        known[cell].append(row)
    return dict(known)


def measured_fraction(labels: StageOutput, examples: StageOutput, block: str) -> float:
    """Return what fraction of the rows and of the columns the labels of a block stand for."""
    table = labels.read("labels", ["block", "split"], schemas.LABELS)
    splits = table.filter(pc.equal(table["block"], pa.scalar(block)))["split"].to_pylist()
    used = (TRAIN, VALIDATION) if block == POINTS else (TRAIN, VALIDATION, "Q1")
    num_labels = sum(split in used for split in splits)
    return _fraction(num_labels, block, examples.num_rows("candidates"),
                     examples.num_rows(f"{helped_role(block)}s"))  # fmt: skip


def _labelled_fractions(config: Config) -> dict[str, float]:
    """Return by block the fraction of the rows and of the columns that a recipe labels."""
    corpus = make_plan(config).corpus
    blueprint = Blueprint(config, fetch=False)
    designs = blueprint.sample_designs(corpus.num_candidates, corpus.num_targets)
    return {
        block: _designed_fraction(
            design, block, corpus.num_candidates,
            corpus.num_candidates if block in (WITHIN, POINTS) else corpus.num_targets,
        )
        for block, design in designs.items()
    }  # fmt: skip


def _designed_fraction(design: SampleDesign, block: str, num_columns: int, num_rows: int) -> float:
    if design.label_pairs is None:
        return design.label_fraction or 0.0
    held_out = design.holdout_pairs_per_quadrant * (1 if block == POINTS else 3)
    return _fraction(max(1, design.label_pairs - held_out), block, num_columns, num_rows)


def _fraction(num_labels: int, block: str, num_columns: int, num_rows: int) -> float:
    if block == POINTS:
        return min(1.0, num_labels / max(1, num_columns))
    possible = count_pairs(num_rows, num_columns, block == WITHIN)
    return min(1.0, math.sqrt(num_labels / max(1, possible)))


def _with_fraction(config: Config, fraction: float) -> Config:
    tree = config.model_dump(mode="json")
    tree["labels"] |= {"fraction": fraction, "label_pairs": None}
    return make_config(tree)
