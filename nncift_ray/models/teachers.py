"""Teachers: what a label is and how it is measured, and the registry of their kinds.

A teacher measures requests; the utility of a pair is worked out from its measurement and, where the
teacher needs one, the measurement of the helped example alone. A request that cannot be measured
becomes a failure with a reason, never a score.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift_ray.core import delift
from nncift_ray.core.examples import Example
from nncift_ray.errors import ConfigError
from nncift_ray.models.engine import (
    ScoringEngine,
    ScoringFailure,
    ScoringRequest,
    ScoringResult,
)

TOKENISED_TEXTS = 8192  # texts whose tokens are remembered: an example is asked about many times


@dataclass(frozen=True, slots=True, eq=False)
class LabelRequest:
    """One thing to measure: a pair, or the helped example alone."""

    helped: Example
    helper: Example | None = None
    helped_embedding: npt.NDArray[np.floating[Any]] | None = None  # [D]
    helper_embedding: npt.NDArray[np.floating[Any]] | None = None  # [D]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured request, in the teacher's own unit."""

    value: float
    num_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MeasurementFailure:
    """Why a request has no measurement."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What a teacher may be made from; the engine is loaded only by a teacher that asks for it."""

    make_engine: Callable[[], ScoringEngine] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class Teacher(Protocol):
    """A source of labels.

    The attributes belong to the class, so that a plan can be made without loading a model. A class
    of the user's own may have ``from_context(cls, context: TeacherContext)``; without it, it is
    made with no arguments.
    """

    kind: ClassVar[Literal["pairwise", "pointwise"]]
    needs_baseline: ClassVar[bool]  # measure every helped example alone, too
    needs_embeddings: ClassVar[bool]  # fill the embeddings of requests
    needs_engine: ClassVar[bool]  # a language model will be loaded
    version: ClassVar[int]  # bump when the same request would get another value

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure requests that share one helper (or have none), in their order."""
        ...

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Turn a measured value into the label; ``baseline`` is None unless one is needed."""
        ...

    def close(self) -> None:
        """Free what the teacher holds."""
        ...


class DeliftTeacher:
    """DELIFT: the distance to certainty that an example in context takes away (2411.04425)."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, engine: ScoringEngine) -> None:
        """Make a teacher of a language model."""
        self._engine = engine
        self._encode = lru_cache(maxsize=TOKENISED_TEXTS)(lambda text: tuple(engine.encode(text)))

    @classmethod
    def from_context(cls, context: TeacherContext) -> DeliftTeacher:
        """Load the context's engine and make a teacher of it."""
        if context.make_engine is None:
            raise ConfigError("teacher delift needs a language model; none was given")
        return cls(context.make_engine())

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure d_i in [0, 1] of every request, with its helper in context or alone."""
        answers: dict[int, Measurement | MeasurementFailure] = {}
        prepared: dict[int, ScoringRequest] = {}
        for i, request in enumerate(requests):
            outcome = self._prepare(request)
            if isinstance(outcome, MeasurementFailure):
                answers[i] = outcome
            else:
                prepared[i] = outcome
        results = self._engine.score(list(prepared.values()))
        for i, result in zip(prepared, results, strict=True):
            answers[i] = _measure_distance(result)
        return [answers[i] for i in range(len(requests))]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return d_i alone minus d_i with the example, in [-1, 1]."""
        if baseline is None:
            raise ValueError("a DELIFT utility needs the distance of the helped example alone")
        return delift.utility(baseline, value)

    def close(self) -> None:
        """Free the language model."""
        self._encode.cache_clear()
        self._engine.close()

    def _prepare(self, request: LabelRequest) -> ScoringRequest | MeasurementFailure:
        """Tokenise a request and fit it to the model's window."""
        segments = delift.delift_segments(request.helped, request.helper)
        response_ids = self._encode(segments.response)
        if not response_ids:
            return MeasurementFailure("no_response", "the helped example's response has no tokens")
        before = (*self._engine.start_ids, *self._encode(segments.instruction))
        example = self._encode(segments.example)
        fitted = delift.fit_to_length(
            (*before, *example, *self._encode(segments.bridge)),
            (len(before), len(before) + len(example)),
            self._encode(segments.query),
            (*response_ids, self._engine.eos_id),
            self._engine.max_length,
        )
        if isinstance(fitted, delift.Misfit):
            return MeasurementFailure(fitted.reason, fitted.message)
        return ScoringRequest(
            fitted.prompt_ids, (*response_ids, self._engine.eos_id), fitted.prefix_length
        )


