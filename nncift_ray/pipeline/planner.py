"""What a run would do, how long it may take and what it may cost; nothing is started.

Counts are exact once the corpus has been read by a run, and for small files; larger files are
counted by the size of their first records. Speeds are guesses by hardware unless the recipe gives
one, and say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast

import numpy as np

from nncift_ray.config import Config, TokenBudget
from nncift_ray.core.sampling import draw_block, draw_points
from nncift_ray.errors import DataError
from nncift_ray.pipeline.blueprint import Blueprint
from nncift_ray.pipeline.runner import trainers_of
from nncift_ray.stages.driver import finished_shards, plan_shards, stage_folder
from nncift_ray.stages.select import TOP_K
from nncift_ray.storage.corpora import SourceFile, expand_sources
from nncift_ray.storage.example_rows import is_error, read_examples
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ExampleRow, ReadLimits
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

COUNTED_WHOLE_BYTES = 32 * 1024**2
SAMPLED_ROWS = 2000
COMPRESSION_RATIO = 3.0  # of text by gzip or zstd, where a file is too large to count
CHARS_PER_TOKEN = 4.0
SECONDS_PER_HOUR = 3600.0

# Guesses, per actor; the first figures were measured on two AVX2/AVX-512 cores.
EMBED_ROWS_PER_SECOND = {"cpu": 100.0, "gpu": 1500.0}
TEACHER_TOKENS_PER_SECOND = {"cpu": 300.0, "gpu": 20_000.0}
PAIRS_PER_SECOND_PER_CORE = 1.0e8
INGEST_ROWS_PER_SECOND = 20_000.0
STAGE_START_SECONDS = 4.0
FIT_START_SECONDS = 25.0
FIT_STEPS_PER_SECOND = 700.0


State = Literal["done", "begun", "to do"]


@dataclass(frozen=True)
class CorpusEstimate:
    """How large the corpus is."""

    num_candidates: int
    num_targets: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool


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
    num_pairs_to_score: int
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
    work = _Workload(config, blueprint, corpus, kind)
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
        num_pairs_to_score=work.num_pairs,
        budget=_describe_budget(config, corpus.num_candidates),
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


class _Workload:
    """Amounts of work of a recipe on a corpus."""

    def __init__(
        self, config: Config, blueprint: Blueprint, corpus: CorpusEstimate, hardware: str
    ) -> None:
        self.config, self.corpus, self.hardware = config, corpus, hardware
        self.blueprint = blueprint
        self.num_rows = corpus.num_candidates + corpus.num_targets
        self.num_labelled = self.num_requests = self.num_pairs = 0
        self.teacher_tokens = 0.0
        for block in blueprint.blocks:
            self._add_block(block)

    def _add_block(self, block: str) -> None:
        columns = self.corpus.num_candidates
        rows = self.corpus.num_targets if block == CROSS else columns
        self.num_pairs += rows if block == POINTS else rows * columns
        size = f"{rows}" if block == POINTS else f"{rows} x {columns}"
        try:
            design = self.blueprint.sample_designs(columns, self.corpus.num_targets)[block]
            if block == POINTS:
                sample = draw_points(rows, design)
            else:
                sample = draw_block(rows, columns, block == WITHIN, design)
        except ValueError as error:
            raise DataError(f"no label sample of {size} examples: {error}") from error
        self.num_labelled += len(sample)
        helpers = 0 if sample.helper is None else len(np.unique(sample.helper))
        baselines = len(np.unique(sample.helped)) if self.blueprint.teaching.needs_baseline else 0
        self.num_requests += len(sample) + baselines
        if self.blueprint.teaching.needs_engine:
            query = (self.corpus.prompt_chars + self.corpus.response_chars) / CHARS_PER_TOKEN
            # The example is computed once a helper, the query and response once a request.
            self.teacher_tokens += (len(sample) + baselines + helpers) * query

    def seconds(self, name: str) -> float:
        """Estimate a stage's seconds."""
        kind, config = self.hardware, self.config
        speed = config.cluster.teacher_tokens_per_second or TEACHER_TOKENS_PER_SECOND[kind]
        network = config.network
        steps = max(
            network.min_steps * len(self.blueprint.blocks),
            self.num_labelled * network.num_epochs // network.batch_size,
        )
        estimates: dict[str, Callable[[], float]] = {
            "ingest": lambda: self.num_rows / INGEST_ROWS_PER_SECOND,
            "deduplicate": lambda: self.num_rows / INGEST_ROWS_PER_SECOND,
            "embed": lambda: self.num_rows / EMBED_ROWS_PER_SECOND[kind],
            "label": lambda: self.teacher_tokens / speed,
            "fit": lambda: FIT_START_SECONDS + steps / FIT_STEPS_PER_SECOND,
            "score_pairs": lambda: (
                self.num_pairs / (PAIRS_PER_SECOND_PER_CORE * (os.cpu_count() or 1))
            ),
        }
        return STAGE_START_SECONDS + estimates.get(name, lambda: 0.0)()

    def describe(self, name: str) -> str:
        """Say in words how much a stage has to do."""
        about = "" if self.corpus.exact else "about "
        unit, task, kept = "pairs", "to draw", f", top {self.config.pair_scores.top_k}"
        if self.config.objective == TOP_K:
            kept = ", summed by candidate"
        if POINTS in self.blueprint.blocks:
            unit, task, kept = "examples", "to rate", ""
        words = {
            "ingest": f"{about}{self.num_rows:,} records",
            "deduplicate": f"{about}{self.num_rows:,} records",
            "embed": f"{about}{self.num_rows:,} texts",
            "sample": f"{self.num_labelled:,} {unit} {task}",
            "label": f"{self.num_requests:,} requests"
            + (f", about {self.teacher_tokens:,.0f} tokens" if self.teacher_tokens else ""),
            "utility": f"{self.num_labelled:,} labels",
            "fit": f"{self.num_labelled:,} {unit}",
            "project": f"{about}{self.num_rows:,} examples",
            "score_pairs": f"{about}{self.num_pairs:,} {unit}{kept}",
            "select": _describe_budget(self.config, self.corpus.num_candidates),
        }
        return words.get(name, "")


