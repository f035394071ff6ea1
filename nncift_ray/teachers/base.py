"""What a teacher is, and how one is found: requests in, measurements out, labels of measurements.

A teacher measures requests; the utility of a pair is worked out from its measurement and, where the
teacher needs one, the measurement of the helped example alone. A request that cannot be measured
becomes a failure with a reason, never a score.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import Engine
from nncift_ray.errors import ConfigError
from nncift_ray.recipe.sections import SelectItConfig


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


@dataclass(frozen=True, slots=True)
class MeasurementFailure:
    """Why a request has no measurement."""

    reason: str
    message: str


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


TEACHERS = {
    "delift": "nncift_ray.teachers.delift:DeliftTeacher",
    "delift_se": "nncift_ray.teachers.delift:DeliftSeTeacher",
    "less": "nncift_ray.teachers.less:LessTeacher",
    "selectit": "nncift_ray.teachers.selectit:SelectItTeacher",
    "longest": "nncift_ray.teachers.measured:LongestTeacher",
    "ifd": "nncift_ray.teachers.measured:IfdTeacher",
    "consistency": "nncift_ray.teachers.measured:ConsistencyTeacher",
    "loss_drop": "nncift_ray.teachers.measured:LossDropTeacher",
    "loss_drop_in_context": "nncift_ray.teachers.measured:LossDropInContextTeacher",
    "deita": "nncift_ray.teachers.measured:DeitaTeacher",
    "cosine": "nncift_ray.teachers.measured:CosineTeacher",
    "rds_plus": "nncift_ray.teachers.measured:RdsPlusTeacher",
    "landmarks": "nncift_ray.teachers.measured:LandmarksTeacher",
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
    module_name, colon, class_name = TEACHERS.get(kind, kind).partition(":")
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


def needs_gradients(teacher_class: type[Any]) -> bool:
    """Return whether a teacher reads projected gradients, which a warm-up must be run for."""
    return bool(getattr(teacher_class, "needs_gradients", False))


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
