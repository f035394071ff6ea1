"""Teachers: the Protocol, the built-in ones and the registry."""

from __future__ import annotations

from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    needs_gradients,
)
from nncift_ray.teachers.delift import DeliftTeacher
from nncift_ray.teachers.delift_se import DeliftSeTeacher
from nncift_ray.teachers.less import LessTeacher
from nncift_ray.teachers.registry import TEACHERS, load_teacher_class, make_teacher
from nncift_ray.teachers.selectit import SelectItTeacher

__all__ = [
    "TEACHERS",
    "DeliftSeTeacher",
    "DeliftTeacher",
    "LabelRequest",
    "LessTeacher",
    "Measurement",
    "MeasurementFailure",
    "SelectItTeacher",
    "Teacher",
    "TeacherContext",
    "load_teacher_class",
    "make_teacher",
    "needs_gradients",
]