def _plan_stage(name: str, state: State, shards: int | None, work: _Workload) -> StagePlan:
    seconds = 0.0 if state == "done" else work.seconds(name)
    prices = work.config.cluster
    on_gpu = work.hardware == "gpu" and work.blueprint.pool_use(name).can_use_gpu
    cpu_price = prices.price_per_cpu_hour * (os.cpu_count() or 1)
    price = prices.price_per_gpu_hour if on_gpu else cpu_price
    return StagePlan(
        name, state, work.describe(name), shards, seconds, seconds / SECONDS_PER_HOUR * price
    )


def _describe_budget(config: Config, num_candidates: int) -> str:
    budget = config.selection.budget
    if isinstance(budget, TokenBudget):
        return f"picks worth {budget.tokens:,} tokens"
    count = budget if isinstance(budget, int) else max(1, round(budget * num_candidates))
    return f"{min(count, num_candidates):,} picks of {num_candidates:,}"


def estimate_corpus(config: Config, examples: StageOutput | None) -> CorpusEstimate:
    """Count the corpus: exactly from a finished run or small files, else from the first records."""
    if examples is not None:
        counts = {role: examples.num_rows(role) for role in ("candidates", "targets")}
        head = next(examples.iter_batches("candidates", ["prompt", "response"]))
        prompts = [len(text) for text in cast("list[str]", head.column(0).to_pylist())]
        responses = [len(text) for text in cast("list[str]", head.column(1).to_pylist())]
        return CorpusEstimate(
            counts["candidates"],
            counts["targets"],
            float(np.mean(prompts)),
            float(np.mean(responses)),
            True,
        )
    candidates = _estimate_sources(config, config.data.candidates)
    targets = _estimate_sources(config, config.data.targets) if config.data.targets else _EMPTY
    return CorpusEstimate(
        candidates.num_rows,
        targets.num_rows,
        candidates.prompt_chars,
        candidates.response_chars,
        candidates.exact and targets.exact,
    )


@dataclass(frozen=True)
class _SourceEstimate:
    num_rows: int
    prompt_chars: float
    response_chars: float
    exact: bool


_EMPTY = _SourceEstimate(0, 0.0, 0.0, True)


def _estimate_sources(config: Config, patterns: Sequence[str]) -> _SourceEstimate:
    found = [_estimate_source(config, source) for source in expand_sources(patterns)]
    total = sum(source.num_rows for source in found)
    if not total:
        raise DataError(
            f"{', '.join(patterns)}: no usable example found; see data.layout and columns"
        )
    return _SourceEstimate(
        total,
        sum(source.prompt_chars * source.num_rows for source in found) / total,
        sum(source.response_chars * source.num_rows for source in found) / total,
        all(source.exact for source in found),
    )


def _estimate_source(config: Config, source: SourceFile) -> _SourceEstimate:
    data = config.data
    rows = read_examples(
        source,
        "candidate",
        layout_override=None if data.layout == "auto" else data.layout,
        columns=data.columns,
        limits=ReadLimits(max_chars=data.max_chars),
    )
    whole = source.size <= COUNTED_WHOLE_BYTES
    ids: set[str] = set()
    prompt_chars = response_chars = num_bytes = num_good = 0
    for row in rows if whole else islice(rows, SAMPLED_ROWS):
        if is_error(row):
            continue
        example = cast("ExampleRow", row)
        num_good += 1
        ids.add(example["example_id"])
        prompt_chars += len(example["prompt"])
        response_chars += len(example["response"])
        num_bytes += len(example["record"].encode("utf-8", errors="replace"))
    if not num_good:
        return _EMPTY
    means = (prompt_chars / num_good, response_chars / num_good)
    if whole:
        return _SourceEstimate(len(ids), *means, True)
    ratio = COMPRESSION_RATIO if source.path.endswith((".gz", ".zst", ".parquet")) else 1.0
    estimate = round(source.size * ratio / (num_bytes / num_good))
    return _SourceEstimate(estimate, *means, False)
