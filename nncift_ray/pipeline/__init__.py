"""The pipeline: a recipe to stages, stages to a ranked subset and its report."""

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
