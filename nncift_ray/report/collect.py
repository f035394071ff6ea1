"""Fill the report's record from the outputs of a run's stages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import nncift_ray
from nncift_ray.core.pairs.pair_scores import ScoreTotal
from nncift_ray.report.data import (
    CoveredExample,
    MixRow,
    PickNeighbours,
    ReportData,
    StageSummary,
    choose_sample_ranks,
    count_mix,
)
from nncift_ray.report.pair_collect import (
    final_recall,
    merge_histogram,
    scoring_table,
    tried_recall,
)
from nncift_ray.report.skipped import collect_skipped, find_example_texts
from nncift_ray.storage import schemas
from nncift_ray.storage.groups import iter_groups
from nncift_ray.storage.output import ERRORS_TABLE, StageOutput
from nncift_ray.storage.schemas import CROSS, WITHIN
from nncift_ray.storage.scores import scored_blocks, scores_of

SECONDS_PER_HOUR = 3600.0
MAX_ERRORS_SHOWN = 100_000
COVERED_SHOWN = 3
NUM_SKIPPED = 6
#: Parts of the report that are about a network, and why a run by its teacher's labels has none.
NETWORK_PARTS = ("fidelity", "predictions", "training_history")
NO_NETWORK = (
    "pair_scores.by is teacher: the scores are the teacher's own labels, so no network was trained "
    "and nothing was predicted."
)


@dataclass(frozen=True)
class RunFacts:
    """What the report says of a run that no stage knows."""

    run_name: str
    run_dir: str
    created: str
    config: Mapping[str, object]
    teacher: str
    objective: str
    notices: tuple[str, ...] = ()
    group_by: str | None = None
    num_picks: int = 12
    price_per_gpu_hour: float = 0.0
    price_per_cpu_hour: float = 0.0
    exports: Mapping[str, str] = field(default_factory=dict[str, str])
    inherited: tuple[str, ...] = ()  # stages whose work another run did and paid for


def collect_report_data(outputs: Mapping[str, StageOutput], facts: RunFacts) -> ReportData:
    """Read from a finished run what its report shows."""
    examples, select, scores = outputs["deduplicate"], outputs["select"], scores_of(outputs)
    fit = outputs.get("fit")  # none where the teacher's labels are the scores
    ranking = select.read("ranking", schema=schemas.RANKING)
    picked = np.asarray(ranking["row_index"].to_numpy())
    lengths = np.asarray(outputs["embed"].read("candidates", ["num_tokens"])["num_tokens"])
    select_facts = select.manifest.facts()
    config = cast("Any", facts.config)
    group_by = select.manifest.settings["quotas"]["field"] or facts.group_by
    return ReportData(
        run_name=facts.run_name,
        run_dir=facts.run_dir,
        created=facts.created,
        version=nncift_ray.__version__,
        teacher=facts.teacher,
        objective=facts.objective.replace("_", " "),
        budget=json.dumps(config["selection"]["budget"]),
        num_candidates=examples.num_rows("candidates"),
        num_targets=examples.num_rows("targets"),
        covers_targets=covers_targets(select),
        pointwise=schemas.POINTS in scored_blocks(outputs),
        ranks_by_score=select.manifest.settings["objective"] == "top_k",
        by_teacher=fit is None,
        has_subtasks=config["data"].get("subtask_by") is not None,
        num_duplicates=count_duplicates(examples),
        num_errors=sum(output.manifest.num_failures for output in outputs.values()),
        num_labelled_pairs=outputs["utility"].num_rows("labels"),
        random_objective=select_facts.get("random_objective"),
        upper_bound=select_facts.get("upper_bound"),
        stopped_by=select_facts.get("stopped_by", ""),
        optimizer=select_facts.get("optimizer", ""),
        num_parts=select_facts.get("num_parts"),
        num_rounds=select_facts.get("num_rounds", 1),
        mix_name=group_by or "source file",
        config=facts.config,
        environment=(fit or scores).manifest.environment,
        outputs=facts.exports,
        notices=facts.notices,
        stages=[_summary(output, facts) for output in outputs.values()],
        mix=collect_mix(examples, picked, group_by, select),
        skipped=collect_skipped(examples, select, ranking, NUM_SKIPPED),
        neighbours=collect_neighbours(examples, select, ranking, facts.num_picks),
        ranking=ranking,
        coverage=coverage_of_rows(select, scores if fit is None else None),
        fidelity=fit and fit.read("fidelity", schema=schemas.FIDELITY),
        predictions=fit and fit.read("predictions", schema=schemas.PREDICTIONS),
        training_history=fit and fit.read("history", schema=schemas.TRAINING_HISTORY),
        score_statistics=merge_statistics(
            scores.read("statistics", schema=schemas.SCORE_STATISTICS)
        ),
        score_histogram=merge_histogram(scores),
        recall=tried_recall(outputs),
        final_recall=final_recall(scores),
        min_recall=config["pair_scores"]["min_recall"],
        scoring=scoring_table(outputs),
        errors=collect_errors(outputs),
        drift=outputs["drift"].manifest.facts() if "drift" in outputs else None,
        drift_distances=outputs["drift"].read("distances", schema=schemas.DRIFT_DISTANCES)
        if "drift" in outputs
        else None,
        pool_lengths=lengths,
        subset_lengths=lengths[picked],
        unavailable={} if fit else dict.fromkeys(NETWORK_PARTS, NO_NETWORK),
    )


def count_duplicates(examples: StageOutput) -> int:
    """Return how many exact copies were collapsed."""
    return sum(
        int(np.sum(batch.column(0).to_numpy()))
        for role in ("candidates", "targets", "copies")
        for batch in examples.iter_batches(role, ["num_duplicates"])
    )


def coverage_of_rows(select: StageOutput, labels: StageOutput | None) -> pa.Table:
    """Return the coverage of every row (COVERAGE); of ``labels``, of the rows that have any.

    A row that the teacher was not asked about has nothing to be covered by, which says nothing of
    the picks.
    """
    coverage = select.read("coverage", schema=schemas.COVERAGE)
    if labels is None or not coverage.num_rows:
        return coverage
    block = CROSS if covers_targets(select) else WITHIN
    labelled = [
        pc.greater(pc.list_value_length(batch.column(0)), pa.scalar(0))
        for batch in labels.iter_batches(f"{block}_top_helpers", ["helper_index"])
    ]
    return coverage.filter(pa.chunked_array(labelled))


def covers_targets(select: StageOutput) -> bool:
    """Whether the objective's rows are targets."""
    return select.manifest.facts()["covers"] == "targets"


