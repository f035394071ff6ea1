"""What a teacher is: requests in, measurements out, and how a measurement becomes a label.

A teacher measures requests; the utility of a pair is worked out from its measurement and, where the
teacher needs one, the measurement of the helped example alone. A request that cannot be measured
becomes a failure with a reason, never a score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringEngine


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
    engine_factories: tuple[Callable[[], ScoringEngine], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    #: Weight of each warm-up checkpoint, summing to 1, for a teacher that needs gradients.
    checkpoint_weights: tuple[float, ...] = ()


@runtime_checkable
class Teacher(Protocol):
    """A source of labels.

    The attributes belong to the class, so that a plan can be made without loading a model. A class
    of the user's own may have ``from_context(cls, context: TeacherContext)``; without it, it is
    made with no arguments. ``needs_gradients`` may be left out; it is then False.
    """

    kind: ClassVar[Literal["pairwise", "pointwise"]]
    needs_baseline: ClassVar[bool]  # measure every helped example alone, too
    needs_embeddings: ClassVar[bool]  # fill the embeddings of requests
    needs_engine: ClassVar[bool]  # a language model will be loaded
    version: ClassVar[int]  # bump when the same request would get another value

    def measure(self, requests: Sequence[LabelRequest]) -> list[Measurement | MeasurementFailure]:
        """Measure requests in their order; neighbours share a helper (or have none)."""
        ...

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        """Turn a measured value into the label; ``baseline`` is None unless one is needed."""
        ...

    def close(self) -> None:
        """Free what the teacher holds."""
        ...


def needs_gradients(teacher_class: type[Any]) -> bool:
    """Whether a teacher reads projected gradients, which a warm-up must be run for."""
    return bool(getattr(teacher_class, "needs_gradients", False))
