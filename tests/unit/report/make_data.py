"""Report data for tests, small and seeded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.report.data import (
    MixRow,
    ReportData,
    StageSummary,
    make_table,
)
from nncift_ray.runtime import schemas

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
MEASURES = ("interaction_correlation", "capture", "capture_1pct")
# Scaled MSE, Spearman, interaction correlation and capture; constants have no correlation, and a
# cosine is in no label's unit.
MODEL_METRICS = {
    "network": (0.02, 0.6, 0.4, 0.5),
    "additive_ridge": (0.04, 0.3, None, 0.3),
    "cosine": (None, 0.2, 0.25, 0.35),
    "row_column_mean": (0.06, None, None, 0.0),
    "mean": (0.06, None, None, 0.0),
    "zero": (0.08, None, None, 0.0),
    "random": (0.3, 0.0, 0.0, 0.0),
}
HALF_WIDTH = 0.05  # of an interval


def make_ranking(num_picks: int) -> pa.Table:
    """Make a ranking whose gains fall as 1/rank."""
    gain = 1.0 / np.arange(1, num_picks + 1)
    columns = {
        "rank": np.arange(1, num_picks + 1),
        "row_index": np.arange(num_picks),
        "example_id": [f"{i:032x}" for i in range(num_picks)],
        "gain": gain,
        "objective": np.cumsum(gain),
        "num_tokens": np.full(num_picks, 50),
        "num_covered": np.full(num_picks, 2),
        "decided_by": ["objective"] * num_picks,
    }
    return pa.table(columns).cast(schemas.RANKING)


def make_coverage(num_rows: int) -> pa.Table:
    """Make coverage rising from 0.3 to 0.9, with the first row covered by nothing."""
    columns = {
        "row_index": np.arange(num_rows),
        "covered_by": pa.array([None, *range(1, num_rows)], pa.int64()),
        "coverage": np.linspace(0.3, 0.9, num_rows),
    }
    return pa.table(columns).cast(schemas.COVERAGE)


def make_fidelity(
    block: str = "within", *, interaction: float = 0.4, capture: float = 0.5, **scaled_mse: float
) -> pa.Table:
    """Make one block's metrics of a network; keywords replace a model's scaled MSE."""
    rows = []
    for split in QUADRANTS:
        for model, (mse, spearman, beyond, best) in MODEL_METRICS.items():
            if model == "network":
                beyond, best = interaction, capture
            found = scaled_mse.get(model, mse)
            row = {"block": block, "split": split, "model": model, "num_pairs": 200}
            row |= {"mse": found and 0.1 * found, "scaled_mse": found, "spearman": spearman}
            row |= {"r2": 0.5 if spearman else None, "num_rows": 0 if block == "points" else 30}
            if block != "points":
                row |= {"row_spearman": spearman and spearman / 2} | _measures(beyond, best)
            rows.append(row)
    return pa.Table.from_pylist(rows, schemas.FIDELITY)


def _measures(beyond: float | None, best: float) -> dict[str, float | None]:
    """Make the measures of pairs, each with an interval around it."""
    found: dict[str, float | None] = {}
    for name, value in zip(MEASURES, (beyond, best, best), strict=True):
        ends = (("", 0.0), ("_low", -HALF_WIDTH), ("_high", HALF_WIDTH))
        found |= {f"{name}{end}": None if value is None else value + by for end, by in ends}
    return found


def make_errors(excerpt: str = "{}") -> pa.Table:
    """Make an errors table of one row."""
    row = {"stage": "ingest", "source": "a.jsonl", "line": 3, "reason": "no_response"}
    row |= {"example_id": None, "message": "The record has no response.", "excerpt": excerpt}
    return pa.Table.from_pylist([row], schemas.ERRORS)


def make_report_data(num_picks: int = 20, text: str = "What is two and two?") -> ReportData:
    """Make a report with every part filled; ``text`` stands wherever corpus text can stand."""
    example = {"prompt": text, "response": text, "place": text}
    ranked = {"rank": 1, "gain": 1.0, "num_covered": 2}
    skipped = {"alone_gain": 0.9, "final_gain": 0.1, "redundant_with_rank": 1}
    skipped |= {"redundant_share": 0.8, "cosine": 0.95}
    suspect = {"suspicion": 3.25, "consistency": 1.5, "rank": 4}
    return ReportData(
        run_name="tiny",
        num_candidates=max(100, num_picks),
        run_dir="runs/tiny",
        teacher="DELIFT",
        objective="facility location",
        num_duplicates=3,
        num_errors=1,
        num_labelled_pairs=400,
        random_objective=1.5,
        config={"data": {"candidates": [text]}, "seed": 0},
        environment={"python": "3.11"},
        outputs={"Subset": "runs/tiny/export/subset.jsonl"},
        notices=(text,),
        stages=(
            StageSummary("embed", 12.0, 100, 2, "ab" * 16, cost_usd=0.02),
            StageSummary("label", 60.0, 400, 4, "cd" * 16),
        ),
        mix=(MixRow(text, 60, 5), MixRow("sums", 40, 15)),
        neighbours=[
            ranked | {"pick": example, "covered": [{"example": example, "coverage": 0.75}]}
        ],
        skipped=[skipped | {"example": example, "pick": example}],
        suspects=[suspect | {"example": example, "near": [example]}],
        num_suspects=7,
        uses_quality=True,
        ranking=make_ranking(num_picks),
        coverage=make_coverage(100),
        fidelity=make_fidelity(),
        picks=make_table(
            "All picks",
            ("Rank", "Worth", "Id", "Prompt"),
            [(1, 2.5, "3f9a12", f"Add {text}"), (2, 1.5, "77ab01", "Name a river.")],
            f"What was picked {text}",
        ),
        scoring=make_table(
            "How pairs were scored", (text, "Share"), [(text, 0.25), (text, None)], "Why."
        ),
        num_scored=10_000,
        errors=make_errors(text.encode("utf-8", "replace").decode()),  # Arrow holds UTF-8 only
        pool_lengths=np.arange(10, 110),
        subset_lengths=np.arange(20, 40),
    )


def make_teacher_data() -> ReportData:
    """Make a report of a run whose scores are its teacher's labels."""
    return replace(
        make_report_data(),
        by_teacher=True,
        fidelity=None,
        scoring=make_table("What the teacher labelled", ("Block", "Failed"), [("within", 3)]),
    )


