"""Teachers: the Protocol, the built-in ones and the registry."""

from nncift_ray.models.teachers.delift import DeliftTeacher
from nncift_ray.models.teachers.delift_se import DeliftSeTeacher
from nncift_ray.models.teachers.less import LessTeacher
from nncift_ray.models.teachers.protocol import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    needs_gradients,
)
from nncift_ray.models.teachers.registry import TEACHERS, load_teacher_class, make_teacher
from nncift_ray.models.teachers.selectit import SelectItTeacher

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
