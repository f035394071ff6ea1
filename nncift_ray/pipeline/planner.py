"""What a run would do, how long it may take and what it may cost; nothing is started.

Counts are exact once the corpus has been read by a run, and for small files; larger files are
counted by the size of their first records. Speeds are guesses by hardware unless the recipe gives
one, and say so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from nncift_ray.config import Config
from nncift_ray.pipeline.blueprint import Blueprint
from nncift_ray.pipeline.corpus_size import CorpusEstimate, estimate_corpus
from nncift_ray.pipeline.runner import trainers_of
from nncift_ray.pipeline.workload import Workload, describe_budget
from nncift_ray.stages.driving.driver import finished_shards, plan_shards, stage_folder
from nncift_ray.stages.pairs.pruning_decision import read_decisions
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

SECONDS_PER_HOUR = 3600.0

State = Literal["done", "begun", "to do"]


@dataclass(frozen=True)
class StagePlan:
    """What one stage would do."""

    name: str
    state: State
    amount: str  # what there is to do, in words
    num_shards: int | None  # left to run; None until the stages before it are done
    seconds: float  # estimated, of what is left
    cost_usd: float


@dataclass(frozen=True)
class RunPlan:
    """What a run would do."""

    run_dir: str
    objective: str
    corpus: CorpusEstimate
    num_pairs_to_label: int
    num_requests: int
    num_teacher_tokens: int
    num_pairs_to_score: int  # by a network; 0 where the labels are the scores
    budget: str
    hardware: str
    stages: tuple[StagePlan, ...]
    notices: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Estimated seconds of all that is left."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def cost_usd(self) -> float:
        """Estimated price of all that is left."""
        return sum(stage.cost_usd for stage in self.stages)


def make_plan(config: Config, *, hardware: Literal["cpu", "gpu"] | None = None) -> RunPlan:
    """Say what `nncift run` would do, without starting anything.

    Raises:
        NnciftError: What would stop the run at once: files or models that are not there.
    """
    run_dir = Location.of(config.run_dir)
    kind = hardware or detect_hardware()
    blueprint = Blueprint(config, trainers_of, has_gpu=kind == "gpu", fetch=False)
    blueprint.check()
    outputs, states, shards_left = _walk(blueprint, run_dir)
    corpus = estimate_corpus(config, outputs.get("deduplicate"))
    decisions = read_decisions(outputs.get("index"))
    work = Workload(config, blueprint, corpus, kind, decisions)
    stages = tuple(
        _plan_stage(name, states.get(name, "to do"), shards_left.get(name), work)
        for name in blueprint.stage_names
    )
    return RunPlan(
        run_dir=str(run_dir),
        objective=config.objective,
        corpus=corpus,
        num_pairs_to_label=work.num_labelled,
        num_requests=work.num_requests,
        num_teacher_tokens=round(work.teacher_tokens),
        num_pairs_to_score=0 if blueprint.by_teacher else work.num_pairs,
        budget=describe_budget(config, corpus.num_candidates),
        hardware=kind,
        stages=stages,
        notices=tuple(blueprint.notices()),
    )


def detect_hardware() -> Literal["cpu", "gpu"]:
    """Return "gpu" where this machine has an NVIDIA device."""
    return "gpu" if os.path.exists("/dev/nvidia0") else "cpu"


def _walk(
    blueprint: Blueprint, run_dir: Location
) -> tuple[dict[str, StageOutput], dict[str, State], dict[str, int]]:
    """Go through the stages as far as their inputs are finished."""
    outputs: dict[str, StageOutput] = {}
    states: dict[str, State] = {}
    shards_left: dict[str, int] = {}
    for name in blueprint.stage_names:
        stage = blueprint.build(name, outputs)
        folder = stage_folder(stage, run_dir)
        output = StageOutput.open(folder)
        if output is None:
            records = finished_shards(folder)
            states[name] = "begun" if records else "to do"
            shards_left[name] = len(plan_shards(stage, stage.num_items(), records))
            break
        outputs[name], states[name], shards_left[name] = output, "done", 0
    return outputs, states, shards_left


def _plan_stage(name: str, state: State, shards: int | None, work: Workload) -> StagePlan:
    seconds = 0.0 if state == "done" else work.seconds(name)
    prices = work.config.cluster
    on_gpu = work.hardware == "gpu" and work.blueprint.pool_use(name).can_use_gpu
    cpu_price = prices.price_per_cpu_hour * (os.cpu_count() or 1)
    price = prices.price_per_gpu_hour if on_gpu else cpu_price
    return StagePlan(
        name, state, work.describe(name), shards, seconds, seconds / SECONDS_PER_HOUR * price
    )