def _summary(output: StageOutput, facts: RunFacts) -> StageSummary:
    manifest = output.manifest
    inherited = manifest.stage in facts.inherited
    tables = {part.table for shard in manifest.shards for part in shard.parts}
    rows = sum(manifest.num_rows(table) for table in tables - {ERRORS_TABLE})
    hours = manifest.worker_seconds / SECONDS_PER_HOUR
    price = (
        facts.price_per_gpu_hour * manifest.num_gpus
        if manifest.num_gpus
        else facts.price_per_cpu_hour * manifest.num_cpus
    )
    return StageSummary(
        name=manifest.stage,
        seconds=0.0 if inherited else manifest.wall_seconds,
        rows=rows,
        shards=len(manifest.shards),
        fingerprint=manifest.fingerprint,
        cost_usd=0.0 if inherited else hours * price,
        failures=manifest.num_failures,
    )


def collect_mix(
    examples: StageOutput, picked: np.ndarray, group_by: str | None, select: StageOutput
) -> tuple[MixRow, ...]:
    """Count the groups of pool and subset: by a field of the record, else by source file."""
    groups = np.array(list(iter_groups(examples, group_by)), dtype=object)
    quotas = select.manifest.facts().get("quotas", {})
    rows = count_mix(groups.tolist(), groups[picked].tolist())
    return tuple(replace(row, **quotas.get(row.group, {})) for row in rows)


def collect_neighbours(
    examples: StageOutput, select: StageOutput, ranking: pa.Table, num_picks: int
) -> tuple[PickNeighbours, ...]:
    """Look up some picks and the rows each of them covers best."""
    coverage = select.read("coverage", schema=schemas.COVERAGE)
    covered_by = np.asarray(coverage["covered_by"].fill_null(pa.scalar(-1, pa.int64())).to_numpy())
    values = np.asarray(coverage["coverage"].to_numpy())
    covered_table = "targets" if covers_targets(select) else "candidates"
    shown: list[tuple[dict[str, Any], np.ndarray]] = []
    for rank in choose_sample_ranks(ranking.num_rows, num_picks):
        pick = ranking.slice(rank - 1, 1).to_pylist()[0]
        rows = np.flatnonzero(covered_by == pick["row_index"])
        if covered_table == "candidates":
            rows = rows[rows != pick["row_index"]]
        best = rows[np.argsort(-values[rows], kind="stable")][:COVERED_SHOWN]
        shown.append((pick, best))
    pick_texts = find_example_texts(
        examples, "candidates", np.array([p["row_index"] for p, _ in shown], int)
    )
    all_best = np.concatenate([best for _, best in shown] or [np.zeros(0, int)])
    covered_texts = iter(find_example_texts(examples, covered_table, all_best))
    return tuple(
        PickNeighbours(
            rank=pick["rank"],
            pick=text,
            gain=pick["gain"],
            num_covered=pick["num_covered"],
            covered=tuple(CoveredExample(next(covered_texts), float(values[row])) for row in best),
        )
        for (pick, best), text in zip(shown, pick_texts, strict=True)
    )


def merge_statistics(statistics: pa.Table) -> pa.Table:
    """Merge the shards' score statistics to one row a block."""
    merged: dict[str, ScoreTotal] = {}
    num_scored: Counter[str] = Counter()
    for row in cast("list[dict[str, Any]]", statistics.to_pylist()):
        block = row.pop("block")
        num_scored[block] += row.pop("num_scored")
        total = ScoreTotal(**row)
        merged[block] = merged[block].merge(total) if block in merged else total
    rows = [
        {"block": block, "num_scored": num_scored[block], **asdict(total)}
        for block, total in merged.items()
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SCORE_STATISTICS)


def collect_errors(outputs: Mapping[str, StageOutput]) -> pa.Table:
    """Return the first error rows of all stages; the manifests have the full counts."""
    batches: list[pa.RecordBatch] = []
    room = MAX_ERRORS_SHOWN
    for output in outputs.values():
        for batch in output.iter_batches(ERRORS_TABLE):
            batches.append(batch.slice(0, room))
            room -= batches[-1].num_rows
            if room <= 0:
                break
    return pa.Table.from_batches(batches, schema=schemas.ERRORS)
