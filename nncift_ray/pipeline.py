"""The steps of a run, top to bottom, and what runs them: a recipe becomes a ranked subset.

``Blueprint.steps`` is the way of a run; each step is built from the finished outputs of those
before it, and its own module holds its mathematics, its reading and its writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import nncift_ray
from nncift_ray.corpus.examples import DeduplicateStage, PoolStage, describe_left_out, read_subtasks
from nncift_ray.corpus.export import (
    DATASET_FOLDER,
    DATASET_PARQUET,
    SUBSET_PARQUET,
    ExportStage,
    describe_losses,
)
from nncift_ray.corpus.ingest import (
    IngestStage,
    PoolIngestStage,
    describe_layouts,
    expand_sources,
    find_sources,
)
from nncift_ray.embedders import Embedder, EmbedStage
from nncift_ray.engines.models import (
    AUTO,
    EngineFactory,
    ResolvedModel,
    auto_dtype,
    resolve_embedder,
    resolve_engine_kind,
)
from nncift_ray.errors import ConfigError, DataError, StageError
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import (
    LabelSample,
    LabelStage,
    label_designs,
    list_gradients,
)
from nncift_ray.profiles.blocks import ExampleInputs
from nncift_ray.profiles.loss_drop import ByTraining, InContext, LossDropStage
from nncift_ray.profiles.quality_step import NeighboursStage, QualityStage
from nncift_ray.profiles.step import ProfilerFactory, ProfileStage, StatesFactory, StatesStage
from nncift_ray.recipe.sections import Config, EmbedderConfig, PoolConfig
from nncift_ray.runtime.driver import Executor, run_stage, stage_fingerprint
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import FILES_TABLE, StageOutput
from nncift_ray.runtime.progress import LineReporter, Reporter
from nncift_ray.runtime.schemas import (
    CANDIDATE,
    POINTS,
    TABLE_OF_ROLE,
    WITHIN,
    ground_block,
    helped_role,
)
from nncift_ray.runtime.session import (
    RayWorkers,
    Session,
    cluster_address,
    died_here,
    observed,
    open_session,
    ray_installed,
    ray_running,
)
from nncift_ray.runtime.step import Resources, Stage
from nncift_ray.selection.names import (
    OBJECTIVES,
    PAIR_COVERAGE,
    PARTITIONED,
    REPEATS,
    TOP_K,
    blocks_of,
    list_blocks,
    resolve_selection,
    scores_of,
)
from nncift_ray.teachers.base import RecipeTeacher
from nncift_ray.teachers.less import HELPED, HELPER, GradientKey

if TYPE_CHECKING:
    from nncift_ray.report.data import ReportData
    from nncift_ray.scores.index_step import IndexStage
    from nncift_ray.scores.step import ScorePairsStage
    from nncift_ray.teachers.gradients import WarmupStage

# Imports inside the steps: torch, numba, faiss and matplotlib take long, and a plan needs none.

RUN_RECORD = "run.json"
HARDWARE_RECORD = "hardware.json"
EXPORT_FOLDER = "export"
REPORT_NAME = "report.html"
LANDMARKS_STREAM = 43  # random stream of the candidates whose gradients are taken
TRAINING_FOLDER = "training"

Outputs = Mapping[str, StageOutput]


class Blueprint:
    """The steps of one recipe, with the models that it names."""

    def __init__(self, config: Config, *, has_gpu: bool = False, fetch: bool = True) -> None:
        """Read a recipe; models are found when they are first needed.

        Args:
            config: The recipe.
            has_gpu: Whether teachers will find a GPU; a run sets it once it knows its cluster.
            fetch: Whether models may be downloaded; a plan may not.

        Raises:
            ConfigError: If the teacher cannot be used.
        """
        if not config.data.candidates:
            raise ConfigError("data.candidates: is required: name a file, a glob or a folder")
        self.config, self._fetch = config, fetch
        self._make_embedder: Callable[[], Embedder] | None = None  # None: loads the recipe's
        #: The finished steps of a run that this one goes on from.
        self.above: Outputs = {}
        self.teaching = RecipeTeacher(config, has_gpu=has_gpu, fetch=fetch)
        try:
            self.blocks = blocks_of(
                config.objective,
                pointwise=self.teaching.is_pointwise,
                has_targets=bool(config.data.targets),
            )
        except ValueError as error:
            raise ConfigError(f"teacher.kind {config.teacher.kind}: {error}") from None

    @cached_property
    def steps(self) -> dict[str, Callable[[Outputs], Stage]]:
        """The way of a run: its steps in order, each with what builds it from earlier outputs."""
        steps: dict[str, Callable[[Outputs], Stage]] = {
            "ingest": self._ingest,
            "deduplicate": self._deduplicate,
            "embed": self._embed,
        }
        reads = self.teaching.reads
        if self.profile_name is not None:
            steps["profiles"] = self._profiles
            if reads != ("profiles",):
                steps |= {"neighbours": self._neighbours, "quality": self._quality}
        if self.config.teacher.kind == "loss_drop":
            steps["warmup"] = self._warmup
        if "loss_drop" in reads:
            steps["loss_drop"] = self._loss_drop
        if "states" in reads:
            steps["states"] = self._states
        if "gradients" in reads:
            if self.config.data.targets:
                steps |= {"pool_ingest": self._pool_ingest, "pool": self._pool}
            steps |= {"warmup": self._warmup, "gradients": self._all_gradients}
            steps["target_gradients"] = self._target_gradients
        elif self.teaching.needs_gradients:
            steps |= {"warmup": self._warmup, "gradients": self._gradients}
        if self.teaching.is_asked:
            steps["label"] = self._label
        if self.by_teacher:
            steps["teacher_scores"] = self._teacher_scores
        else:
            steps |= {"fit": self._fit, "project": self._project}
            if self.prunable_blocks:
                steps["index"] = self._index
            steps["score_pairs"] = self._score_pairs
        if self.config.selection.repeats is not None:
            steps[REPEATS] = self._repeats
        if self.config.selection.optimizer.kind == PARTITIONED:
            steps["select_partitions"] = self._select_partitions
        return steps | {"select": self._select, "export": self._export}

    def pool(self, name: str) -> PoolConfig:
        """Return the recipe's section on the actors of a step."""
        config = self.config
        pools = {
            "embed": config.embedder.pool,
            "profiles": config.profiles.pool,
            "quality": config.profiles.pool,
            "states": config.profiles.pool,
            "loss_drop": config.profiles.pool,
            "warmup": config.teacher.less.pool,
            "gradients": config.teacher.less.pool,
            "target_gradients": config.teacher.less.pool,
            "label": self.teaching.pool,
            "index": config.pair_scores.pool,
            "score_pairs": config.pair_scores.pool,
            "select_partitions": config.selection.optimizer.pool,
        }
        return pools.get(name, PoolConfig())

    @property
    def by_teacher(self) -> bool:
        """Whether the teacher's labels are the scores, and no network is trained."""
        return self.config.pair_scores.by == "teacher"

    @property
    def knows_pairs(self) -> bool:
        """Whether a pair network learns labels; a pointwise teacher's examples have no pairs."""
        pairs = self.teaching.is_asked and not self.teaching.is_pointwise
        return pairs and self.config.network.kind == "pair"

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

    @property
    def profile_name(self) -> str | None:
        """What names the language model that profiles the examples; None: there are none."""
        name, reads = self.config.profiles.model, self.teaching.reads
        if reads and "profiles" not in reads and "quality" not in reads:
            return None
        if name == "teacher":
            here = () if self.config.teacher.server else self.teaching.model_names
            return next(iter(here), None)
        return name

    @property
    def profile_model(self) -> ResolvedModel | None:
        """The language model that profiles the examples, found."""
        if self.profile_name is None:
            return None
        if self.config.profiles.model == "teacher":
            return self.teaching.language_models[0]
        return self.teaching.find_model(self.profile_name)

    def check(self) -> None:
        """Look for what would stop a run later: files, models, the engine.

        Raises:
            NnciftError: For the first that is missing.
        """
        data = self.config.data
        for patterns in (data.candidates, data.targets, data.existing, self.config.benchmarks):
            if patterns:
                expand_sources(patterns)
        resolve_selection(self.config)  # reads lists of ids
        self.teaching.check()
        _ = self.embedder
        if self.profile_name not in (None, AUTO):
            _ = self.profile_model

    def check_pairs(self, num_candidates: int) -> None:
        """Raise DataError where candidates are to be compared and there is but one."""
        if WITHIN in self.blocks and num_candidates < 2:
            raise DataError(
                "data.candidates: only one row can be used, so there is nothing to choose from; if "
                "there should be more, see the errors of ingest"
            )

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
        models = (self.embedder, self.profile_model, *self.teaching.language_models)
        notes += dict.fromkeys(model.notice for model in models if model and model.notice)
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
        if self.teaching.is_asked and not self.by_teacher:
            return []
        unread = self.config.unread
        also = f"; the keys {', '.join(unread)} are not read" if unread else ""
        if not self.teaching.is_asked:
            kind = self.config.teacher.kind
            return [f"{kind} scores all there is: nothing is labelled, no network trained{also}"]
        notes = [f"the teacher's own labels are the scores: no network is trained{also}"]
        if self.config.labels.label_pairs is not None:
            notes.append(
                f"labels.label_pairs allows {self.config.labels.label_pairs:,} labels: where there "
                "are more pairs, whole rows of them are labelled (null: every pair)"
            )
        return notes

    def _ingest(self, outputs: Outputs) -> Stage:
        data = self.config.data
        roles = (data.candidates, data.targets, data.existing, self.config.benchmarks)
        return IngestStage(find_sources(*roles), data)

    def _deduplicate(self, outputs: Outputs) -> Stage:
        return DeduplicateStage(outputs["ingest"], data=self.config.data)

    def _embed(self, outputs: Outputs) -> Stage:
        return EmbedStage(
            outputs["deduplicate"],
            self.embedder,
            self.config.embedder,
            make_embedder=self._make_embedder,
            parent=self.above.get("embed"),
        )

    def _profile_engine(self, kind: str) -> EngineFactory:
        """Return what loads the model of the profiles, with the teacher's keys, on one device."""
        model = self.profile_model or next(iter(self.teaching.language_models), None)
        if model is None:
            raise ConfigError("profiles.model: there is none to profile with")
        update = {"engine": kind, "dtype": self.teaching.dtype, "tensor_parallel_size": 1}
        return EngineFactory(model, self.config.teacher.model_copy(update=update))

    def _loss_drop(self, outputs: Outputs) -> Stage:
        config, examples = self.config, outputs["deduplicate"]
        if "warmup" in outputs:
            make_model, tokens = self.teaching.lora_factory(), self.teaching.gradient_batch_tokens
            way = ByTraining(make_model, outputs["warmup"], tokens)
        else:
            (engine,) = self.teaching.engines
            way = InContext(engine, examples, config.profiles.num_neighbours, config.selection.seed)
        stage = LossDropStage(examples, way, config.profiles.pool.shard_rows)
        return self._asks(stage)

    def _states(self, outputs: Outputs) -> Stage:
        make_embedder = StatesFactory(self._profile_engine("transformers"))
        config = EmbedderConfig(pool=self.config.profiles.pool)
        return StatesStage(outputs["deduplicate"], make_embedder, config)

    def _neighbours(self, outputs: Outputs) -> Stage:
        shown, judged = self.config.profiles.num_neighbours, self.above.get("quality")
        return NeighboursStage(outputs["embed"], shown, judged)

    def _quality(self, outputs: Outputs) -> Stage:
        kind = "auto" if self.teaching.begun_with_gpu else "transformers"
        engine = self._profile_engine(resolve_engine_kind(kind))
        return QualityStage(
            outputs["deduplicate"],
            outputs["profiles"],
            outputs["neighbours"],
            engine,
            engine.settings(),
            self.embedder,
            make_embedder=self._make_embedder,
            shard_rows=self.config.profiles.pool.shard_rows,
            parent=self.above.get("quality"),
        )

    def _profiles(self, outputs: Outputs) -> Stage:
        return ProfileStage(
            outputs["deduplicate"],
            ProfilerFactory(self._profile_engine("transformers")),
            shard_rows=self.config.profiles.pool.shard_rows,
            parent=self.above.get("profiles"),
        )

    def sample_designs(self, num_candidates: int, num_targets: int) -> dict[str, SampleDesign]:
        """Return the design of each block's label sample, for a corpus of this size.

        Raises:
            ConfigError: If the labels the recipe allows are too few to select by.
        """
        return label_designs(
            self.config,
            self.blocks,
            num_candidates,
            num_targets,
            compares_picks=OBJECTIVES[self.config.objective].compares_picks,
        )

    def _label_sample(self, outputs: Outputs) -> LabelSample:
        """Return what the teacher is asked, once it is known to be enough to select by."""
        examples = outputs["deduplicate"]
        if self._subtask_by is not None:
            read_subtasks(examples, self._subtask_by)  # a missing field stops before any teacher
        return LabelSample(
            examples,
            self.sample_designs(examples.num_rows("candidates"), examples.num_rows("targets")),
            needs_baseline=self.teaching.teacher_class.needs_baseline,
            group_pairs=self.config.labels.group_pairs,
        )

    @property
    def _subtask_by(self) -> str | None:
        """The field that names subtasks, where the objective reads them."""
        reads = self.config.objective == TOP_K and POINTS not in self.blocks
        return self.config.data.subtask_by if reads else None

    def _workers(self, num_workers: int) -> RayWorkers | None:
        """Return Ray Train's workers; None where one trains, which needs no Ray Train."""
        if num_workers == 1:
            return None
        folder, cluster = Location.of(self.config.run_dir) / TRAINING_FOLDER, self.config.cluster
        each = Resources(labels=cluster.labels, placement_timeout=cluster.placement_timeout)
        return RayWorkers(folder, num_workers, each)

    def _warmup(self, outputs: Outputs) -> Stage:
        from nncift_ray.teachers.gradients import WarmupJob, WarmupStage

        on_targets = "loss_drop" in self.teaching.reads
        if not self.teaching.reads:
            self._label_sample(outputs)  # raises where labels would be too few
        less = self.config.teacher.less
        make_model = self.teaching.lora_factory()
        table = "targets" if on_targets else "candidates"
        examples = outputs.get("pool", outputs["deduplicate"])
        job = WarmupJob(examples, make_model, less, table)
        return WarmupStage(job, make_model.settings(), self._workers(less.num_workers))

    def _gradients(self, outputs: Outputs) -> Stage:
        from nncift_ray.teachers.gradients import GradientsStage

        keys = list_gradients(self._label_sample(outputs).requests)
        return self._gradients_of(GradientsStage, keys, outputs["deduplicate"], outputs, "float32")

    # LESS over all rows: candidates are read by themselves, so that what was made of them stays
    # where the targets change.

    def _pool_ingest(self, outputs: Outputs) -> Stage:
        roles = (self.config.data.candidates, (), (), self.config.benchmarks)
        return PoolIngestStage(find_sources(*roles), self.config.data)

    def _pool(self, outputs: Outputs) -> Stage:
        return PoolStage(outputs["pool_ingest"], data=self.config.data)

    def _all_gradients(self, outputs: Outputs) -> Stage:
        from nncift_ray.teachers.gradients import GradientsStage

        examples = outputs.get("pool", outputs["deduplicate"])
        whole = outputs["deduplicate"].num_rows("candidates")
        if examples.num_rows("candidates") != whole:
            raise StageError(
                f"stage 'pool' numbers other candidates than 'deduplicate' ({whole:,})"
            )
        rows = np.arange(whole)
        if self.config.teacher.kind == "landmarks":
            less = self.config.teacher.less
            rng = np.random.Generator(np.random.PCG64([less.seed, LANDMARKS_STREAM]))
            rows = np.sort(rng.permutation(whole)[: less.num_landmarks])
        keys = [GradientKey(HELPER, CANDIDATE, row) for row in rows.tolist()]
        storage = self.config.teacher.less.storage
        return self._gradients_of(GradientsStage, keys, examples, outputs, storage)

    def _target_gradients(self, outputs: Outputs) -> Stage:
        from nncift_ray.teachers.gradients import TargetGradientsStage

        role, examples = helped_role(ground_block(self.blocks)), outputs["deduplicate"]
        num_rows = examples.num_rows(TABLE_OF_ROLE[role])
        keys = [GradientKey(HELPED, role, row) for row in range(num_rows)]
        storage = self.config.teacher.less.storage
        storage = "int8" if storage == "bit" else storage  # signs of both sides lose too much
        return self._gradients_of(TargetGradientsStage, keys, examples, outputs, storage)

    def _gradients_of(
        self, kind: Any, keys: list[GradientKey], examples: StageOutput, outputs: Outputs,
        storage: str,
    ) -> Stage:  # fmt: skip
        make_model, tokens = self.teaching.lora_factory(), self.teaching.gradient_batch_tokens
        less = self.config.teacher.less
        return kind(keys, examples, outputs["warmup"], make_model, less, tokens, storage)

    def _label(self, outputs: Outputs) -> Stage:
        teaching = self.teaching
        stage = LabelStage(
            self._label_sample(outputs),
            teaching.teacher_class,
            teaching.factory(outputs),
            teaching.settings(),
            embeddings=outputs["embed"] if teaching.teacher_class.needs_embeddings else None,
            gradients=outputs["gradients"] if teaching.needs_gradients else None,
            shard_pairs=self.config.labels.pool.shard_rows,
        )
        return self._asks(stage)

    def _asks(self, stage: Stage) -> Stage:
        """Return a step that asks the teacher; where that is a server one actor does it all."""
        if self.config.teacher.server is not None:
            stage.can_use_gpu, stage.single_threaded, stage.max_actors = False, True, 1
        return stage

    def _teacher_scores(self, outputs: Outputs) -> Stage:
        from nncift_ray.scores.teacher_scores import MeasuredScoresStage, TeacherScoresStage

        examples, kept = outputs["deduplicate"], None
        if self.config.objective != TOP_K:
            adds_pairs = OBJECTIVES[self.config.objective].adds_pairs
            every, top_k = examples.num_rows("candidates"), self.config.pair_scores.top_k
            kept = every if adds_pairs else top_k
        reads, subtask_by = self.teaching.reads, self._subtask_by
        if not reads:
            return TeacherScoresStage(
                outputs["label"], examples, self.blocks, kept, subtask_by=subtask_by
            )
        kind, sources = self.config.teacher.kind, {name: outputs[name] for name in reads}
        tokenizer = self.teaching.language_models[0] if "deduplicate" in reads else None
        return MeasuredScoresStage(
            kind,
            sources,
            examples,
            self.blocks,
            kept,
            subtask_by=subtask_by,
            tokenizer=tokenizer,
            target_rank=self.config.teacher.less.target_rank if "gradients" in reads else None,
        )

    def _fit(self, outputs: Outputs) -> Stage:
        from nncift_ray.network.step import CosineStage, FitStage

        if not self.teaching.is_asked:
            self.check_pairs(outputs["embed"].num_rows("candidates"))
            return CosineStage(self.network_inputs(outputs), self.blocks)
        network = self.config.network
        num_workers = 1 if self.knows_pairs else network.num_workers
        inputs, workers = self.network_inputs(outputs), self._workers(num_workers)
        return FitStage(outputs["label"], inputs, self.blocks, network, workers)

    def network_inputs(self, outputs: Outputs) -> ExampleInputs:
        """Return what the network reads; all but a pair network the embedding alone."""
        profiles = outputs.get("profiles") if self.knows_pairs else None
        return ExampleInputs(outputs["embed"], profiles)

    def _project(self, outputs: Outputs) -> Stage:
        from nncift_ray.scores.step import ProjectStage

        pairs_only = self.config.objective == PAIR_COVERAGE
        inputs = self.network_inputs(outputs)
        return ProjectStage(inputs, outputs["fit"], self.blocks, pairs_only=pairs_only)

    def _index(self, outputs: Outputs) -> Stage:
        from nncift_ray.scores.index_step import IndexStage

        return IndexStage(
            outputs["project"], outputs["fit"], self.prunable_blocks, self.config.pair_scores
        )

    def _score_pairs(self, outputs: Outputs) -> ScorePairsStage:
        from nncift_ray.scores.step import ScorePairsStage

        return ScorePairsStage(
            outputs["project"],
            outputs["fit"],
            self.blocks,
            self.config.pair_scores,
            keeps_lists=self.config.objective != TOP_K,
            examples=None if self._subtask_by is None else outputs["deduplicate"],
            subtask_by=self._subtask_by,
            index=outputs.get("index"),
            whole=OBJECTIVES[self.config.objective].adds_pairs,
        )

    def _judged(self, outputs: Outputs) -> StageOutput | None:
        """Return what says how good candidates are, where the selection shall mind it."""
        return None if self.teaching.reads else outputs.get("quality")

    def _repeats(self, outputs: Outputs) -> Stage:
        from nncift_ray.selection.repeats import RepeatsStage

        min_cosine = self.config.selection.repeats
        assert min_cosine is not None  # noqa: S101
        quality = outputs.get("quality")
        return RepeatsStage(outputs["deduplicate"], outputs["embed"], min_cosine, quality)

    def _select_partitions(self, outputs: Outputs) -> Stage:
        from nncift_ray.selection.step import SelectPartitionsStage

        return SelectPartitionsStage(
            scores_of(outputs),
            outputs["embed"],
            resolve_selection(self.config),
            examples=outputs["deduplicate"],
            profiles=self._judged(outputs),
        )

    def _select(self, outputs: Outputs) -> Stage:
        from nncift_ray.selection.step import SelectStage

        return SelectStage(
            scores_of(outputs),
            outputs["embed"],
            resolve_selection(self.config),
            examples=outputs["deduplicate"],
            parts=outputs.get("select_partitions"),
            profiles=self._judged(outputs),
        )

    def _export(self, outputs: Outputs) -> Stage:
        formats = self.config.export.formats
        return ExportStage(outputs["select"], outputs["deduplicate"], formats)

    def second_try(self, name: str, outputs: Outputs) -> tuple[Stage, str] | None:
        """Return what is to be run in place of a finished stage, and why; None: it stands.

        Raises:
            StageError: If it does not stand and the recipe says to stop then.
        """
        if name != "score_pairs" or "index" not in outputs:
            return None
        from nncift_ray.scores.index_step import low_recall

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

    def join(self, name: str, own: StageOutput) -> StageOutput:
        """Return what later steps read of a finished step: what it made."""
        return own

    def notices_of(self, stage: Stage, own: StageOutput) -> list[str]:
        """Return what the user should hear when a step is done."""
        return stage.notices(own)

    def record(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Return the recipe and where each step's work lies, for status and later commands."""
        return {
            "version": nncift_ray.__version__,
            "config": self.config.model_dump(mode="json"),
            "stage_names": list(self.steps),
            "stages": fingerprints,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


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
    until: str = "export",
    execute: Executor | None = None,
    record: bool = True,
) -> RunResult:
    """Run a recipe to its end, or until a stage; finished work is never done again.

    Args:
        config: The recipe.
        reporter: Hears of progress; plain lines by default.
        until: Last stage to run.
        execute: Runs shards, in place of what the session has for it.
        record: Whether status and later commands shall take this for what the directory holds.

    Raises:
        NnciftError: With what is wrong and the remedy; finished shards are kept.
    """
    reporter = reporter or LineReporter()
    run_dir = Location.of(config.run_dir)
    blueprint = Blueprint(config)
    if until not in blueprint.steps:
        names = ", ".join(blueprint.steps)
        raise ConfigError(f"unknown stage '{until}'; the stages of this recipe are {names}")
    blueprint.check()
    run_dir.make_folder()
    with (
        locked(run_dir),
        session_of(blueprint, run_dir, reporter, execute) as session,
        observed(config, run_dir, reporter) as reporter,
    ):
        teaching = blueprint.teaching
        teaching.has_gpu = session.has_gpu(teaching.pool)
        teaching.begun_with_gpu = begun_with_gpu(run_dir, has_gpu=teaching.has_gpu)
        for notice in blueprint.notices():
            reporter.notice(notice)
        outputs = run_stages(blueprint, run_dir, until, session, reporter, record=record)
        if "export" not in outputs:
            return RunResult(run_dir, outputs, None, None, None)
        notices = [*blueprint.notices(), *describe_layouts(outputs["ingest"])]
        notices += describe_left_out(outputs["deduplicate"])
        notices += describe_losses(outputs["export"])
        if blueprint.by_teacher:
            from nncift_ray.scores.teacher_scores import describe_labels

            notices += describe_labels(outputs["teacher_scores"])
        return finish_run(config, run_dir, outputs, tuple(notices))


#: Bytes of a corpus, unpacked, up to which a run needs no Ray: some 20,000 rows.
IN_PROCESS_BYTES = 20 * 1024**2


def why_on_ray(blueprint: Blueprint, run_dir: Location) -> str:
    """Return what makes a run go to Ray; "" where it is done in this process."""
    config, cluster = blueprint.config, blueprint.config.cluster
    if cluster.mode != "auto":
        return "cluster.mode is ray" if cluster.mode == "ray" else ""
    if cluster_address(cluster) or ray_running():
        return "there is a cluster"
    if not ray_installed():
        return ""
    if died_here(run_dir):
        return (
            "the last process that worked here was killed at it, and a worker's death costs less; "
            "cluster.mode local does without"
        )
    if max(config.network.num_workers, config.teacher.less.num_workers) > 1:
        return "several workers are to train together"
    if any(blueprint.pool(name).num_actors for name in blueprint.steps):
        return "a pool names its number of actors"
    if os.path.exists("/dev/nvidia1"):
        return "there are several GPUs"
    if blueprint.teaching.needs_engine and resolve_engine_kind(config.teacher.engine) == "vllm":
        return "vLLM wants processes of its own"
    size = sum(source.size_unpacked for source in expand_sources(config.data.files))
    return f"the corpus has {size / 1e6:,.0f} MB" if size > IN_PROCESS_BYTES else ""


@contextlib.contextmanager
def session_of(
    blueprint: Blueprint,
    run_dir: Location,
    reporter: Reporter,
    execute: Executor | None = None,
) -> Generator[Session]:
    """Open the session that a recipe asks for; ``execute`` takes the place of its executor.

    An executor of the caller's needs no Ray, but may hand work to a cluster that is there.
    """
    joins = ray_running() or cluster_address(blueprint.config.cluster) is not None
    reason = why_on_ray(blueprint, run_dir) if execute is None or joins else ""
    if execute is None:
        reporter.notice(f"starts Ray: {reason}" if reason else "runs in this process, without Ray")
    with open_session(blueprint.config.cluster, run_dir, on_ray=bool(reason)) as session:
        yield session if execute is None else dataclasses.replace(session, execute=execute)


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
    from nncift_ray.report.data import collect_report_data
    from nncift_ray.report.page import render_report

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
    session: Session,
    reporter: Reporter,
    *,
    record: bool,
    known: Mapping[str, StageOutput] | None = None,
) -> dict[str, StageOutput]:
    """Bring the stages of a recipe to their end, as far as ``until``.

    Args:
        blueprint: Of the recipe; it knows whether there is a GPU, and was when this was begun.
        run_dir: Where their work lies.
        until: Last stage to run.
        session: Runs shards.
        reporter: Hears of progress.
        record: Whether status and later commands shall take this for what the directory holds.
        known: Finished stages that need not be looked for again, as a sister recipe left them.

    Returns:
        The outputs by stage, in order, those known among them.
    """
    outputs: dict[str, StageOutput] = dict(known or {})
    fingerprints = {name: output.fingerprint for name, output in outputs.items()}

    def run_step(stage: Stage) -> None:
        give_resources(stage, blueprint, session)
        fingerprints[stage.name] = stage_fingerprint(stage)
        if record:
            text = json.dumps(blueprint.record(fingerprints), indent=1)
            (run_dir / RUN_RECORD).write_bytes(text.encode())
        own = run_stage(stage, run_dir, execute=session.execute, reporter=reporter)
        outputs[stage.name] = blueprint.join(stage.name, own)
        for line in blueprint.notices_of(stage, own):
            reporter.notice(line)

    names = tuple(blueprint.steps)
    for name in names[: names.index(until) + 1]:
        if name in outputs:
            continue
        run_step(blueprint.steps[name](outputs))
        second_try = blueprint.second_try(name, outputs)
        if second_try is not None:
            stage, reason = second_try
            reporter.notice(reason)
            run_step(stage)
    return {name: outputs[name] for name in names if name in outputs}


