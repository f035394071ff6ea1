from __future__ import annotations

import sys
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.engines.base import ScoringRequest, ScoringResult
from nncift_ray.errors import ConfigError
from nncift_ray.recipe.sections import BUILT_IN_TEACHERS
from nncift_ray.teachers.base import (
    TEACHERS,
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    load_teacher_class,
    make_teacher,
)
from nncift_ray.teachers.delift import DeliftSeTeacher, DeliftTeacher, delift_segments, distance
from tests.fake_engines import FakeEngine

TOLERANCE = 1e-12
HALF_TOLERANCE = 1e-3
HELPED = Example("i", "What is 2 + 2?", "4")
OTHER = Example("k", "Name a colour.", "Blue")
HELPER = Example("j", "What is 1 + 1?", "2")


def _value(answer: Measurement | MeasurementFailure) -> float:
    assert isinstance(answer, Measurement), answer
    return answer.value


def test_delift_measures_the_distance_of_the_papers_prompt() -> None:
    engine = FakeEngine()
    segments = delift_segments(HELPED, HELPER)
    ids = ScoringRequest(engine.encode("".join(segments[:4])), [*b"4", engine.eos_id])
    expected = engine.score([ids])[0]
    assert isinstance(expected, ScoringResult)
    answer = DeliftTeacher(engine).measure([LabelRequest(HELPED, HELPER)])[0]
    assert _value(answer) == pytest.approx(distance(expected.log_probs), abs=TOLERANCE)


def test_requests_of_a_helper_share_their_prefix_up_to_the_query() -> None:
    class Recorder(FakeEngine):
        def score(self, requests):  # noqa: ANN001, ANN202
            self.seen = list(requests)
            return super().score(requests)

    engine = Recorder()
    DeliftTeacher(engine).measure([LabelRequest(HELPED, HELPER), LabelRequest(OTHER, HELPER)])
    first, second = engine.seen
    assert (
        first.prefix_length
        == second.prefix_length
        == len("".join(delift_segments(HELPED, HELPER)[:3]))
    )
    assert first.prompt_ids[: first.prefix_length] == second.prompt_ids[: first.prefix_length]
    assert bytes(first.prompt_ids[first.prefix_length :]).decode() == "What is 2 + 2?\n"


def test_a_failed_request_is_a_failure_between_measured_neighbours() -> None:
    bad = [Example("n", "q", "\0"), Example("e", "q", ""), Example("l", "q" * 3000, "r")]
    requests = [LabelRequest(x, HELPER) for x in (HELPED, *bad, OTHER)]
    answers = DeliftTeacher(FakeEngine()).measure(requests)
    assert [type(a) for a in answers] == [Measurement, *[MeasurementFailure] * 3, Measurement]
    reasons = [a.reason for a in answers if isinstance(a, MeasurementFailure)]
    assert reasons == ["not_finite", "no_response", "too_long"]
    alone = DeliftTeacher(FakeEngine()).measure([LabelRequest(OTHER, HELPER)])[0]
    assert _value(answers[-1]) == _value(alone)


def test_a_prefix_is_paid_for_once_in_the_least_that_is_computed() -> None:
    first, second = DeliftTeacher(FakeEngine()).measure(
        [LabelRequest(HELPED, HELPER), LabelRequest(OTHER, HELPER)]
    )
    assert isinstance(first, Measurement)
    assert isinstance(second, Measurement)
    assert first.num_minimal_tokens == first.num_tokens
    shared = len("".join(delift_segments(OTHER, HELPER)[:3]))
    assert second.num_minimal_tokens == second.num_tokens - shared


def test_start_tokens_stand_before_the_instruction() -> None:
    class Starting(FakeEngine):
        def score(self, requests):  # noqa: ANN001, ANN202
            self.first_ids = [request.prompt_ids[0] for request in requests]
            return super().score(requests)

    engine = Starting()
    engine.start_ids = [99]
    DeliftTeacher(engine).measure([LabelRequest(HELPED), LabelRequest(OTHER)])
    assert engine.first_ids == [99, 99]


def test_delift_utility_needs_a_baseline() -> None:
    teacher = DeliftTeacher(FakeEngine())
    assert teacher.utility(0.75, 0.5) == pytest.approx(0.25, abs=TOLERANCE)
    with pytest.raises(ValueError, match="alone"):
        teacher.utility(None, 0.5)


def test_delift_se_is_the_unscaled_cosine() -> None:
    a, b = np.array([3.0, 4.0], dtype=np.float16), np.array([-4.0, 3.0], dtype=np.float16)
    requests = [LabelRequest(HELPED, HELPER, a, x) for x in (a, b, -a)]
    values = [_value(answer) for answer in DeliftSeTeacher().measure(requests)]
    assert values == pytest.approx([1.0, 0.0, -1.0], abs=HALF_TOLERANCE)
    assert DeliftSeTeacher().utility(None, -0.5) == -0.5


@pytest.mark.parametrize("bad", [None, np.zeros(2), np.array([np.nan, 1.0])])
def test_delift_se_without_a_usable_embedding_fails(bad: np.ndarray | None) -> None:
    good = LabelRequest(HELPED, HELPER, np.ones(2), np.ones(2))
    failed, measured = DeliftSeTeacher().measure(
        [LabelRequest(HELPED, HELPER, np.ones(2), bad), good]
    )
    assert isinstance(failed, MeasurementFailure)
    assert isinstance(measured, Measurement)


def test_built_in_teachers_follow_the_protocol() -> None:
    context = TeacherContext((FakeEngine,), checkpoint_weights=(1.0,))
    for kind in TEACHERS:
        assert isinstance(make_teacher(kind, context), Teacher)


def test_the_recipe_knows_the_registrys_teachers() -> None:
    assert set(BUILT_IN_TEACHERS) == set(TEACHERS)


def test_a_planned_class_loads_no_model() -> None:
    assert load_teacher_class("delift").needs_engine
    assert not load_teacher_class("delift_se").needs_engine
    with pytest.raises(ConfigError, match="language model"):
        make_teacher("delift", TeacherContext())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("delft", "unknown.*delift_se"),
        ("no.such.module:Class", "cannot be imported"),
        ("json:NoSuchClass", "cannot be imported"),
        ("json:dumps", "not a class"),
        ("json:JSONDecoder", "lacks kind, needs_baseline"),
        (":", "unknown"),
    ],
)
def test_a_teacher_that_cannot_be_made_says_why(kind: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_teacher_class(kind)


def test_a_users_class_is_made_from_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        kind: ClassVar[str] = "pairwise"
        needs_baseline = needs_embeddings = needs_engine = False
        version = 3

        def __init__(self, level: float = 0.0) -> None:
            self.level = level

        @classmethod
        def from_context(cls, context: TeacherContext) -> Constant:
            return cls(context.options["level"])

        def measure(self, requests: list[LabelRequest]) -> list[Measurement]:
            return [Measurement(self.level) for _ in requests]

        @staticmethod
        def utility(baseline: float | None, value: float) -> float:
            return value

        def close(self) -> None: ...

    module = ModuleType("someones_teachers")
    module.Constant = Constant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones_teachers", module)
    teacher = make_teacher("someones_teachers:Constant", TeacherContext(options={"level": 0.5}))
    assert teacher.measure([LabelRequest(HELPED)]) == [Measurement(0.5)]
