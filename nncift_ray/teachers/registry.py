"""The registry of teachers: the built-in kinds, and classes of the user's own by import path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from nncift_ray.errors import ConfigError
from nncift_ray.teachers.base import Teacher, TeacherContext
from nncift_ray.teachers.delift import DeliftTeacher
from nncift_ray.teachers.delift_se import DeliftSeTeacher
from nncift_ray.teachers.less import LessTeacher
from nncift_ray.teachers.selectit import SelectItTeacher

TEACHERS: dict[str, type[Any]] = {
    "delift": DeliftTeacher,
    "delift_se": DeliftSeTeacher,
    "less": LessTeacher,
    "selectit": SelectItTeacher,
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
    if kind in TEACHERS:
        return TEACHERS[kind]
    choices = f"choose one of {', '.join(TEACHERS)}, or give a class as package.module:Class"
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
            "(nncift_ray/models/teachers/protocol.py); its attributes must belong to the class"
        )
    if not isinstance(inspect.getattr_static(found, "utility"), staticmethod):
        raise ConfigError(f"{kind}.utility must be a staticmethod: labels are made without a model")
    if found.kind not in ("pairwise", "pointwise"):
        raise ConfigError(f"{kind}.kind must be pairwise or pointwise, not {found.kind!r}")
