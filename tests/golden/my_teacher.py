"""A teacher from outside the package: the share of the helped example's words the helper has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tests.golden.harness import Measurement, MeasurementFailure

UNLUCKY = "Ulaanbaatar"  # an answer with this word cannot be measured


class Teacher:
    """Pairwise, without a language model; fails on a few examples."""

    kind: ClassVar[str] = "pairwise"
    needs_baseline: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def measure(self, requests: Sequence[Any]) -> list[Measurement | MeasurementFailure]:
        return [_overlap(request.helped, request.helper) for request in requests]

    @staticmethod
    def utility(baseline: float | None, value: float) -> float:
        return value

    def close(self) -> None:
        pass


def _overlap(helped: Any, helper: Any) -> Measurement | MeasurementFailure:
    if UNLUCKY in helped.response:
        return MeasurementFailure("unlucky", "the answer names a city that is not measured")
    wanted, held = _words(helped), _words(helper)
    return Measurement(len(wanted & held) / len(wanted))


def _words(example: Any) -> set[str]:
    return set(f"{example.prompt} {example.response}".split())
