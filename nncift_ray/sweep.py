"""Sweep a recipe's labels: how much error is left by label fraction and hidden units.

Labels are made once, by the recipe itself; smaller fractions are parts of them, and networks that
an earlier sweep has trained on the same labels are not trained again.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from nncift_ray.errors import ConfigError
from nncift_ray.labels.sample import QUADRANTS, TRAIN, VALIDATION, count_pairs
from nncift_ray.network import step
from nncift_ray.network.fidelity import fidelity_table
from nncift_ray.pipeline import Blueprint, give_resources, observed, run, session_of
from nncift_ray.plan import RunPlan, make_plan
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import UNASKED_TEACHERS, Config, NetworkConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import Executor, finished_shards, run_stage
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import Sink, StageOutput, fingerprint
from nncift_ray.runtime.progress import LineReporter, Reporter
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN, helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker

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
    """Return the cells, and the recipe that makes labels enough; starts nothing.

    Raises:
        ConfigError: If the fractions ask for more labels than ``labels.max_pairs`` allows, or the
            recipe trains no network.
        NnciftError: As ``make_plan``.
    """
    if config.teacher.kind in UNASKED_TEACHERS:
        raise ConfigError(
            f"teacher.kind: {config.teacher.kind} has no labels to learn, and a sweep compares "
            "networks; name a teacher that is asked (-s teacher=delift)"
        )
    if config.pair_scores.by == "teacher":
        raise ConfigError(
            "pair_scores.by: teacher trains no network, and a sweep compares networks; set it to "
            "network (-s pair_scores.by=network)"
        )
    notices: tuple[str, ...] = ()
    made = make_plan(config)
    labelled = _planned_fractions(config, made)
    least, wanted = min(labelled.values()), max(grid.fractions or (0.0,))
    if wanted > least * (1 + 1e-6):
        tree = config.model_dump(mode="json")
        tree["labels"] |= {"fraction": wanted, "label_pairs": None}
        config = make_config(tree)
        made = make_plan(config)
        labelled = _planned_fractions(config, made)
        least = min(labelled.values())
        notices = (
            f"the recipe labels less than a fraction of {wanted:g}, so labels.fraction is set to "
            "it: the teacher is asked for what is not there yet",
        )
        if wanted > least * (1 + 1e-6):
            raise ConfigError(
                f"--label-fraction {wanted:g}: labels.max_pairs = {config.labels.max_pairs:,} "
                f"allows {least:.4g}; raise it, or give smaller fractions"
            )
    shares = [float(f"{share * least:.{DIGITS}g}") for share in DEFAULT_SHARES]
    cells = itertools.product(
        labelled,
        sorted(set(grid.fractions or shares)),
        sorted(set(grid.hidden or (config.network.num_hidden,))),
        range(config.network.seed, config.network.seed + grid.num_seeds),
    )
    label = next(row for row in made.stages if row.name == LABELS_STAGE)
    labels = f"{label.name}: {label.state}, {label.amount}"
    return SweepPlan(config, tuple(itertools.starmap(Cell, cells)), notices, labels)


def sweep(
    plan: SweepPlan, *, reporter: Reporter | None = None, execute: Executor | None = None
) -> SweepResult:
    """Label what is not labelled, train what is not trained; write table and plot.

    By default progress is printed in plain lines, and shards run where a run's do.

    Raises:
        NnciftError: With what is wrong and the remedy; finished cells are kept.
    """
    reporter = reporter or LineReporter()
    config, run_dir = plan.config, Location.of(plan.config.run_dir)
    blueprint = Blueprint(config)
    with session_of(blueprint, run_dir, reporter, execute) as session:
        execute = session.execute
        outputs = run(
            config, reporter=reporter, until=LABELS_STAGE, execute=execute, record=False
        ).outputs
        with locked(run_dir), observed(config, run_dir, reporter) as reporter:
            for notice in plan.notices:
                reporter.notice(notice)
            labels, examples = outputs[LABELS_STAGE], outputs["deduplicate"]
            blocks = {cell.block for cell in plan.cells}
            labelled = {block: measured_fraction(labels, examples, block) for block in blocks}
            inputs = blueprint.network_inputs(outputs)
            stage = SweepStage(labels, inputs, plan.cells, config.network, labelled)
            stage.known = known_rows(run_dir, stage.base)
            if reused := sum(cell in stage.known for cell in plan.cells):
                reporter.notice(
                    f"{reused} of {len(plan.cells)} networks were trained by an earlier sweep"
                )
            give_resources(stage, blueprint, session)
            output = run_stage(stage, run_dir, execute=execute, reporter=reporter)
    return publish(output.read(CELLS_TABLE, schema=schemas.SWEEP_CELLS), run_dir / SWEEP_FOLDER)


def publish(cells: pa.Table, folder: Location) -> SweepResult:
    """Write the cells as CSV, Parquet and a picture."""
    csv, parquet, plot = (folder / f"sweep.{suffix}" for suffix in ("csv", "parquet", "png"))
    text, table = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(cells, text)
    pq.write_table(cells, table)
    csv.write_bytes(text.getvalue())
    parquet.write_bytes(table.getvalue())
    plot.write_bytes(plot_sweep(cells))
    return SweepResult(cells, csv, parquet, plot)


def known_rows(run_dir: Location, base: str) -> dict[Cell, list[dict[str, Any]]]:
    """Return the rows of all cells of a base that any sweep has finished, whole or not."""
    folder = run_dir / SWEEP_FOLDER
    files = (file.uri.removeprefix(f"{folder}/") for file in folder.list_files(recursive=True))
    known: defaultdict[Cell, list[dict[str, Any]]] = defaultdict(list)
    for name in sorted({file.split("/")[0] for file in files}):
        earlier = set(known)
        parts = (part for record in finished_shards(folder / name) for part in record.parts)
        for part in (part for part in parts if part.table == CELLS_TABLE):
            table = pq.read_table(io.BytesIO((folder / name / part.name).read_bytes()))
            if not table.schema.equals(schemas.SWEEP_CELLS):
                continue
            for row in table.filter(pc.equal(table["base"], pa.scalar(base))).to_pylist():
                cell = Cell(*(row[each.name] for each in dataclasses.fields(Cell)))
                if cell not in earlier:
                    known[cell].append(row)
    return dict(known)


def measured_fraction(labels: StageOutput, examples: StageOutput, block: str) -> float:
    """Return what fraction of the rows and of the columns the labels of a block stand for."""
    table = labels.read("labels", ["block", "split"], schemas.LABELS)
    splits = table.filter(pc.equal(table["block"], pa.scalar(block)))["split"].to_pylist()
    used = (TRAIN, VALIDATION) if block == POINTS else (TRAIN, VALIDATION, "Q1")
    num_rows = examples.num_rows(f"{helped_role(block)}s")
    num_labels = sum(split in used for split in splits)
    return _fraction(num_labels, block, num_rows, examples.num_rows("candidates"))


def _planned_fractions(config: Config, made: RunPlan) -> dict[str, float]:
    """Return by block the fraction of the rows and of the columns that a recipe labels."""
    corpus = made.corpus
    found: dict[str, float] = {}
    sizes = corpus.num_candidates, corpus.num_targets
    for block, design in Blueprint(config, fetch=False).sample_designs(*sizes).items():
        if design.label_pairs is None:
            found[block] = design.label_fraction or 0.0
            continue
        num_rows = corpus.num_targets if block == CROSS else corpus.num_candidates
        held_out = design.holdout_pairs_per_quadrant * (1 if block == POINTS else 3)
        num_labels = max(1, design.label_pairs - held_out)
        found[block] = _fraction(num_labels, block, num_rows, corpus.num_candidates)
    return found


def _fraction(num_labels: int, block: str, num_rows: int, num_columns: int) -> float:
    if block == POINTS:
        return min(1.0, num_labels / max(1, num_columns))
    possible = count_pairs(num_rows, num_columns, block == WITHIN)
    return min(1.0, math.sqrt(num_labels / max(1, possible)))


# What a sweep found: error by setting, over its seeds, as a table and as the paper's plot.

NETWORK, ADDITIVE_RIDGE, COSINE = "network", "additive_ridge", "cosine"
#: Heading of a figure, to its model and column.
KNOWLEDGE = {
    "interaction": (NETWORK, "interaction_correlation"),
    "capture": (NETWORK, "capture"),
    "ridge's": (ADDITIVE_RIDGE, "capture"),
    "cosine's": (COSINE, "capture"),
}
#: Colour, marker and meaning of each quadrant.
LOOKS = {
    "Q1": ("#0072b2", "o", "both seen"),
    "Q2": ("#009e73", "s", "helped unseen"),
    "Q3": ("#9467bd", "^", "helper unseen"),
    "Q4": ("#d55e00", "D", "neither seen"),
}
#: The paper's two baselines know no label: one line each, of Q4.
BLIND = {"zero": ":", "random": "-."}
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class SweepPoint:
    """One setting, over its seeds. Errors are on labels scaled to [0, 1]."""

    block: str
    fraction: float
    num_hidden: int
    num_train_pairs: int
    #: (split, model) to the error of every seed.
    errors: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    #: (model, measure) to its value in Q4 with every seed.
    of_pairs: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def error(self, split: str, model: str = NETWORK) -> float:
        """Return the mean error over seeds; NaN where the split has no pairs."""
        return float(np.mean(self.errors.get((split, model), [np.nan])))

    @property
    def ridge_error(self) -> float:
        """The Q4 error of the additive ridge, which ranks helpers alike for every row."""
        return self.error("Q4", ADDITIVE_RIDGE)

    @property
    def knowledge(self) -> dict[str, float]:
        """What is known of pairs in Q4, mean over seeds; NaN where it is undefined."""
        return {
            name: float(np.mean(self.of_pairs.get(key, [np.nan])))
            for name, key in KNOWLEDGE.items()
        }


def sweep_points(cells: pa.Table) -> list[SweepPoint]:
    """Return the settings of SWEEP_CELLS in order, seeds together."""
    points: dict[tuple[Any, ...], SweepPoint] = {}
    for row in cells.to_pylist():
        key = (row["block"], row["num_hidden"], row["fraction"])
        names = ("block", "fraction", "num_hidden", "num_train_pairs")
        point = points.setdefault(key, SweepPoint(*(row[name] for name in names)))
        if row["scaled_mse"] is not None:
            point.errors.setdefault((row["split"], row["model"]), []).append(row["scaled_mse"])
        for model, name in KNOWLEDGE.values():
            if (row["split"], row["model"]) == ("Q4", model) and row[name] is not None:
                point.of_pairs.setdefault((model, name), []).append(row[name])
    return [points[key] for key in sorted(points)]


def quadrants_of(points: Sequence[SweepPoint]) -> list[str]:
    """Return the quadrants that any point has pairs of."""
    return [name for name in QUADRANTS if any((name, NETWORK) in one.errors for one in points)]


def plot_sweep(cells: pa.Table) -> bytes:
    """Draw SWEEP_CELLS as a PNG: a panel a block and hidden size, on the same axes."""
    points = sweep_points(cells)
    blocks = sorted({one.block for one in points})
    widths = sorted({one.num_hidden for one in points})
    with mpl.rc_context(STYLE):
        size = (max(6.4, 0.8 + 3.6 * len(widths)), 1.6 + 3.2 * len(blocks))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(blocks), len(widths), sharex=True, sharey=True, squeeze=False)
        for (y, block), (x, width) in itertools.product(enumerate(blocks), enumerate(widths)):
            panel = [one for one in points if (one.block, one.num_hidden) == (block, width)]
            _draw_panel(grid[y, x], panel)
            grid[y, x].set_title(f"{block}, {width} hidden units")
            grid[-1, x].set_xlabel("labelled pairs trained on")
            grid[y, 0].set_ylabel("mean squared error")
        figure.suptitle("Error by training size (labels scaled to [0, 1])", fontweight="bold")
        lines, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(axes: Axes, points: Sequence[SweepPoint]) -> None:
    """Draw one setting: the network a quadrant with its seeds' range, and the baselines."""
    points = sorted(points, key=lambda one: one.num_train_pairs)
    sizes = [one.num_train_pairs for one in points]
    for name in quadrants_of(points):
        colour, marker, meaning = LOOKS[name]
        seeds = [one.errors.get((name, NETWORK), [np.nan]) for one in points]
        axes.fill_between(
            sizes, [min(of) for of in seeds], [max(of) for of in seeds], color=colour, alpha=0.15
        )
        errors, label = [one.error(name) for one in points], f"{name}: {meaning}"
        axes.plot(sizes, errors, color=colour, marker=marker, label=label)
        ridge = [one.error(name, ADDITIVE_RIDGE) for one in points]
        label = "additive ridge" if name == "Q4" else ""
        axes.plot(sizes, ridge, color=colour, ls="--", lw=1.2, label=label)
    for model, dashes in BLIND.items():
        errors = [one.error("Q4", model) for one in points]
        axes.plot(sizes, errors, color="grey", ls=dashes, label=f"{model} (Q4)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())


# The networks of a sweep: trained on parts of the labels, in several sizes, and measured.

Integers = NDArray[np.integer]

CELLS_TABLE = "cells"
#: What of a pair has to be kept for it to mean in the smaller sample what its split says.
_NEEDS_ROW = (TRAIN, VALIDATION, "Q1", "Q3")
_NEEDS_COLUMN = (TRAIN, VALIDATION, "Q1", "Q2")
_PER_PAIR = ("helped_pos", "helper_pos", "helped_index", "helper_index", "split", "utility")


def keep_share(
    helped: Integers,
    helper: Integers | None,
    split: NDArray[np.str_] | NDArray[np.object_],
    share: float,
    *,
    same_examples: bool,
    seed: int,
) -> NDArray[np.bool_]:
    """Return which pairs [P] of a label sample a smaller one keeps.

    A share in (0, 1] of the seen rows and the same share of the seen columns are kept, in one
    random order: a smaller share keeps a part of what a larger one keeps. With ``same_examples``
    rows and columns are one table, and an example has one place in the order. Examples that a
    held-out pair names come first in it, so that small samples can still be measured in every
    quadrant. A held-out pair is kept where it still means what its quadrant says; Q4 is always
    kept whole, and so is the same for every share.

    Raises:
        ValueError: If ``share`` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    axes = [helped] if helper is None else [helped, helper]
    size = 1 + max(int(axis.max(initial=0)) for axis in axes)
    needed = [np.isin(split, _NEEDS_ROW), np.isin(split, _NEEDS_COLUMN)]
    first = np.zeros((len(axes), size), np.bool_)
    for axis, measured in enumerate((("Q1", "Q3"), ("Q1", "Q2"))[: len(axes)]):
        first[axis, axes[axis][np.isin(split, measured)]] = True
    if same_examples:
        first[:] = first.any(axis=0)
    kept = np.ones(len(split), np.bool_)
    for axis, indices in enumerate(axes):
        generator = np.random.default_rng([seed, 0 if same_examples else axis])
        rank = np.empty(size, np.int64)
        rank[np.lexsort((generator.permutation(size), ~first[axis]))] = np.arange(size)
        seen = np.unique(indices[needed[axis]])
        order = seen[np.argsort(rank[seen])]
        chosen = order[: max(1 + same_examples, round(share * len(seen)))]
        kept &= np.isin(indices, chosen) | ~needed[axis]
    return kept


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One network of a sweep."""

    block: str
    fraction: float  # of the rows and of the columns of all pairs
    num_hidden: int
    seed: int  # of the weights and of the order of the pairs


class SweepStage(Stage):
    """Write ``cells``: the fidelity of every network by split, beside the baselines."""

    name: ClassVar[str] = "sweep"
    title: ClassVar[str] = "train networks on parts of the labels"
    produces = {CELLS_TABLE: schemas.SWEEP_CELLS}
    unit: ClassVar[str] = "networks"

    def __init__(
        self,
        labels: StageOutput,
        inputs: ExampleInputs,
        cells: Sequence[Cell],
        network: NetworkConfig,
        labelled: Mapping[str, float],
    ) -> None:
        """Train each cell on its part of the labels.

        Size and seed of a network are its cell's; the rest is as ``network`` says. ``labelled`` is
        by block the fraction that all labels together are.
        """
        self._labels, self._inputs = labels, inputs
        self._cells, self._network, self._labelled = tuple(cells), network, dict(labelled)
        #: Rows of cells that another sweep of the same ``base`` has measured.
        self.known: Mapping[Cell, Sequence[Mapping[str, Any]]] = {}
        self.inputs = {"labels": labels, **inputs.steps}

    @property
    def base(self) -> str:
        """The fingerprint of what all cells share: a cell of the same base has the same rows."""
        inputs = {name: output.fingerprint for name, output in self.inputs.items()}
        return fingerprint(self.name, self.version, self._training_settings(), inputs)

    def _training_settings(self) -> dict[str, Any]:
        return self._network.model_dump(mode="json", exclude={"num_hidden", "num_workers", "seed"})

    def settings(self) -> dict[str, Any]:
        """The cells and how they are trained."""
        cells = [dataclasses.asdict(cell) for cell in self._cells]
        return {"cells": cells, "training": self._training_settings()}

    def num_items(self) -> int:
        """Cells."""
        return len(self._cells)

    def make_worker(self) -> Worker:
        """Return what trains a run of cells."""
        base = self.base

        @functools.cache
        def read(block: str) -> step.BlockLabels:
            return step.read_block_labels(self._labels, self._inputs, block, self._network.seed)

        def train_cells(shard: Shard, sink: Sink) -> None:
            for cell in self._cells[shard.start : shard.stop]:
                rows = self.known.get(cell)
                if rows is None:
                    share = min(1.0, cell.fraction / self._labelled[cell.block])
                    rows = measure_cell(read(cell.block), cell, share, self._network)
                named = [dict(row) | {"base": base} for row in rows]
                sink.write_rows(CELLS_TABLE, named, schemas.SWEEP_CELLS)

        return train_cells


def measure_cell(
    data: step.BlockLabels, cell: Cell, share: float, network: NetworkConfig
) -> list[dict[str, Any]]:
    """Train one network on a share of the labels and measure it; one row a split and model.

    Errors are scaled by the range of all labels, the same for every share.
    """
    pairs, same = (data.helped_index, data.helper_index, data.split), cell.block == WITHIN
    mask = keep_share(*pairs, share, same_examples=same, seed=0)
    arrays = {name: getattr(data, name) for name in _PER_PAIR}
    kept = dataclasses.replace(
        data, **{name: array[mask] for name, array in arrays.items() if array is not None}
    )
    started = time.perf_counter()
    size_and_seed = {"num_hidden": cell.num_hidden, "seed": cell.seed}
    fitted = step.fit_block(kept, cell.block, network.model_copy(update=size_and_seed))
    influence = step.score_labelled(fitted.network, kept)
    learnt = kept.split == TRAIN
    helped, helper = kept.helped_index, kept.helper_index
    facts = dataclasses.asdict(cell) | {
        "num_train_rows": len(np.unique(helped[learnt])),
        "num_train_columns": 0 if helper is None else len(np.unique(helper[learnt])),
        "num_train_pairs": int(learnt.sum()),
        "num_epochs": step.best_epoch(fitted.history) if fitted.history else 0,
        "seconds": time.perf_counter() - started,
    }
    width = float(np.ptp(data.utility))
    rows = fidelity_table(
        kept.utility,
        influence,
        kept.split,
        helped,
        helper,
        kept.features(fitted.network),
        cell.seed,
    )

    def scaled(mse: float | None) -> float | None:
        return None if mse is None else mse / width**2 if width > 0 else float("nan")

    return [dataclasses.asdict(row) | facts | {"scaled_mse": scaled(row.mse)} for row in rows]
