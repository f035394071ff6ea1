"""What the report shows: one frozen record, filled by the pipeline and read by page and terminal.

Parts that only some runs have, such as a network's, are ``None`` or empty in the others.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

import nncift_ray
from nncift_ray.corpus.examples import CONTAMINATED, NEAR_DUPLICATES, iter_groups
from nncift_ray.profiles.quality import SUSPECT
from nncift_ray.recipe.sections import ClusterConfig, Config
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, StageOutput
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN
from nncift_ray.selection.names import REPEATS, scored_blocks, scores_of

MISSING = "–"
_REPLACEMENT = "\ufffd"
# Control characters and lone surrogates: neither UTF-8 files nor SVG text may hold them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean_text(text: str) -> str:
    """Replace characters that an HTML or SVG file cannot hold."""
    return _UNPRINTABLE.sub(_REPLACEMENT, text)


def shorten(text: str, max_chars: int) -> str:
    """Cut a text to ``max_chars`` characters, the ellipsis included."""
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


def shorten_middle(text: str, max_chars: int) -> str:
    """Cut a text in its middle: both ends of a path or a task name tell it apart from others."""
    if len(text) <= max_chars:
        return text
    head = (max_chars - 1) // 2
    return f"{text[:head]}…{text[len(text) - (max_chars - 1 - head) :]}"


def format_count(value: float | None) -> str:
    """Write a whole number with thousands separators."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def format_compact(value: float | None) -> str:
    """Write a large number in three digits and a unit: 1.25M."""
    if value is None or not math.isfinite(value):
        return MISSING
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return format_count(value)


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a measured value with ``digits`` significant digits, plainly wherever that is short."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:,.{min(max(decimals, 0), 6)}f}"


def format_percent(share: float | None) -> str:
    """Write a share (0..1) in per cent with the digits that matter."""
    if share is None or not math.isfinite(share):
        return MISSING
    percent = 100 * share
    if percent == 0:
        return "0 %"
    if abs(percent) < 0.01:
        return "<0.01 %" if percent > 0 else ">-0.01 %"
    decimals = 0 if abs(percent) >= 20 else 1 if abs(percent) >= 1 else 2
    text = f"{percent:.{decimals}f}"
    # Nearly all is not all, and a reader would take it so.
    return f"{'>99.9' if share < 1 and text == '100' else text} %"


def format_tick(value: float) -> str:
    """Write the number at a tick of an axis: no more digits than it needs, a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def format_percent_tick(share: float) -> str:
    """Write the share (0..1) at a tick of an axis in per cent."""
    return f"{format_tick(round(100 * share, 6))} %"


def format_seconds(seconds: float | None) -> str:
    """Write a duration in the two units that matter."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 100 else f"{hours:,} h"


def format_usd(value: float | None) -> str:
    """Write a price in dollars."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"${value:,.2f}" if value >= 0.01 or value == 0 else "<$0.01"


F64 = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.integer]
Row = Mapping[str, Any]  # of a table, with the examples that it names
Cell = str | int | float | None
Head = str | tuple[str, str]  # of a column: its name, or its name and how its cells are set
NUMBER, TEXT, KEY = "num", "text", "key"
NETWORK, ADDITIVE_RIDGE, COSINE = "network", "additive_ridge", "cosine"


MAX_LISTED_PICKS = 5000
LISTED_ID_CHARS, LISTED_PROMPT_CHARS = 12, 160


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What one stage cost and left behind."""

    name: str
    seconds: float
    rows: int
    shards: int
    fingerprint: str
    cost_usd: float = 0.0
    failures: int = 0  # rows in the stage's errors table


