"""How a recipe becomes stages: which there are, what each reads, what models they use.

A stage is built when the stages it reads are finished, so the same blueprint serves a run, a plan
and a status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from nncift_ray.config import Config, PoolConfig
from nncift_ray.core.network.sampling import SampleDesign
from nncift_ray.core.network.training import TrainingConfig
from nncift_ray.errors import ConfigError, StageError
from nncift_ray.models.embedded import ResolvedModel, resolve_embedder
from nncift_ray.models.training_loop import TrainingSettings
from nncift_ray.pipeline.factories import EmbedderFactory
from nncift_ray.pipeline.label_designs import label_designs, unread_keys
from nncift_ray.pipeline.selecting import selection_plan
from nncift_ray.pipeline.teaching import Teaching
from nncift_ray.stages.corpus.embed import EmbedStage
from nncift_ray.stages.corpus.export import ExportStage
from nncift_ray.stages.corpus.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.stages.driving.stage import Stage
from nncift_ray.stages.network.block_training import BlockTraining
from nncift_ray.stages.network.fit import FitJob, FitStage, Trainer
from nncift_ray.stages.pairs.index import IndexStage
from nncift_ray.stages.pairs.project import ProjectStage
from nncift_ray.stages.pairs.pruning_decision import low_recall
from nncift_ray.stages.pairs.pruning_trial import IndexOptions
from nncift_ray.stages.pairs.score_pairs import Pruning, ScoreOptions, ScorePairsStage
from nncift_ray.stages.pairs.teacher_scores import TeacherScoresStage
from nncift_ray.stages.selection.select import SelectStage
from nncift_ray.stages.selection.select_partitions import PartitionInputs, SelectPartitionsStage
from nncift_ray.stages.selection.selection_plan import PARTITIONED, TOP_K, blocks_of, list_blocks
from nncift_ray.stages.teaching.gradients import GradientsStage
from nncift_ray.stages.teaching.label import LabelStage
from nncift_ray.stages.teaching.sample import SampleStage
from nncift_ray.stages.teaching.utility import UtilityStage
from nncift_ray.stages.teaching.warmup import WarmupJob, WarmupStage, WarmupTrainer
from nncift_ray.storage.corpora import expand_sources
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ReadLimits
from nncift_ray.storage.schemas import POINTS
from nncift_ray.storage.scores import scores_of
from nncift_ray.storage.subtasks import read_subtasks

#: Every stage there is, in order; which of them a recipe has is ``Blueprint.stage_names``.
STAGE_NAMES = (
    "ingest",
    "deduplicate",
    "embed",
    "sample",
    "warmup",
    "gradients",
    "label",
    "utility",
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


@dataclass(frozen=True)
class Trainers:
    """What the stages train with that hand their work to a library of their own."""

    fit: Trainer
    warm_up: WarmupTrainer


class Blueprint:
    """Builds the stages of one recipe."""

    def __init__(
        self,
        config: Config,
        make_trainers: Callable[[Config, bool], Trainers],
        *,
        has_gpu: bool = False,
        fetch: bool = True,
    ) -> None:
        """Read a recipe; models are found when they are first needed.

        Args:
            config: The recipe.
            make_trainers: Makes what the fit and warm-up stages train with, on a GPU or not.
            has_gpu: Whether teachers will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded; a plan may not.

        Raises:
            ConfigError: If the teacher cannot be used.
        """
        self.config, self._fetch, self._make_trainers = config, fetch, make_trainers
        self.teaching = Teaching(config, has_gpu=has_gpu, fetch=fetch)
        try:
            self.blocks = blocks_of(
                config.objective,
                pointwise=self.teaching.is_pointwise,
                has_targets=bool(config.data.targets),
            )
        except ValueError as error:
            raise ConfigError(f"selection.objective: {error}") from None
        self._builders: dict[str, Callable[[Outputs], Stage]] = {
            "ingest": self._ingest,
            "deduplicate": self._deduplicate,
            "embed": self._embed,
            "sample": self._sample,
            "warmup": self._warmup,
            "gradients": self._gradients,
            "label": self._label,
            "utility": self._utility,
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
            "warmup": PoolUse(PoolConfig(), can_use_gpu=True, single_threaded=False),
            "gradients": PoolUse(config.teacher.less.pool, can_use_gpu=True, single_threaded=False),
            "label": PoolUse(
                teaching.pool,
                can_use_gpu=teaching.needs_engine,
                single_threaded=not teaching.needs_engine,
                max_actors=None if teaching.needs_engine else 1,
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
        selection_plan(self.config, self.blocks)  # reads lists of ids
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
        return IngestStage(
            find_sources(data.candidates, data.targets, data.existing),
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

        Raises:
            ConfigError: If the labels the recipe allows are too few to select by.
        """
        return label_designs(self.config, self.blocks, num_candidates, num_targets)

    def _sample(self, outputs: Outputs) -> Stage:
        examples = outputs["deduplicate"]
        if self._subtask_by is not None:
            read_subtasks(
                examples, self._subtask_by
            )  # a missing field stops here, not after labels
        return SampleStage(
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

    def _trainers(self) -> Trainers:
        return self._make_trainers(self.config, self.teaching.has_gpu)

    def _warmup(self, outputs: Outputs) -> Stage:
        less = self.config.teacher.less
        make_model = self.teaching.lora_factory()
        job = WarmupJob(
            outputs["deduplicate"],
            make_model,
            less.warmup_fraction,
            less.max_warmup_examples,
            TrainingSettings(
                num_epochs=less.num_epochs,
                learning_rate=less.learning_rate,
                lr_warmup_fraction=less.lr_warmup_fraction,
                batch_size=less.batch_size,
                seed=less.seed,
            ),
            less.num_workers,
        )
        return WarmupStage(job, self._trainers().warm_up, make_model.settings())

    def _gradients(self, outputs: Outputs) -> Stage:
        teacher = self.config.teacher
        stage = GradientsStage(
            outputs["sample"],
            outputs["warmup"],
            self.teaching.lora_factory(),
            projection_dim=teacher.less.projection_dim,
            seed=teacher.less.seed,
            batch_tokens=self.teaching.gradient_batch_tokens,
            shard_rows=teacher.less.pool.shard_rows,
        )
        stage.max_failed_fraction = teacher.max_failed_fraction
        return stage

    def _label(self, outputs: Outputs) -> Stage:
        teaching = self.teaching
        stage = LabelStage(
            outputs["sample"],
            teaching.factory(outputs),
            teaching.settings(),
            embeddings=outputs["embed"] if teaching.needs_embeddings else None,
            gradients=outputs["gradients"] if teaching.needs_gradients else None,
            shard_pairs=self.config.labels.pool.shard_rows,
        )
        stage.max_failed_fraction = self.config.teacher.max_failed_fraction
        return stage

    def _utility(self, outputs: Outputs) -> Stage:
        return UtilityStage(
            outputs["label"],
            self.teaching.utility,
            self.teaching.label,
            needs_baseline=self.teaching.needs_baseline,
        )

    def _teacher_scores(self, outputs: Outputs) -> Stage:
        return TeacherScoresStage(
            outputs["utility"],
            outputs["sample"],
            outputs["deduplicate"],
            self.blocks,
            self.config.pair_scores.top_k if self.keeps_lists else None,
            subtask_by=self._subtask_by,
        )

    @property
    def training(self) -> TrainingConfig:
        """How a network is trained."""
        network = self.config.network
        return TrainingConfig(
            num_epochs=network.num_epochs,
            batch_size=network.batch_size,
            learning_rate=network.learning_rate,
            patience=network.patience,
            seed=network.seed,
            standardise=network.standardise,
            loss=network.loss,
        )

    def _fit(self, outputs: Outputs) -> Stage:
        network = self.config.network
        block_training = BlockTraining(
            network.num_hidden,
            self.training,
            network.min_steps,
            network.centre_rows,
            network.ensemble_size,
        )
        job = FitJob(
            outputs["utility"], outputs["embed"], self.blocks, block_training, network.num_workers
        )
        return FitStage(job, self._trainers().fit)

    def _project(self, outputs: Outputs) -> Stage:
        return ProjectStage(
            outputs["embed"],
            outputs["fit"],
            self.blocks,
            self.config.network.num_units,
            dtype=self.config.pair_scores.activation_dtype,
        )

    def _index(self, outputs: Outputs) -> Stage:
        section = self.config.pair_scores
        return IndexStage(
            outputs["project"],
            outputs["fit"],
            outputs["embed"],
            self.prunable_blocks,
            section.top_k,
            IndexOptions(
                mode="auto" if section.mode == "auto" else "pruned",
                generator=section.generator,
                index=section.index,
                min_recall=section.min_recall,
                recall_rows=section.recall_rows,
                on_low_recall=section.on_low_recall,
                seed=section.seed,
            ),
            max_worker_bytes=section.max_worker_bytes,
            half=section.half,
        )

    def _score_pairs(self, outputs: Outputs) -> Stage:
        section = self.config.pair_scores
        pruning = None
        if "index" in outputs:
            pruning = Pruning(outputs["index"], outputs["embed"], section.recall_rows, section.seed)
        return self._score_stage(outputs, pruning)

    def _score_stage(self, outputs: Outputs, pruning: Pruning | None) -> ScorePairsStage:
        section, subtask_by = self.config.pair_scores, self._subtask_by
        return ScorePairsStage(
            outputs["project"],
            outputs["fit"],
            self.blocks,
            section.top_k if self.keeps_lists else None,
            examples=None if subtask_by is None else outputs["deduplicate"],
            subtask_by=subtask_by,
            pruning=pruning,
            options=ScoreOptions(
                column_tile=section.column_tile,
                shard_rows=section.pool.shard_rows,
                max_worker_bytes=section.max_worker_bytes,
                half=section.half,
                dense=section.dense,
                max_dense_bytes=section.max_dense_bytes,
            ),
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
        return self._score_stage(outputs, None), f"{low}; every pair is scored instead"

    def _select_partitions(self, outputs: Outputs) -> Stage:
        plan = selection_plan(self.config, self.blocks)
        examples = outputs["deduplicate"] if plan.reads_examples else None
        inputs = PartitionInputs(scores_of(outputs), outputs["embed"], examples)
        return SelectPartitionsStage(inputs, plan)

    def _select(self, outputs: Outputs) -> Stage:
        return SelectStage(
            scores_of(outputs),
            outputs["embed"],
            selection_plan(self.config, self.blocks),
            examples=outputs["deduplicate"],
            parts=outputs.get("select_partitions"),
        )

    def _export(self, outputs: Outputs) -> Stage:
        formats = self.config.export.formats
        return ExportStage(outputs["select"], outputs["deduplicate"], formats)
