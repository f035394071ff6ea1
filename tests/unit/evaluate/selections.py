"""Two methods that really selected, small, with no Ray: DELIFT (SE) and a network over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nncift_ray.evaluation.methods import RANDOM, Subset, SubsetKey
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample, LabelStage
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config, SelectionConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.schemas import CROSS
from nncift_ray.runtime.step import Stage
from nncift_ray.scores.teacher_scores import TeacherScoresStage
from nncift_ray.selection.step import SelectStage
from nncift_ray.teachers.delift import DeliftSeTeacher
from tests.chain import TOP_HELPERS, run_chain

NUM_CANDIDATES, NUM_TARGETS, BUDGET = 120, 20, 12
OBJECTIVE = "facility_location_query_mutual_information"
NETWORK, TEACHER = "nn_cift+delift_se", "delift_se"


def select_all(folder: Path, label_pairs: int | None = None) -> list[Subset]:
    """Select by the network, by its teacher, and at random.

    Args:
        folder: Where.
        label_pairs: That the teacher by its own labels is asked about, whole rows; None: all.
    """
    chain = run_chain(folder, num_candidates=NUM_CANDIDATES, num_targets=NUM_TARGETS,
                      objective=OBJECTIVE, budget=BUDGET)  # fmt: skip
    own = select_by_teacher(folder, chain, label_pairs)
    config = make_recipe(folder)
    fraction = BUDGET / NUM_CANDIDATES
    drawn = np.random.default_rng(0).permutation(NUM_CANDIDATES)[:BUDGET]
    return [
        Subset(SubsetKey(RANDOM, 0, fraction), np.sort(drawn)),
        Subset(SubsetKey(TEACHER, 0, fraction), members_of(own), config, own),
        Subset(SubsetKey(NETWORK, 0, fraction), members_of(chain), config, chain),
    ]


def members_of(outputs: dict[str, StageOutput]) -> np.ndarray:
    """Return what was picked, sorted."""
    return np.sort(outputs["select"].read("ranking")["row_index"].to_numpy())


def select_by_teacher(
    folder: Path, chain: dict[str, StageOutput], label_pairs: int | None
) -> dict[str, StageOutput]:
    """Run the stages of a method that selects by its own labels, beside a chain."""
    names = ("ingest", "deduplicate", "embed")
    outputs = {name: chain[name] for name in names}

    def run(stage: Stage) -> StageOutput:
        output = run_stage(stage, Location.of(str(folder / "run")), execute=execute_here,
                           reporter=SilentReporter())  # fmt: skip
        outputs[stage.name] = output
        return output

    design = SampleDesign(1.0, label_pairs, 0, seed=3, whole_rows=label_pairs is not None)
    examples, embeddings = outputs["deduplicate"], outputs["embed"]
    sample = LabelSample(examples, {CROSS: design}, needs_baseline=False, group_pairs=64)
    labels = run(LabelStage(sample, DeliftSeTeacher, DeliftSeTeacher, {"kind": "own"},
                            embeddings=embeddings))  # fmt: skip
    scores = run(TeacherScoresStage(labels, examples, (CROSS,), TOP_HELPERS))
    selection = SelectionConfig(objective=OBJECTIVE, budget=BUDGET)
    run(SelectStage(scores, embeddings, selection, examples=examples))
    return outputs


def make_recipe(folder: Path) -> Config:
    """Make the recipe that both methods are variants of."""
    corpus = folder / "corpus"
    return make_config(
        {
            "run_dir": str(folder / "run"),
            "data": {
                "candidates": [str(corpus / "candidates.jsonl")],
                "targets": [str(corpus / "targets.jsonl")],
            },
            "teacher": {"kind": "delift_se"},
            "selection": {"objective": "facility_location", "budget": BUDGET / NUM_CANDIDATES},
            "labels": {"label_pairs": 300},
        }
    )
