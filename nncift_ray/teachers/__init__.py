"""Teachers: what is asked about pairs or examples, and how it becomes a label."""

from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
)

__all__ = ["LabelRequest", "Measurement", "MeasurementFailure", "Teacher", "TeacherContext"]
