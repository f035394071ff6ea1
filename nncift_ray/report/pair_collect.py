"""What the report says of scoring all pairs: how each block was scored, and what that missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.report.data import Cell, ExtraTable
from nncift_ray.report.formatting import (
    MISSING,
    format_count,
    format_number,
    format_percent,
    format_seconds,
)
from nncift_ray.storage import schemas
from nncift_ray.storage.chained import ChainedOutput
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.scores import scores_of

COLUMNS = ("block", "scored", "why", "found", "pairs scored", "all pairs", "pruned", "faster from")
LABEL_COLUMNS = ("block", "rows asked", "labels asked", "labelled", "failed", "without a label")


def merge_histogram(scores: StageOutput) -> pa.Table:
    """Add the shards' counts up (SCORE_HISTOGRAM)."""
    table = scores.read("histogram", schema=schemas.SCORE_HISTOGRAM)
    merged = table.group_by(["block", "bin"], use_threads=False).aggregate([("count", "sum")])
    return merged.rename_columns(["block", "bin", "count"]).cast(schemas.SCORE_HISTOGRAM)


def tried_recall(outputs: Mapping[str, StageOutput]) -> pa.Table | None:
    """Return the settings that the index stage tried (RECALL), None without such a stage."""
    return outputs["index"].read("recall", schema=schemas.RECALL) if "index" in outputs else None


def final_recall(scores: StageOutput) -> pa.Table:
    """Return the recall of the lists, a held-out row each (ROW_RECALL); empty if none is pruned."""
    return scores.read("recall", schema=schemas.ROW_RECALL)


def scoring_table(outputs: Mapping[str, StageOutput]) -> ExtraTable | None:
    """Say of each block of pairs how it was scored, why, and what that cost."""
    scores = scores_of(outputs)
    if "project" not in outputs:
        return _labels_table(scores)
    if schemas.POINTS in scores.manifest.settings["blocks"]:
        note = _half_precision(outputs["project"]).strip()
        row = (schemas.POINTS, "exactly")
        return ExtraTable("How examples were scored", note, COLUMNS[:2], (row,)) if note else None
    decisions: Mapping[str, Any] = {}
    if "index" in outputs:
        decisions = outputs["index"].manifest.facts().get("decisions", {})
    measured = final_recall(scores)
    rows = [
        _row(block, decisions.get(block), measured.filter(pc.field("block") == block))
        for block in scores.manifest.settings["blocks"]
    ]
    return ExtraTable(
        "How pairs were scored",
        "“Found” is the share of the true best helpers that the lists of held-out rows hold, with "
        "its standard error; an exact block has them all. Seconds are predictions made on this "
        f"machine before scoring. A worker's largest memory was {_peak(scores)}."
        + _half_precision(outputs["project"]),
        COLUMNS,
        tuple(rows),
    )


def _labels_table(scores: StageOutput) -> ExtraTable:
    """Say of each block how much of it the teacher labelled: the scores are those labels."""
    counts = scores.manifest.facts()["labels"]
    rows = [
        (
            block,
            f"{format_count(of['num_asked_rows'])} of {format_count(of['num_rows'])}",
            of["num_asked"],
            of["num_labelled"],
            of["num_asked"] - of["num_labelled"],
            of["num_unranked"],
        )
        for block, of in counts.items()
    ]
    return ExtraTable(
        "What the teacher labelled",
        "Every score is a label of the teacher; none is predicted. A row that was asked about was "
        "asked with every candidate, so all candidates are judged by the same rows. A failed label "
        "is a missing pair, not a zero: it is in no list and no mean. A candidate without any "
        "label is never picked.",
        LABEL_COLUMNS,
        tuple(rows),
    )


def _row(block: str, decision: Mapping[str, Any] | None, measured: pa.Table) -> tuple[Cell, ...]:
    known = decision or {}
    seconds = [_seconds(known.get(f"{way}_seconds")) for way in ("exact", "pruned")]
    crossing = known.get("crossing_rows")
    faster_from = MISSING if crossing is None else f"{format_count(crossing)} rows"
    if not measured.num_rows:
        why = known.get("reason", "every pair is asked for")
        if known.get("mode") == "pruned":
            why = "the index found too little on the rows held out for the last check"
        return (block, "exactly", why, format_percent(1.0), format_percent(1.0), *seconds,
                faster_from)  # fmt: skip
    recall = np.asarray(measured["recall"].to_numpy())
    share = float(np.mean(measured["scored_fraction"].to_numpy()))
    error = float(recall.std() / np.sqrt(len(recall)))
    found = f"{format_number(float(recall.mean()), 4)} ± {format_number(error, 1)}"
    how = f"candidates ({known.get('generator')}, {known.get('index')})"
    return (block, how, known.get("reason"), found, format_percent(share), *seconds, faster_from)


def _seconds(value: float | None) -> str:
    return MISSING if value is None else format_seconds(value)


def _peak(scores: StageOutput) -> str:
    peaks = [shard.facts.get("peak_bytes", 0) for shard in scores.manifest.shards]
    return f"{max(peaks, default=0) / 1e9:.2f} GB"


def _half_precision(activations: StageOutput) -> str:
    """Say what activations in half precision do to scores, where they are stored so."""
    errors = cast("Mapping[str, Any]", activations.manifest.facts())
    if not errors and isinstance(activations, ChainedOutput):  # nothing new was measured
        return _half_precision(activations.parent)
    texts = [
        f" Activations are stored in float16: on a sample of block {name.rpartition(':')[2]} that "
        f"changes a score by {value['mean']:.1e} on average and {value['max']:.1e} at most "
        f"({format_count(value['num_pairs'])} compared, unit of the labels)."
        for name, value in errors.items()
        if name.startswith("float16_error:")
    ]
    return "".join(texts)
