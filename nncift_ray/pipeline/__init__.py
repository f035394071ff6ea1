"""The pipeline: a recipe to stages, stages to a ranked subset and its report."""

from nncift_ray.pipeline.opening import OpenedRun, open_run
from nncift_ray.pipeline.planner import RunPlan, make_plan
from nncift_ray.pipeline.querying import QueryAnswer, query
from nncift_ray.pipeline.runner import RunResult, run
from nncift_ray.pipeline.status import RunStatus, read_status

__all__ = [
    "OpenedRun",
    "QueryAnswer",
    "RunPlan",
    "RunResult",
    "RunStatus",
    "make_plan",
    "open_run",
    "query",
    "read_status",
    "run",
]