@dataclass(frozen=True, slots=True)
class MixRow:
    """How many examples of one source or task the pool and the subset hold."""

    group: str
    pool: int
    subset: int
    least: int = 0  # quota: picks it must have
    most: int | None = None  # quota: picks it may have


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of texts, or the sentence that stands in its place."""

    title: str
    columns: tuple[tuple[str, str], ...]  # name of each, and how its cells are set
    rows: Sequence[tuple[str, ...]]
    reading: str = ""
    missing: str = "It has no row."


def make_table(
    title: str,
    heads: Iterable[Head],
    rows: Sequence[tuple[Cell, ...]],
    reading: str = "",
    missing: str = "It has no row.",
) -> PageTable:
    """Return a table whose cells are written as texts; columns of numbers are aligned right."""

    def column(head: Head, cells: tuple[Cell, ...]) -> tuple[str, str]:
        if isinstance(head, tuple):
            return head
        is_number = all(isinstance(cell, int | float) or cell is None for cell in cells)
        return head, NUMBER if cells and is_number else ""

    heads = tuple(heads)
    cells = tuple(zip(*rows, strict=True)) or ((),) * len(heads)
    columns = tuple(map(column, heads, cells))
    texts = [tuple(map(_written, row)) for row in rows]
    return PageTable(title, columns, texts, reading, missing)


def _written(cell: Cell) -> str:
    if isinstance(cell, float):
        return format_number(cell)
    if isinstance(cell, int):
        return format_count(cell)
    return MISSING if cell is None else cell


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything the report of one run needs, in memory; the same data give the same bytes.

    Tables follow ``runtime/schemas.py``. Lengths are in the tokens the budget counts, one integer
    per example, in any order.
    """

    run_name: str
    run_dir: str
    num_candidates: int
    ranking: pa.Table
    coverage: pa.Table
    num_scored: int  # pairs, or examples, over all blocks
    errors: pa.Table
    pool_lengths: Lengths
    subset_lengths: Lengths
    picks: PageTable  # every pick, as far as MAX_LISTED_PICKS
    scoring: PageTable | None = None  # how each block's pairs were scored, and why
    left_out: tuple[PageTable, ...] = ()  # candidates that repeat others or overlap with tests
    created: str = ""  # shown as it stands, e.g. "2026-11-20 14:03 UTC"
    version: str = ""
    teacher: str = ""
    objective: str = ""
    budget: str = ""
    num_targets: int = 0
    covers_targets: bool = False  # whether the rows that the objective covers are the targets
    pointwise: bool = False  # whether the teacher scores examples, not pairs
    ranks_by_score: bool = False  # whether each pick stands on its own score and covers no row
    by_teacher: bool = False  # whether the scores are the teacher's labels, and no network's
    has_subtasks: bool = False  # whether the score is that of a candidate's best subtask
    num_duplicates: int = 0
    num_left_out: Mapping[str, int] = field(default_factory=dict[str, int])  # by what they are
    num_errors: int = 0
    num_labelled_pairs: int | None = None
    random_objective: float | None = None  # value of a random subset of the same size
    upper_bound: float | None = None  # no subset within the budget is worth more
    stopped_by: str = ""  # "budget", "stop_gain" or "exhausted"
    optimizer: str = ""
    num_parts: int | None = None  # of a partitioned search
    mix_name: str = "source"  # what MixRow.group means: "source", "task", ...
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    environment: Mapping[str, object] = field(default_factory=dict[str, object])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])  # label -> path
    notices: Sequence[str] = ()
    stages: Sequence[StageSummary] = ()
    mix: Sequence[MixRow] = ()
    neighbours: Sequence[Row] = ()  # some picks, and the rows that each covers best
    skipped: Sequence[Row] = ()  # high-gain candidates, and the pick each is redundant with
    suspects: Sequence[Row] = ()  # the most suspicious candidates, and near examples
    num_suspects: int | None = None  # of all candidates; None where no quality was measured
    uses_quality: bool = False  # whether the quality of a candidate multiplied its worth
    fidelity: pa.Table | None = None  # of a network
    drift: Mapping[str, Any] | None = None  # facts of the drift stage, of a run that goes on

    @property
    def main_block(self) -> str:
        """The block to look at first: ``cross`` with targets, else ``within``."""
        if self.pointwise:
            return POINTS
        return CROSS if self.num_targets else WITHIN

    @property
    def unit(self) -> str:
        """What is labelled and scored."""
        return "examples" if self.main_block == POINTS else "pairs"

    @property
    def has_quotas(self) -> bool:
        """Whether any group of the mix has a quota."""
        return any(row.least or row.most is not None for row in self.mix)

    @property
    def ground_set(self) -> str:
        """The rows that the subset is to cover."""
        return "targets" if self.covers_targets else "candidates"

    # The few numbers a reader should leave with; page, terminal and card take them from here.

    @property
    def num_picks(self) -> int:
        """Return how many examples were selected."""
        return self.ranking.num_rows

    @property
    def decisions(self) -> dict[str, int]:
        """Return how many picks were decided by what (RANKING), the most frequent first."""
        return dict(Counter(map(str, self.ranking["decided_by"].to_pylist())).most_common())

    @property
    def final_objective(self) -> float:
        """Return the objective after the last pick, nan without picks."""
        return float(numbers(self.ranking, "objective")[-1]) if self.ranking.num_rows else math.nan

    @property
    def share_of_best(self) -> float:
        """Return the least share of the best possible value that was reached; nan where unknown."""
        final, bound = self.final_objective, self.upper_bound
        if bound is None or not (math.isfinite(final) and bound > 0):
            return math.nan
        return min(final / bound, 1.0)

    @property
    def mean_coverage(self) -> float:
        """Return the mean coverage (0..1) over the ground set, nan where it was not recorded."""
        values = numbers(self.coverage, "coverage")
        return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan

    @property
    def total_seconds(self) -> float:
        """Return the seconds of all stages together."""
        return float(sum(stage.seconds for stage in self.stages))

    @property
    def total_cost(self) -> float:
        """Return the price of all stages, US dollars."""
        return float(sum(stage.cost_usd for stage in self.stages))

    @property
    def headline_fidelity(self) -> Fidelity | None:
        """Return how the network does on the hardest split measured of the main block."""
        blocks = blocks_of(self.fidelity)
        if self.fidelity is None or not blocks:
            return None
        block = self.main_block if self.main_block in blocks else blocks[0]
        table, beyond = select_block(self.fidelity, block), "interaction_correlation"
        for split in reversed(splits_of(table)):
            names = ("num_pairs", "spearman", beyond, f"{beyond}_low", f"{beyond}_high")
            count, *own = (metric(table, split, NETWORK, name) for name in names)
            if math.isfinite(metric(table, split, NETWORK, "scaled_mse")):
                order, value, low, high = own
                cosine = metric(table, split, COSINE, beyond)
                return Fidelity(block, split, int(count), order, value, low, high, cosine)
        return None

    @property
    def cleaning_sentence(self) -> str:
        """Say how much the objective decided and what was left out before; "" without picks."""
        counts = self.decisions
        if not counts:
            return ""
        decided, total = counts.get("objective", 0), self.num_picks
        how = "The objective decided " + ("all of them; " if decided == total else f"{decided:,}; ")
        away = {"unusable rows": self.num_errors, "exact duplicates": self.num_duplicates}
        left = [
            f"{count:,} {what if count > 1 else what.replace('rows', 'row').removesuffix('s')}"
            for what, count in {**away, **self.num_left_out}.items()
            if count
        ]
        before = f"{', '.join(left) or 'nothing'} {'was' if not left else 'were'} left out before."
        return how + before if decided else before[0].upper() + before[1:]

    @property
    def verdict(self) -> str:
        """Say whether the scores know of pairs more than an additive model and than a cosine do.

        Empty of examples on their own, and where no pair was measured.
        """
        found = self.headline_fidelity
        if found is None or found.block == POINTS:
            return ""
        if math.isfinite(found.beyond) and not math.isfinite(found.low):
            return "Too few pairs were held out to tell whether the scores know pairs."
        if found.beats_cosine:
            return (
                "The scores know which example helps which: more than a model that only knows good "
                "helpers from bad (additive), and more than a cosine of embeddings."
            )
        if found.low > 0:
            return (
                "The scores know more of pairs than a model that only knows good helpers from bad "
                "(additive), but no more than a cosine of embeddings."
            )
        return "Nothing shows that the scores know one example's best helper from another's."


