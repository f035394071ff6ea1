"""The pipeline: a recipe to stages, stages to a ranked subset and its report."""

from nncift_ray.pipeline.planner import RunPlan, make_plan
from nncift_ray.pipeline.runner import RunResult, run
from nncift_ray.pipeline.status import RunStatus, read_status

__all__ = ["RunPlan", "RunResult", "RunStatus", "make_plan", "read_status", "run"]
