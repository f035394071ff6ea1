"""The recipe: one frozen tree from YAML, overridden by the command line, checked before Ray starts.

Only the keys of the shortest recipe have no default::

    run_dir: runs/mine
    data: {candidates: [corpus.jsonl], targets: [benchmark.jsonl]}   # targets optional
    teacher: {kind: delift_se}
    selection: {objective: facility_location, budget: 0.1}           # fraction, count, {tokens: 5M}
"""

from __future__ import annotations

from nncift_ray.config.data import DataConfig, EmbedderConfig
from nncift_ray.config.evaluation import (
    EvaluationConfig,
    GenerationConfig,
    InContextConfig,
    JudgeConfig,
    TuningConfig,
)
from nncift_ray.config.loading import apply_override, dump_config, load_config, make_config
from nncift_ray.config.optimizer import OptimizerConfig
from nncift_ray.config.quotas import QuotasConfig
from nncift_ray.config.recipe import ClusterConfig, Config, ReportConfig
from nncift_ray.config.scoring import NetworkConfig, PairScoresConfig
from nncift_ray.config.sections import PoolConfig, Section, parse_count
from nncift_ray.config.selection import Objective, SelectionConfig, TokenBudget
from nncift_ray.config.teacher import (
    BUILT_IN_TEACHERS,
    LabelsConfig,
    LessConfig,
    SelectItConfig,
    TeacherConfig,
)

__all__ = [
    "BUILT_IN_TEACHERS",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EmbedderConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "InContextConfig",
    "JudgeConfig",
    "LabelsConfig",
    "LessConfig",
    "NetworkConfig",
    "Objective",
    "OptimizerConfig",
    "PairScoresConfig",
    "PoolConfig",
    "QuotasConfig",
    "ReportConfig",
    "Section",
    "SelectItConfig",
    "SelectionConfig",
    "TeacherConfig",
    "TokenBudget",
    "TuningConfig",
    "apply_override",
    "dump_config",
    "load_config",
    "make_config",
    "parse_count",
]
