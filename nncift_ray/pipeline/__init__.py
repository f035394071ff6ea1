"""The pipeline: a recipe to stages, stages to a ranked subset and its report.

What is named here is imported when it is first asked for: a worker that unpickles one factory of
this package needs neither the report nor the planner, which take seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncift_ray.pipeline.extending import ExtensionPlan, extend, plan_extension
    from nncift_ray.pipeline.opening import OpenedRun, open_run
    from nncift_ray.pipeline.planner import RunPlan, make_plan
    from nncift_ray.pipeline.querying import QueryAnswer, query
    from nncift_ray.pipeline.runner import RunResult, run
    from nncift_ray.pipeline.status import RunStatus, read_status

__all__ = [
    "ExtensionPlan",
    "OpenedRun",
    "QueryAnswer",
    "RunPlan",
    "RunResult",
    "RunStatus",
    "extend",
    "make_plan",
    "open_run",
    "plan_extension",
    "query",
    "read_status",
    "run",
]

_MODULES = {
    "extending": ("ExtensionPlan", "extend", "plan_extension"),
    "opening": ("OpenedRun", "open_run"),
    "planner": ("RunPlan", "make_plan"),
    "querying": ("QueryAnswer", "query"),
    "runner": ("RunResult", "run"),
    "status": ("RunStatus", "read_status"),
}
_HOME_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what a name stands for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