def make_empty_data() -> ReportData:
    """Make a report of a run that picked and scored nothing."""
    data = make_teacher_data()
    return replace(
        data,
        ranking=data.ranking.slice(0, 0),
        coverage=data.coverage.slice(0, 0),
        errors=data.errors.slice(0, 0),
        pool_lengths=data.pool_lengths[:0],
        subset_lengths=data.subset_lengths[:0],
        picks=replace(data.picks, rows=()),
        stages=(),
        mix=(),
        neighbours=(),
        skipped=(),
        suspects=(),
        num_suspects=None,
    )


def make_ranked_data(*, pointwise: bool) -> ReportData:
    """Make a report of a run whose picks stand on their own scores, by examples or by pairs."""
    block = "points" if pointwise else "cross"
    fidelity = make_fidelity(block)
    pick = {"prompt": "What?", "response": "That.", "place": ""}
    if pointwise:
        fidelity = fidelity.filter(
            (pc.field("split") == "Q4")
            & ~pc.is_in(pc.field("model"), pa.array(["row_column_mean", "cosine"]))
        )
    return replace(
        make_report_data(),
        objective="top k",
        num_targets=0 if pointwise else 40,
        pointwise=pointwise,
        ranks_by_score=True,
        has_subtasks=not pointwise,
        neighbours=[{"rank": 1, "gain": 0.9, "num_covered": 0, "pick": pick, "covered": []}],
        coverage=schemas.COVERAGE.empty_table(),
        fidelity=fidelity,
        scoring=None,
    )
