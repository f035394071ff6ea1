"""Run a recipe: every stage that is not finished, then the files and the report a user opens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import nncift_ray
from nncift_ray.config import ClusterConfig, Config
from nncift_ray.errors import ConfigError
from nncift_ray.pipeline.blueprint import STAGE_NAMES, Blueprint, PoolUse, Trainers
from nncift_ray.pipeline.locking import locked
from nncift_ray.pipeline.observing import observed
from nncift_ray.pipeline.opening import RUN_RECORD
from nncift_ray.report.collect import RunFacts, collect_report_data
from nncift_ray.report.data import ReportData
from nncift_ray.report.dataset_card import render_dataset_card
from nncift_ray.report.render import render_report
from nncift_ray.stages.driving.driver import Executor, run_stage, stage_fingerprint
from nncift_ray.stages.driving.progress import LineReporter, Reporter
from nncift_ray.stages.driving.ray_pool import (
    cluster_address,
    cluster_has_gpu,
    execute_on_ray,
    pool_resources,
    ray_session,
)
from nncift_ray.stages.driving.stage import Resources, Stage
from nncift_ray.stages.pairs.index import IndexStage
from nncift_ray.stages.pairs.pruning_decision import EXACT, BlockDecision, read_decisions
from nncift_ray.storage.exports import DATASET_FOLDER, DATASET_PARQUET
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import FILES_TABLE, StageOutput
from nncift_ray.storage.schemas import POINTS
from nncift_ray.storage.scores import TEACHER_SCORES

EXPORT_FOLDER = "export"
REPORT_NAME = "report.html"
TRAINING_FOLDER = "training"
MAX_FILES_TOLD = 10


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    run_dir: Location
    outputs: dict[str, StageOutput]
    subset: Location | None  # None when the run ended before export
    report: Location | None
    report_data: ReportData | None


def run(
    config: Config,
    *,
    reporter: Reporter | None = None,
    until: str = STAGE_NAMES[-1],
    execute: Executor | None = None,
    record: bool = True,
) -> RunResult:
    """Run a recipe to its end, or until a stage; finished work is never done again.

    Args:
        config: The recipe.
        reporter: Hears of progress; plain lines by default.
        until: Last stage to run.
        execute: Runs shards; a Ray Data actor pool by default.
        record: Whether status and later commands shall take this for what the directory holds.

    Raises:
        NnciftError: With what is wrong and the remedy; finished shards are kept.
    """
    reporter = reporter or LineReporter()
    run_dir = Location.of(config.run_dir)
    blueprint = Blueprint(config, trainers_of)
    if until not in blueprint.stage_names:
        names = ", ".join(blueprint.stage_names)
        raise ConfigError(f"unknown stage '{until}'; the stages of this recipe are {names}")
    blueprint.check()
    run_dir.make_folder()
    with (
        locked(run_dir),
        ray_session(config.cluster),
        observed(config, run_dir, reporter) as reporter,
    ):
        for notice in blueprint.notices():
            reporter.notice(notice)
        blueprint.teaching.has_gpu = cluster_has_gpu()
        outputs = run_stages(
            blueprint, run_dir, until, execute or execute_on_ray, reporter, record=record
        )
        if "export" not in outputs:
            return RunResult(run_dir, outputs, None, None, None)
        notices = (*blueprint.notices(), *describe_layouts(outputs["ingest"]))
        if TEACHER_SCORES in outputs:
            notices = (*notices, *describe_labels(outputs[TEACHER_SCORES]))
        return finish_run(config, run_dir, outputs, notices)


def finish_run(
    config: Config,
    run_dir: Location,
    outputs: dict[str, StageOutput],
    notices: tuple[str, ...],
    *,
    inherited: tuple[str, ...] = (),
) -> RunResult:
    """Write the files and the report that a user opens, once all stages are finished.

    Args:
        config: The recipe.
        run_dir: Where they go.
        outputs: Of all stages.
        notices: What a reader of the report should know.
        inherited: Stages whose work another run did, so that it is not counted here.
    """
    subset = publish_exports(outputs["export"], run_dir)
    data = collect_report_data(outputs, _facts(config, run_dir, notices, inherited))
    write_dataset_card(outputs["export"], data, run_dir)
    report = run_dir / REPORT_NAME
    report.write_bytes(render_report(data).encode("utf-8"))
    return RunResult(run_dir, outputs, subset, report, data)


def run_stages(
    blueprint: Blueprint,
    run_dir: Location,
    until: str,
    execute: Executor,
    reporter: Reporter,
    *,
    record: bool,
    known: Mapping[str, StageOutput] | None = None,
) -> dict[str, StageOutput]:
    """Bring the stages of a recipe to their end, as far as ``until``, within a session of Ray.

    Args:
        blueprint: Of the recipe; it knows whether there is a GPU.
        run_dir: Where their work lies.
        until: Last stage to run.
        execute: Runs shards.
        reporter: Hears of progress.
        record: Whether status and later commands shall take this for what the directory holds.
        known: Finished stages that need not be looked for again, as a sister recipe left them.

    Returns:
        The outputs by stage, those known among them.
    """
    outputs: dict[str, StageOutput] = dict(known or {})
    fingerprints = {name: output.fingerprint for name, output in outputs.items()}

    def bring(stage: Stage) -> None:
        give_resources(stage, blueprint)
        fingerprints[stage.name] = stage_fingerprint(stage)
        if record:
            write_run_record(run_dir, blueprint, fingerprints)
        outputs[stage.name] = run_stage(stage, run_dir, execute=execute, reporter=reporter)

    names = blueprint.stage_names
    for name in names[: names.index(until) + 1]:
        if name in outputs:
            continue
        bring(blueprint.build(name, outputs))
        second_try = blueprint.second_try(name, outputs)
        if second_try is not None:
            stage, reason = second_try
            reporter.notice(reason)
            bring(stage)
        describe = DESCRIPTIONS.get(name)
        for line in [] if describe is None else describe(outputs[name]):
            reporter.notice(line)
    return outputs


def describe_decisions(index: StageOutput) -> list[str]:
    """Say of every block that might be pruned how it is scored, and why."""
    lines: list[str] = []
    for block, decision in read_decisions(index).items():
        how = "every pair of" if decision.mode == EXACT else "candidates only of"
        lines.append(f"scores {how} block '{block}': {decision.reason}{_predicted(decision)}")
    return lines


def _predicted(decision: BlockDecision) -> str:
    if decision.exact_seconds is None or decision.pruned_seconds is None:
        return ""
    return (
        f" (predicted: all pairs {decision.exact_seconds:,.1f} s, pruned "
        f"{decision.pruned_seconds:,.1f} s)"
    )


def describe_layouts(ingest: StageOutput) -> list[str]:
    """Say of every file in what layout it was read and how many rows it gave; a few files only."""
    lines: list[str] = []
    for source, found in ingest.manifest.facts().items():
        layouts = ", ".join(f"{name} ({count:,})" for name, count in found["layouts"].items())
        bad = f", {found['errors']:,} bad rows" if found["errors"] else ""
        lines.append(f"{source}: layout {layouts or 'none'}{bad}")
    more = len(lines) - MAX_FILES_TOLD
    return lines[:MAX_FILES_TOLD] + ([f"and {more:,} more files"] if more > 0 else [])


def describe_labels(scores: StageOutput) -> list[str]:
    """Say of every block what labels there are to select by, where it is not all of them."""
    lines: list[str] = []
    for block, of in scores.manifest.facts()["labels"].items():
        unit = "examples" if block == POINTS else "pairs"
        if of["num_asked_rows"] < of["num_rows"]:
            lines.append(
                f"block '{block}': {of['num_asked_rows']:,} of {of['num_rows']:,} rows are "
                "labelled, each with every candidate; the others count for nothing"
            )
        failed = of["num_asked"] - of["num_labelled"]
        if failed:
            lines.append(
                f"block '{block}': {failed:,} of {of['num_asked']:,} {unit} have no label; they "
                f"are in no list and no mean, and {of['num_unranked']:,} candidates have none at "
                "all and cannot be picked"
            )
    return lines


#: What is told of a stage when it is finished.
DESCRIPTIONS: dict[str, Callable[[StageOutput], list[str]]] = {
    "ingest": describe_layouts,
    "index": describe_decisions,
    TEACHER_SCORES: describe_labels,
}


def give_resources(stage: Stage, blueprint: Blueprint) -> None:
    """Size the actor pool of a stage by its recipe and the cluster that is there."""
    stage.resources = _resources_of(stage.name, blueprint)
    if isinstance(stage, IndexStage):
        stage.num_scoring_workers = _resources_of("score_pairs", blueprint).max_actors


def _resources_of(name: str, blueprint: Blueprint) -> Resources:
    return resources_for(blueprint.pool_use(name), blueprint.config.cluster)


def resources_for(use: PoolUse, cluster: ClusterConfig) -> Resources:
    """Size an actor pool by its use and the cluster that is there."""
    return pool_resources(
        use.pool.model_copy(update={"labels": use.pool.labels or cluster.labels}),
        can_use_gpu=use.can_use_gpu,
        single_threaded=use.single_threaded,
        local=cluster_address(cluster) is None,
        max_actors=use.max_actors,
        placement_timeout=cluster.placement_timeout,
    )


def trainers_of(config: Config, use_gpu: bool) -> Trainers:
    """Return Ray Train as the recipe sizes it; its working files lie in the run directory."""
    # Ray Train's import takes seconds, which a plan or a status need not pay.
    from nncift_ray.stages.ray_train import RayTrainer, RayWarmupTrainer

    storage, less = Location.of(config.run_dir) / TRAINING_FOLDER, config.teacher.less
    num_cpus = less.pool.num_cpus or max(1, (os.cpu_count() or 1) // less.num_workers)
    return Trainers(
        fit=RayTrainer(
            storage=storage,
            num_workers=config.network.num_workers,
            labels=config.cluster.labels,
            placement_timeout=config.cluster.placement_timeout,
        ),
        warm_up=RayWarmupTrainer(
            storage=storage,
            num_workers=less.num_workers,
            num_cpus=num_cpus,
            use_gpu=use_gpu,
            labels=less.pool.labels or config.cluster.labels,
            placement_timeout=config.cluster.placement_timeout,
        ),
    )


def write_run_record(run_dir: Location, blueprint: Blueprint, fingerprints: dict[str, str]) -> None:
    """Record the recipe and where each stage's work lies, for status and later commands."""
    record = {
        "version": nncift_ray.__version__,
        "config": blueprint.config.model_dump(mode="json"),
        "stage_names": blueprint.stage_names,
        "stages": fingerprints,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (run_dir / RUN_RECORD).write_bytes(json.dumps(record, indent=1).encode())


def publish_exports(export: StageOutput, run_dir: Location) -> Location:
    """Copy the exported files to their fixed place below the run directory; return the subset."""
    folder = run_dir / EXPORT_FOLDER
    for part in export.manifest.table_parts(FILES_TABLE):
        name = part.name.removeprefix(f"{FILES_TABLE}/")
        with (
            export.folder.fs.open_input_stream((export.folder / part.name).path) as source,
            (folder / name).open_whole() as copy,
        ):
            while chunk := source.read(1024 * 1024):
                copy.write(chunk)
    return folder / "subset.jsonl"


def write_dataset_card(export: StageOutput, data: ReportData, run_dir: Location) -> None:
    """Put the card beside the exported dataset, where there is one."""
    names = {part.name for part in export.manifest.table_parts(FILES_TABLE)}
    if f"{FILES_TABLE}/{DATASET_PARQUET}" in names:
        card = render_dataset_card(data).encode("utf-8")
        (run_dir / EXPORT_FOLDER / DATASET_FOLDER / "README.md").write_bytes(card)


def _facts(
    config: Config, run_dir: Location, notices: tuple[str, ...], inherited: tuple[str, ...]
) -> RunFacts:
    return RunFacts(
        run_name=config.report.title or run_dir.name,
        run_dir=str(run_dir),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=config.model_dump(mode="json"),
        teacher=config.teacher.kind,
        objective=config.objective,
        notices=notices,
        inherited=inherited,
        group_by=config.data.group_by,
        num_picks=config.report.num_picks,
        price_per_gpu_hour=config.cluster.price_per_gpu_hour,
        price_per_cpu_hour=config.cluster.price_per_cpu_hour,
        exports={
            "subset": str(run_dir / EXPORT_FOLDER / "subset.jsonl"),
            "report": str(run_dir / REPORT_NAME),
        },
    )