def begun_with_gpu(run_dir: Location, *, has_gpu: bool, record: bool = True) -> bool:
    """Return whether a run directory was begun for a GPU; its first run records it.

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


def give_resources(stage: Stage, blueprint: Blueprint, session: Session) -> None:
    """Size the actor pool of a step by its recipe and what is there, and bound its failures."""
    teacher = blueprint.config.teacher
    if stage.max_failed_key == "teacher.max_failed_fraction":
        stage.max_failed_fraction = teacher.max_failed_fraction
    pool, cluster = blueprint.pool(stage.name), blueprint.config.cluster
    stage.resources = session.resources_for(stage, pool, cluster)
    if stage.name == "index":  # it predicts the seconds of as many actors as will score
        whole = session.resources_for(stage, pool, cluster, whole_pool=True)
        cast("IndexStage", stage).num_scoring_workers = whole.max_actors
    workers = getattr(stage, "workers", None) if stage.name == "warmup" else None
    if workers is not None:
        each = stage.resources
        # On one machine an actor has all cores, and the workers share them.
        shares = session.on_one_machine and pool.num_cpus is None
        num_cpus = max(1.0, each.num_cpus // (workers.num_workers if shares else 1))
        each = dataclasses.replace(
            each, num_cpus=num_cpus, num_gpus=float(each.num_gpus > 0), custom={}
        )
        cast("WarmupStage", stage).workers = dataclasses.replace(workers, each=each)


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
    """Put the card beside the exported dataset, where there is one, and a README above it."""
    from nncift_ray.report.page import render_dataset_card, render_export_readme

    names = {part.name for part in export.manifest.table_parts(FILES_TABLE)}
    folder, loaded = run_dir / EXPORT_FOLDER, SUBSET_PARQUET
    if f"{FILES_TABLE}/{DATASET_PARQUET}" in names:
        loaded = DATASET_PARQUET
        card = render_dataset_card(data).encode("utf-8")
        (folder / DATASET_FOLDER / "README.md").write_bytes(card)
    readme = render_export_readme(export.fingerprint, loaded)
    (folder / "README.md").write_bytes(readme.encode("utf-8"))