# Reading the tables.


def numbers(table: pa.Table, name: str) -> F64:
    """Return a numeric column as float64, nulls as nan."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def blocks_of(table: pa.Table | None) -> list[str]:
    """Return the blocks of a table in order of first appearance."""
    return [] if table is None else [str(name) for name in table["block"].unique().to_pylist()]


def select_block(table: pa.Table, block: str) -> pa.Table:
    """Return the rows of one block."""
    return table.filter(pc.field("block") == block)


def splits_of(table: pa.Table) -> list[str]:
    """Return the held-out splits of FIDELITY or PREDICTIONS: quadrants where it has any."""
    names = sorted(str(name) for name in table["split"].unique().to_pylist())
    quadrants = [name for name in names if name.startswith("Q")]
    return quadrants or [name for name in names if name != "train"]


def metric(table: pa.Table, split: str, model: str, name: str) -> float:
    """Return one metric of the FIDELITY rows of one block; nan where it is absent or null."""
    hits = table.filter((pc.field("split") == split) & (pc.field("model") == model))
    known = hits.num_rows and name in hits.column_names
    return float(numbers(hits, name)[0]) if known else math.nan


def mix_shares(mix: Sequence[MixRow]) -> tuple[F64, F64]:
    """Return each group's share (0..1) of the pool and of the subset, in the order of ``mix``."""
    pool = np.array([row.pool for row in mix], dtype=np.float64)
    subset = np.array([row.subset for row in mix], dtype=np.float64)
    return pool / max(pool.sum(), 1.0), subset / max(subset.sum(), 1.0)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How the network does on one split; nan: not known."""

    block: str
    split: str
    num_pairs: int
    spearman: float
    beyond: float  # correlation with the teacher beyond row and column effects
    low: float  # end of its 95 % interval
    high: float
    cosine: float  # the same correlation of the untrained cosine; an additive model has 0

    @property
    def beats_cosine(self) -> bool:
        """Whether the interval lies above the cosine, and above 0."""
        return self.low > max(float(np.nan_to_num(self.cosine)), 0.0)


def knowledge_words(found: Fidelity) -> str:
    """Say what the figure of what the scores know of pairs is, beside those of rivals."""
    interval = ""
    if math.isfinite(found.low):
        interval = f" (95 % interval {two_digits(found.low)} to {two_digits(found.high)})"
    return (
        f"correlation with the teacher beyond averages of rows and helpers{interval}, "
        f"{format_count(found.num_pairs)} held-out pairs; cosine {two_digits(found.cosine)}, "
        "additive model 0"
    )


def two_digits(value: float) -> str:
    """Write a correlation; one that is not defined is that of a model that knows nothing."""
    return format_number(0.0 if math.isnan(value) else value, 2)


# Fill the record from the outputs of a run's stages.

LEFT_OUT_SHOWN, EXCERPT_CHARS = 20, 200
MAX_ERRORS_SHOWN = 100_000
COVERED_SHOWN = 3
NUM_SKIPPED = 6
NUM_SUSPECTS = 8


def collect_report_data(
    outputs: Mapping[str, StageOutput],
    recipe: Config,
    *,
    run_dir: str,
    paths: Mapping[str, str],
    notices: Sequence[str] = (),
    inherited: Sequence[str] = (),
) -> ReportData:
    """Return what the report of a finished run shows.

    Args:
        outputs: Of all steps, by name.
        recipe: Of the run.
        run_dir: Where it lies.
        paths: Files a reader may want to open, by what they are.
        notices: What was decided for the user.
        inherited: Steps whose work another run did and paid for.
    """
    examples, select, scores = outputs["deduplicate"], outputs["select"], scores_of(outputs)
    label, index, drift = (outputs.get(name) for name in ("label", "index", "drift"))
    fit = outputs.get("fit") if label else None
    ranking = select.read("ranking", schema=schemas.RANKING)
    picked = np.asarray(ranking["row_index"].to_numpy())
    lengths = np.asarray(outputs["embed"].read("candidates", ["num_tokens"])["num_tokens"])
    facts, settings = select.manifest.facts(), select.manifest.settings
    quality = outputs.get("quality")
    config = recipe.model_dump(mode="json")
    group_by = settings["quotas"]["field"] or recipe.data.group_by
    return ReportData(
        run_name=recipe.report.title or run_dir.rstrip("/").rpartition("/")[2],
        run_dir=run_dir,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=nncift_ray.__version__,
        teacher=recipe.teacher.kind,
        objective=recipe.objective.replace("_", " "),
        budget=json.dumps(config["selection"]["budget"]),
        num_candidates=examples.num_rows("candidates"),
        num_targets=examples.num_rows("targets"),
        covers_targets=_covers_targets(select),
        pointwise=POINTS in scored_blocks(outputs),
        ranks_by_score=settings["objective"] == "top_k",
        by_teacher=fit is None,
        has_subtasks=recipe.data.subtask_by is not None,
        num_duplicates=count_duplicates(examples),
        num_left_out={
            "near-duplicates": examples.num_rows(NEAR_DUPLICATES),
            "rows with words of a test": examples.num_rows(CONTAMINATED),
        },
        num_errors=sum(
            output.manifest.num_failures
            for name, output in outputs.items()
            if name != "pool_ingest"  # the candidates once more
        ),
        num_labelled_pairs=label and label.num_rows("labels"),
        random_objective=facts.get("random_objective"),
        upper_bound=facts.get("upper_bound"),
        stopped_by=facts.get("stopped_by", ""),
        optimizer=facts.get("optimizer", ""),
        num_parts=facts.get("num_parts"),
        mix_name=group_by or "source file",
        config=config,
        environment=(fit or scores).manifest.environment,
        outputs=paths,
        notices=tuple(notices),
        stages=[
            _summary(output, recipe.cluster, inherited=name in inherited)
            for name, output in outputs.items()
        ],
        mix=collect_mix(examples, picked, group_by, select),
        skipped=_collect_skipped(examples, select),
        picks=_list_picks(examples, ranking, by_score=settings["objective"] == "top_k"),
        suspects=_collect_suspects(examples, quality, ranking) if quality else (),
        num_suspects=quality and quality.manifest.facts()["num_suspects"],
        uses_quality=facts.get("quality") == "auto",
        neighbours=_collect_neighbours(examples, select, ranking, recipe.report.num_picks),
        ranking=ranking,
        coverage=_coverage_of_rows(select, None if "fit" in outputs else scores),
        fidelity=fit and fit.read("fidelity", schema=schemas.FIDELITY),
        num_scored=int(numbers(scores.read("statistics"), "num_scored").sum()),
        scoring=_scoring_table(scores, index) if "fit" in outputs else _labels_table(scores),
        errors=_first_errors(outputs.values()),
        left_out=_left_out_tables(examples, outputs.get(REPEATS)),
        drift=drift and drift.manifest.facts(),
        pool_lengths=lengths,
        subset_lengths=lengths[picked],
    )


def count_duplicates(examples: StageOutput) -> int:
    """Return how many exact copies were collapsed."""
    return sum(
        int(np.sum(batch.column(0).to_numpy()))
        for role in ("candidates", "targets", "copies")
        for batch in examples.iter_batches(role, ["num_duplicates"])
    )


def _covers_targets(select: StageOutput) -> bool:
    return select.manifest.facts()["covers"] == "targets"


def _coverage_of_rows(select: StageOutput, labels: StageOutput | None) -> pa.Table:
    """Return the coverage of every row; with ``labels``, of the rows that have any.

    A row that the teacher was not asked about has nothing to be covered by, which says nothing of
    the picks.
    """
    coverage = select.read("coverage", schema=schemas.COVERAGE)
    if labels is None or not coverage.num_rows:
        return coverage
    block = CROSS if _covers_targets(select) else WITHIN
    labelled = [
        pc.greater(pc.list_value_length(batch.column(0)), pa.scalar(0))
        for batch in labels.iter_batches(f"{block}_top_helpers", ["helper_index"])
    ]
    return coverage.filter(pa.chunked_array(labelled))


def _summary(output: StageOutput, prices: ClusterConfig, *, inherited: bool) -> StageSummary:
    manifest = output.manifest
    tables = {part.table for shard in manifest.shards for part in shard.parts}
    price = prices.price(manifest.worker_seconds, manifest.num_cpus, manifest.num_gpus)
    return StageSummary(
        name=manifest.stage,
        seconds=0.0 if inherited else manifest.wall_seconds,
        rows=sum(manifest.num_rows(table) for table in tables - {ERRORS_TABLE}),
        shards=len(manifest.shards),
        fingerprint=manifest.fingerprint,
        cost_usd=0.0 if inherited else price,
        failures=manifest.num_failures,
    )


def count_mix(pool_groups: Iterable[str], subset_groups: Iterable[str]) -> tuple[MixRow, ...]:
    """Count each group in pool and subset, the largest of the pool first, ties by name."""
    pool, subset = Counter(pool_groups), Counter(subset_groups)
    names = sorted(pool.keys() | subset.keys(), key=lambda name: (-pool[name], name))
    return tuple(MixRow(name, pool[name], subset[name]) for name in names)


def collect_mix(
    examples: StageOutput, picked: np.ndarray, group_by: str | None, select: StageOutput
) -> tuple[MixRow, ...]:
    """Count the groups of pool and subset: by a field of the record, else by source file."""
    groups = np.array(list(iter_groups(examples, group_by)), dtype=object)
    quotas = select.manifest.facts().get("quotas", {})
    rows = count_mix(groups.tolist(), groups[picked].tolist())
    return tuple(replace(row, **quotas.get(row.group, {})) for row in rows)


def choose_sample_ranks(num_picks: int, num_samples: int = 8) -> list[int]:
    """Choose which ranks to show: the first three, then ever wider steps down to the last.

    Returns at most ``num_samples`` distinct 1-based ranks, ascending.
    """
    if num_picks <= num_samples:
        return list(range(1, num_picks + 1))
    head = list(range(1, min(3, num_samples) + 1))
    tail = np.geomspace(head[-1], num_picks, num_samples - len(head) + 1)[1:]
    return sorted({*head, *(round(float(rank)) for rank in tail)})


def _find_texts(examples: StageOutput, table: str, rows: Sequence[int]) -> list[Row]:
    """Look up the texts of some rows, in the order given; ``place``: "file:line", no folders."""
    if not rows:
        return []
    columns = ["prompt", "response", "source", "line"]
    found = cast("list[Row]", examples.take_rows(table, np.array(rows), columns).to_pylist())
    return [{**row, "place": f"{row['source'].rpartition('/')[2]}:{row['line']}"} for row in found]


def _list_picks(examples: StageOutput, ranking: pa.Table, *, by_score: bool) -> PageTable:
    """List the picks by rank: gain or score, what decided, id, place and the head of the prompt."""
    shown = ranking.slice(0, MAX_LISTED_PICKS)
    columns = ["example_id", "source", "line", "prompt"]
    found = examples.take_rows("candidates", np.asarray(shown["row_index"].to_numpy()), columns)
    picks = zip(shown.to_pylist(), found.to_pylist(), strict=True)
    rows: list[tuple[Cell, ...]] = [
        (
            pick["rank"],
            pick["gain"],
            str(pick["decided_by"]),
            example["example_id"][:LISTED_ID_CHARS],
            f"{example['source'].rsplit('/', 1)[-1]}:{example['line']}",
            " ".join(example["prompt"].split())[:LISTED_PROMPT_CHARS],
        )
        for pick, example in picks
    ]
    title = "All picks" if len(shown) == len(ranking) else f"The first {len(shown):,} picks"
    worth = "Score" if by_score else "Gain"
    what = "its own" if by_score else "what it added to the objective"
    reading = f"{worth} of a pick: {what}. Click a heading to sort."
    heads = ("Rank", worth, "Decided by", "Id", "Source", ("Prompt", TEXT))
    return make_table(title, heads, rows, reading)


def _collect_neighbours(
    examples: StageOutput, select: StageOutput, ranking: pa.Table, num_picks: int
) -> list[Row]:
    """Look up some picks and the rows each of them covers best."""
    coverage = select.read("coverage", schema=schemas.COVERAGE)
    covered_by = np.asarray(coverage["covered_by"].fill_null(pa.scalar(-1, pa.int64())).to_numpy())
    values = np.asarray(coverage["coverage"].to_numpy())
    covered_table = "targets" if _covers_targets(select) else "candidates"
    ranks = choose_sample_ranks(ranking.num_rows, num_picks)
    picks = [ranking.slice(rank - 1, 1).to_pylist()[0] for rank in ranks]
    best: list[list[int]] = []
    for pick in picks:
        rows = np.flatnonzero(covered_by == pick["row_index"])
        if covered_table == "candidates":
            rows = rows[rows != pick["row_index"]]
        best.append(rows[np.argsort(-values[rows], kind="stable")][:COVERED_SHOWN].tolist())
    texts = _find_texts(examples, "candidates", [pick["row_index"] for pick in picks])
    covered = iter(_find_texts(examples, covered_table, [row for rows in best for row in rows]))
    return [
        {**pick, "pick": text,
         "covered": [{"example": next(covered), "coverage": float(values[row])} for row in rows]}
        for pick, text, rows in zip(picks, texts, best, strict=True)
    ]  # fmt: skip


def _collect_skipped(examples: StageOutput, select: StageOutput) -> list[Row]:
    """Look up the skipped examples of highest worth, at most one for each pick.

    Without that rule one pick that stands for many copies would fill the page.
    """
    found = cast("list[dict[str, Any]]", select.read("skipped", schema=schemas.SKIPPED).to_pylist())
    by_pick = {row["redundant_with"]: row for row in reversed(found)}
    rows = [row for pick, row in by_pick.items() if pick is not None]
    rows = sorted(rows, key=lambda row: -row["alone_gain"])[:NUM_SKIPPED]
    skipped, picks = (
        _find_texts(examples, "candidates", [row[name] for row in rows])
        for name in ("row_index", "redundant_with")
    )
    return [
        {**row, "example": example, "pick": pick}
        for row, example, pick in zip(rows, skipped, picks, strict=True)
    ]


def _collect_suspects(examples: StageOutput, quality: StageOutput, ranking: pa.Table) -> list[Row]:
    """Look up the candidates of highest suspicion, with the examples they were held against."""
    table = quality.read("candidates")
    table = table.filter(pc.field("suspicion") > SUSPECT)
    found = table.sort_by([("suspicion", "descending")]).slice(0, NUM_SUSPECTS).to_pylist()
    near = [cast("list[int]", row["neighbours"] or []) for row in found]
    texts = _find_texts(examples, "candidates", [row["row_index"] for row in found])
    beside = iter(_find_texts(examples, "candidates", [row for rows in near for row in rows]))
    rank_of = dict(zip(ranking["row_index"].to_pylist(), ranking["rank"].to_pylist(), strict=True))
    return [
        {**row, "example": text, "near": [next(beside) for _ in rows],
         "rank": rank_of.get(row["row_index"])}
        for row, text, rows in zip(found, texts, near, strict=True)
    ]  # fmt: skip


def _first_errors(outputs: Iterable[StageOutput]) -> pa.Table:
    """Return the first error rows of all stages; the manifests have the full counts."""
    batches: list[pa.RecordBatch] = []
    room = MAX_ERRORS_SHOWN
    for output in outputs:
        for batch in output.iter_batches(ERRORS_TABLE):
            batches.append(batch.slice(0, room))
            room -= batches[-1].num_rows
            if room <= 0:
                break
    return pa.Table.from_batches(batches, schema=schemas.ERRORS)


def _left_out_tables(examples: StageOutput, repeats: StageOutput | None) -> tuple[PageTable, ...]:
    """List the first candidates that were left out, beside their twins or the tests they hold."""

    def place(row: Mapping[str, Any], whose: str = "") -> str:
        return f"{row[f'{whose}source']}:{row[f'{whose}line']}"

    prompt, first = ("Prompt", TEXT), f"The first {LEFT_OUT_SHOWN}."
    twins = [
        (place(row), place(row, "twin_"), row["similarity"], row["excerpt"])
        for row in _first_rows(examples, NEAR_DUPLICATES)
    ]
    overlaps = [
        (place(row), place(row, "test_"), row["words"] or "the whole prompt", row["excerpt"])
        for row in _first_rows(examples, CONTAMINATED)
    ]
    tables = (
        make_table(
            f"Near-duplicates: {examples.num_rows(NEAR_DUPLICATES):,} candidates left out",
            ("Candidate", "Its twin", "Similarity", prompt),
            twins,
            f"Each is alike to an earlier candidate, which stays. {first}",
        ),
        make_table(
            f"Overlaps with tests: {examples.num_rows(CONTAMINATED):,} candidates left out",
            ("Candidate", "Test", "Shared words", prompt),
            overlaps,
            f"Each holds a test's prompt, or words of it. {first}",
        ),
        _repeats_table(examples, repeats),
    )
    return tuple(table for table in tables if table and table.rows)


def _repeats_table(examples: StageOutput, repeats: StageOutput | None) -> PageTable | None:
    if repeats is None or not repeats.num_rows(REPEATS):
        return None
    found = _first_rows(repeats, REPEATS)
    prompts, others = (
        examples.take_rows("candidates", np.array([row[side] for row in found]), ["prompt"])[
            "prompt"
        ].to_pylist()
        for side in ("row_index", "repeats")
    )
    rows = [
        (shorten(str(prompt), EXCERPT_CHARS), shorten(str(other), EXCERPT_CHARS), row["cosine"])
        for prompt, other, row in zip(prompts, others, found, strict=True)
    ]
    return make_table(
        f"Reworded repeats: {repeats.num_rows(REPEATS):,} candidates not picked",
        ("Candidate", "Asks what this one asks", ("Cosine", NUMBER)),
        rows,
        "Each has the answer of another, which may be picked. No cosine: the same words. "
        f"The first {LEFT_OUT_SHOWN}.",
    )


def _first_rows(examples: StageOutput, name: str) -> list[dict[str, Any]]:
    batch = next(iter(examples.iter_batches(name, batch_rows=LEFT_OUT_SHOWN)), None)
    return [] if batch is None else cast("list[dict[str, Any]]", batch.to_pylist())


# How each block was scored, and what that missed.


def _scoring_table(scores: StageOutput, index: StageOutput | None) -> PageTable | None:
    """Say of each block of pairs how it was scored, why, and what that cost."""
    blocks = scores.manifest.settings["blocks"]
    if POINTS in blocks:
        return None
    decisions = index.manifest.facts().get("decisions", {}) if index else {}
    measured = scores.read("recall", schema=schemas.ROW_RECALL)
    peak = max((shard.facts.get("peak_bytes", 0) for shard in scores.manifest.shards), default=0)
    return make_table(
        "How pairs were scored",
        ("Block", "Scored", "Why", "Found", "Pairs scored", "Exact", "Pruned"),
        [
            _scoring_row(block, decisions.get(block) or {}, select_block(measured, block))
            for block in blocks
        ],
        "“Found” is the share of the true best helpers that the lists of held-out rows hold, with "
        "its standard error; an exact block has them all. The last two are the seconds predicted "
        f"for this machine before scoring. A worker's largest memory was {peak / 1e9:.2f} GB.",
    )


def _scoring_row(block: str, decision: Mapping[str, Any], measured: pa.Table) -> tuple[Cell, ...]:
    seconds = [format_seconds(decision.get(f"{way}_seconds")) for way in ("exact", "pruned")]
    if not measured.num_rows:
        why = decision.get("reason", "every pair is asked for")
        if decision.get("mode") == "pruned":
            why = "the index found too little on the rows held out for the last check"
        return (block, "exactly", why, format_percent(1.0), format_percent(1.0), *seconds)
    recall = np.asarray(measured["recall"].to_numpy())
    share = format_percent(float(np.mean(measured["scored_fraction"].to_numpy())))
    error = format_number(float(recall.std() / np.sqrt(len(recall))), 1)
    found = f"{format_number(float(recall.mean()), 4)} ± {error}"
    return (block, "candidates only", decision.get("reason"), found, share, *seconds)


def _labels_table(scores: StageOutput) -> PageTable:
    """Say of each block how much of it the teacher labelled: the scores are those labels."""
    return make_table(
        "What the teacher labelled",
        ("Block", "Rows asked", "Labels asked", "Labelled", "Failed", "Without a label"),
        [
            (
                block,
                f"{format_count(of['num_asked_rows'])} of {format_count(of['num_rows'])}",
                of["num_asked"],
                of["num_labelled"],
                of["num_asked"] - of["num_labelled"],
                of["num_unranked"],
            )
            for block, of in scores.manifest.facts()["labels"].items()
        ],
        "Every score is a label of the teacher; none is predicted. A row that was asked about was "
        "asked with every candidate, so all candidates are judged by the same rows. A failed label "
        "is a missing pair, not a zero: it is in no list and no mean. A candidate without any "
        "label is never picked.",
    )
