from __future__ import annotations

import numpy as np
import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.errors import ConfigError
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    make_teacher,
)
from nncift_ray.teachers.less import LessTeacher

TOLERANCE = 1e-6
EXAMPLE = Example("a", "What is 2 + 2?", "4")
CONTEXT = TeacherContext(checkpoint_weights=(0.75, 0.25))


def ask(helped: list[list[float]] | None, helper: list[list[float]] | None) -> LabelRequest:
    arrays = [None if rows is None else np.array(rows, np.float32) for rows in (helped, helper)]
    return LabelRequest(EXAMPLE, EXAMPLE, helped_gradients=arrays[0], helper_gradients=arrays[1])


def test_less_is_found_by_name_and_asks_for_gradients_alone() -> None:
    teacher = make_teacher("less", CONTEXT)
    assert isinstance(teacher, LessTeacher)
    assert isinstance(teacher, Teacher)
    assert LessTeacher.needs_gradients
    needs = (teacher.needs_engine, teacher.needs_embeddings, teacher.needs_baseline)
    assert needs == (False, False, False)


def test_a_pair_is_measured_by_its_weighted_cosines() -> None:
    request = ask([[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, -1.0]])
    (answer,) = LessTeacher((0.75, 0.25)).measure([request])
    assert isinstance(answer, Measurement)
    assert answer.value == pytest.approx(0.75 * 0.6 - 0.25, abs=TOLERANCE)


def test_the_label_is_the_measurement_itself() -> None:
    assert LessTeacher.utility(None, -0.5) == -0.5


@pytest.mark.parametrize("missing", ["helped", "helper"])
def test_a_pair_without_a_gradient_fails_and_its_neighbour_is_measured(missing: str) -> None:
    one = [[1.0, 0.0]]
    broken = ask(None, one) if missing == "helped" else ask(one, None)
    failed, measured = LessTeacher((1.0,)).measure([broken, ask(one, one)])
    assert isinstance(failed, MeasurementFailure)
    assert failed.reason == "no_gradient"
    assert measured == Measurement(1.0)


@pytest.mark.parametrize("rows", [[[0.0, 0.0]], [[float("nan"), 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
def test_a_gradient_without_a_direction_or_of_another_warmup_fails(
    rows: list[list[float]],
) -> None:
    (answer,) = LessTeacher((1.0,)).measure([ask(rows, rows)])
    assert isinstance(answer, MeasurementFailure)
    assert answer.reason == "bad_gradient"


def test_without_checkpoints_there_is_no_teacher() -> None:
    with pytest.raises(ConfigError, match="checkpoints"):
        make_teacher("less", TeacherContext())
