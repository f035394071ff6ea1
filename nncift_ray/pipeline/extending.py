"""Go on from a finished run with new data: no teacher call, no fit, and nothing done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nncift_ray.config import make_config
from nncift_ray.core.network.drift import MIN_EXAMPLES
from nncift_ray.pipeline.corpus_size import estimate_corpus
from nncift_ray.pipeline.extension import DRIFT, Extension, Outputs, prepare
from nncift_ray.pipeline.locking import locked
from nncift_ray.pipeline.observing import observed
from nncift_ray.pipeline.opening import RUN_RECORD
from nncift_ray.pipeline.runner import (
    RunResult,
    describe_layouts,
    finish_run,
    give_resources,
)
from nncift_ray.stages.driving.driver import Executor, run_stage, stage_fingerprint
from nncift_ray.stages.driving.progress import LineReporter, Reporter
from nncift_ray.stages.driving.ray_pool import execute_on_ray, ray_session
from nncift_ray.stages.driving.stage import Stage
from nncift_ray.stages.pairs.pruning_decision import read_final_recall
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN


@dataclass(frozen=True)
class ExtensionPlan:
    """What ``nncift extend`` would do."""

    parent: str
    run_dir: str
    files: tuple[str, ...]
    num_old: int  # candidates of the parent
    num_new: int  # usable rows of the files; copies of old ones among them are not known yet
    exact: bool  # whether they were counted, not estimated
    num_pairs: int  # to score
    num_pairs_of_union: int  # what a run over everything would score


def extend(
    parent_dir: str,
    data: Sequence[str],
    *,
    run_dir: str | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
    execute: Executor | None = None,
) -> RunResult:
    """Add new candidates to a finished run and select again; no teacher is asked.

    Args:
        parent_dir: The run to go on from; it is read and never changed.
        data: Files, globs or folders of new candidates.
        run_dir: Where to work; None: next to the parent, named by the new files' content.
        overrides: ``key.path=value`` for the recipe, of ``FREE_KEYS`` only.
        reporter: Hears of progress; plain lines by default.
        execute: Runs shards; a Ray Data actor pool by default.

    Raises:
        NnciftError: With what is wrong and the remedy; finished shards are kept.
    """
    reporter = reporter or LineReporter()
    extension = prepare(parent_dir, data, run_dir, overrides)
    location = Location.of(extension.config.run_dir)
    location.make_folder()
    with (
        locked(location),
        ray_session(extension.config.cluster),
        observed(extension.config, location, reporter) as reporter,
    ):

        def size_pool(stage: Stage) -> None:
            give_resources(stage, extension.blueprint)

        outputs = run_extension(extension, location, execute or execute_on_ray, reporter, size_pool)
        notices = (*extension.notices(), *describe_layouts(outputs["ingest"]))
        return finish_run(
            extension.config, location, outputs, notices, inherited=extension.inherited
        )


def plan_extension(
    parent_dir: str,
    data: Sequence[str],
    *,
    run_dir: str | None = None,
    overrides: Sequence[str] = (),
) -> ExtensionPlan:
    """Say what ``extend`` would do; start nothing.

    Raises:
        NnciftError: What would stop it at once.
    """
    extension = prepare(parent_dir, data, run_dir, overrides)
    parent = extension.parent
    tree = extension.config.model_dump(mode="json")
    tree["data"] |= {"candidates": list(data), "targets": [], "subtask_by": None}
    tree["selection"] |= {"objective": "top_k"}  # what is counted needs no targets
    corpus = estimate_corpus(make_config(tree, "--data"), None)
    examples, new = parent.outputs["deduplicate"], corpus.num_candidates
    old, targets = examples.num_rows("candidates"), examples.num_rows("targets")
    blocks = parent.outputs["project"].manifest.settings["blocks"]
    to_score = {WITHIN: new * (2 * old + new), CROSS: new * targets, POINTS: new}
    of_union = {WITHIN: (old + new) ** 2, CROSS: (old + new) * targets, POINTS: old + new}
    return ExtensionPlan(
        parent=str(parent.run_dir),
        run_dir=extension.config.run_dir,
        files=tuple(dict.fromkeys(source.file.uri for source in extension.sources)),
        num_old=old,
        num_new=new,
        exact=corpus.exact,
        num_pairs=sum(to_score[block] for block in blocks),
        num_pairs_of_union=sum(of_union[block] for block in blocks),
    )


def run_extension(
    extension: Extension,
    run_dir: Location,
    execute: Executor,
    reporter: Reporter,
    size_pool: Callable[[Stage], None] = lambda stage: None,
) -> dict[str, StageOutput]:
    """Run the stages of an extension that are not finished; return all outputs by name."""
    outputs: dict[str, StageOutput] = {}
    fingerprints: dict[str, str] = {}
    for name in extension.stage_names:
        if name in extension.inherited:
            outputs[name] = extension.parent.outputs[name]
            continue
        stage = extension.build(name, outputs)
        size_pool(stage)
        fingerprints[name] = stage_fingerprint(stage)
        record = json.dumps(extension.record(fingerprints), indent=1)
        (run_dir / RUN_RECORD).write_bytes(record.encode())
        own = run_stage(stage, run_dir, execute=execute, reporter=reporter)
        outputs[name] = extension.adopt(name, own)
        for line in _news(name, own, outputs):
            reporter.notice(line)
    return outputs


def _news(name: str, own: StageOutput, outputs: Outputs) -> list[str]:
    """Say what the user should hear when a stage is done."""
    if name == "ingest":
        return describe_layouts(own)
    if name == "deduplicate":
        total, new = outputs[name].num_rows("candidates"), own.num_rows("candidates")
        copies = own.manifest.facts()["num_duplicate_candidates"]
        line = f"{new:,} new candidates after {total - new:,}; {copies:,} exact copies collapsed"
        return [line if new else f"nothing new: {line}; the selection stays as it was"]
    if name == DRIFT:
        return describe_drift(own.manifest.facts())
    if name == "score_pairs":
        return [
            f"the run pruned block '{block}'; new pairs are all scored, and the joined lists hold "
            f"{found.recall:.4f} +- {found.standard_error:.4f} of the true ones on "
            f"{found.num_rows:,} held-out rows"
            for block, found in read_final_recall(own).items()
        ]
    return []


def describe_drift(facts: Mapping[str, Any]) -> list[str]:
    """Say in sentences how far the new data lie from the labels, and whether new ones are due."""
    if not facts["num_new"]:
        return []
    lines: list[str] = []
    distance = facts["distance"]
    if distance is not None:
        median = facts["median_distance"]
        lines.append(
            f"drift: median distance to the nearest labelled example {median['new']:.3f} (new), "
            f"{median['reference']:.3f} (labelled corpus); a new one is farther with chance "
            f"{distance['farther']:.2f}, KS {distance['ks']:.2f}"
        )
    for share in facts["ranges"]:
        lines.append(
            f"drift: {share['new']:.1%} of {share['block']} {share['side']} activations out of the "
            f"labelled range (labelled corpus {share['reference']:.1%})"
        )
    if facts["num_new"] < MIN_EXAMPLES:
        lines.append(f"{facts['num_new']} new examples are too few to say if relabelling is due")
    elif facts["due"]:
        lines.append(f"relabelling is due because {'; and '.join(facts['reasons'])}")
    else:
        lines.append("relabelling is not due: new data lie where the labelled corpus does")
    return lines