class DeliftSeTeacher:
    """DELIFT (SE): the cosine of two examples' sentence embeddings, not rescaled."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = True
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    @classmethod
    def from_context(cls, context: TeacherContext) -> DeliftSeTeacher:
        """Make a teacher; it takes nothing from the context."""
        del context
        return cls()

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure the cosine in [-1, 1] of every pair."""
        return [self._measure_one(request) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Return the cosine as it is."""
        del baseline
        return value

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _measure_one(self, request: LabelRequest) -> Measurement | MeasurementFailure:
        if request.helped_embedding is None or request.helper_embedding is None:
            return MeasurementFailure("no_embedding", "an example of the pair has no embedding")
        # Vectors may be stored as float16, whose norm is 1 to three digits only.
        helped_D = np.asarray(request.helped_embedding, dtype=np.float64)
        helper_D = np.asarray(request.helper_embedding, dtype=np.float64)
        norms = float(np.linalg.norm(helped_D) * np.linalg.norm(helper_D))
        if not np.isfinite(norms) or norms == 0.0:
            return MeasurementFailure("bad_embedding", "an embedding is zero or not finite")
        return Measurement(float(np.clip(helped_D @ helper_D / norms, -1.0, 1.0)))


TEACHERS: dict[str, type[Any]] = {"delift": DeliftTeacher, "delift_se": DeliftSeTeacher}
RESERVED_KINDS = ("less", "selectit")
_ATTRIBUTES = ("kind", "needs_baseline", "needs_embeddings", "needs_engine", "version")
_METHODS = ("measure", "utility", "close")


def load_teacher_class(kind: str) -> type[Any]:
    """Return the class of a teacher; its attributes say what it needs.

    Args:
        kind: A name in TEACHERS, or "package.module:Class" for a class of the user's own.

    Raises:
        ConfigError: If the kind is unknown or reserved, the class cannot be imported, lacks a
            member of the Teacher protocol, or is pointwise (not in this version yet).
    """
    if kind in TEACHERS:
        return TEACHERS[kind]
    choices = f"choose one of {', '.join(TEACHERS)}, or give a class as package.module:Class"
    if kind in RESERVED_KINDS:
        raise ConfigError(f"teacher.kind {kind!r} is not in this version yet; {choices}")
    module_name, colon, class_name = kind.partition(":")
    if not (colon and module_name and class_name):
        raise ConfigError(f"teacher.kind {kind!r} is unknown; {choices}")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"teacher.kind {kind!r} cannot be imported: {error}") from error
    if not inspect.isclass(found):
        raise ConfigError(f"teacher.kind {kind!r} is not a class")
    _check_members(kind, found)
    return found


def make_teacher(kind: str, context: TeacherContext) -> Teacher:
    """Make the teacher of a kind, loading its language model where it needs one.

    Raises:
        ConfigError: As ``load_teacher_class``, or if the context lacks what the teacher needs.
        ModelError: If its language model cannot be loaded.
    """
    teacher_class = load_teacher_class(kind)
    from_context = getattr(teacher_class, "from_context", None)
    return teacher_class() if from_context is None else from_context(context)


def _check_members(kind: str, found: type[Any]) -> None:
    missing = [name for name in _ATTRIBUTES if not hasattr(found, name)]
    missing += [name for name in _METHODS if not callable(getattr(found, name, None))]
    if missing:
        raise ConfigError(
            f"teacher.kind {kind!r} lacks {', '.join(missing)} of the Teacher protocol "
            "(nncift_ray/models/teachers.py); its attributes must belong to the class"
        )
    if not isinstance(inspect.getattr_static(found, "utility"), staticmethod):
        raise ConfigError(f"{kind}.utility must be a staticmethod: labels are made without a model")
    if found.kind not in ("pairwise", "pointwise"):
        raise ConfigError(f"{kind}.kind must be pairwise or pointwise, not {found.kind!r}")
    if found.kind == "pointwise":
        raise ConfigError(
            f"teacher.kind {kind!r}: pointwise teachers are not in this version yet; "
            "give a pairwise one"
        )


def _measure_distance(result: ScoringResult | ScoringFailure) -> Measurement | MeasurementFailure:
    if isinstance(result, ScoringFailure):
        return MeasurementFailure(result.reason, result.message)
    value = delift.distance(result.log_probs)
    return Measurement(value, result.num_tokens, result.num_cached_tokens)
