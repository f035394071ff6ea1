"""A chain of stages, gone on from with new files, and the same corpus scored in one go.

No Ray, a hash as embedder; the network of the whole is the parent's, so that the two must agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.export import ExportStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.embedders import EmbedStage
from nncift_ray.extend import Extension, recipe_of_union
from nncift_ray.pipeline import run_stages
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.runs import Run
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.session import Session
from nncift_ray.runtime.step import Stage
from nncift_ray.scores.step import ProjectStage, ScorePairsStage
from nncift_ray.selection.names import TOP_K, resolve_selection
from nncift_ray.selection.step import SelectStage
from tests.chain import MODEL, make_embedder, run_chain
from tests.unit.explain.recorded import record_run

NUM_OLD, NUM_NEW, NUM_TARGETS, BUDGET, TOP_K_KEPT = 300, 70, 12, 25, 10
Outputs = dict[str, StageOutput]


def write_new(path: Path, first: int, count: int, *, copies_of: tuple[int, ...] = ()) -> str:
    """Write new candidates, numbered on from the chain's, with copies of old ones in between."""
    numbers = [
        *range(first, first + count // 2),
        *copies_of,
        *range(first + count // 2, first + count),
    ]
    rows = [
        {"prompt": f"candidates question {i}", "completion": f"answer {i % 7} of {i}"}
        | {"task": f"task {i % 3}"}
        for i in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_parent(folder: Path, **options: Any) -> str:
    """Run a chain and return its run directory."""
    sizes = {"num_candidates": NUM_OLD, "num_targets": NUM_TARGETS, "budget": BUDGET}
    outputs = run_chain(folder, **(sizes | options))
    data = {"subtask_by": options["subtask_by"]} if options.get("subtask_by") else {}
    if options.get("num_existing"):
        data["existing"] = [str(folder / "corpus" / "existing.jsonl")]
    return record_run(folder, outputs, run_dir=options.get("run_dir"), **data)


def make_extension(parent_dir: str, new: str, run_dir: str, *overrides: str) -> Extension:
    """Prepare an extension whose embedder is the chain's hash."""
    parent = Run.open(parent_dir)
    config = recipe_of_union(parent.config, [new], run_dir, overrides)
    return Extension(parent, config, find_sources([new], []), MODEL, make_embedder)


def grow(parent_dir: str, new: str, run_dir: str, *overrides: str) -> Outputs:
    """Go on from a run with a new file, in this process."""
    location = Location.of(run_dir)
    location.make_folder()
    extension = make_extension(parent_dir, new, run_dir, *overrides)
    session = Session(execute_here, dict)
    reporter, known = SilentReporter(), extension.known
    return run_stages(extension, location, "export", session, reporter, record=True, known=known)


def score_whole(
    folder: Path, parent_dir: str, new: list[str], *, with_targets: bool = True
) -> Outputs:
    """Run every stage after the fit on old and new files together, with the parent's network."""
    parent = Run.open(parent_dir)
    while parent.record.get("parent"):
        parent = Run.open(parent.record["parent"]["run_dir"])
    config, outputs = parent.config, dict(parent.outputs)
    networks = outputs["fit"]
    blocks = tuple(networks.manifest.settings["blocks"])
    location = Location.of(str(folder / "whole"))

    def run(stage: Stage) -> StageOutput:
        output = run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
        outputs[stage.name] = output
        return output

    data = config.data
    targets = data.targets if with_targets else []
    sources = find_sources([*data.candidates, *new], targets, data.existing)
    examples = run(DeduplicateStage(run(IngestStage(sources))))
    embeddings = run(EmbedStage(examples, MODEL, make_embedder=make_embedder))
    activations = run(ProjectStage(ExampleInputs(embeddings), networks, blocks))
    objective = config.objective
    scores = run(
        ScorePairsStage(
            activations,
            networks,
            blocks,
            config.pair_scores.model_copy(update={"top_k": TOP_K_KEPT}),
            keeps_lists=objective != TOP_K,
            examples=examples,
            subtask_by=data.subtask_by,
        )
    )
    ranking = run(SelectStage(scores, embeddings, resolve_selection(config), examples=examples))
    run(ExportStage(ranking, examples))
    return outputs
