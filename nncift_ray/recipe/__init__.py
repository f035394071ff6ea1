"""The recipe: one frozen tree from YAML, overridden by the command line, checked before Ray starts.

Only the keys of the shortest recipe have no default::

    run_dir: runs/mine
    data: {candidates: [corpus.jsonl], targets: [benchmark.jsonl]}   # targets optional
    teacher: {kind: delift_se}
    selection: {objective: facility_location, budget: 0.1}           # fraction, count, {tokens: 5M}
"""

from __future__ import annotations

from nncift_ray.recipe.loading import apply_override, dump_config, load_config, make_config
from nncift_ray.recipe.sections import (
    BUILT_IN_TEACHERS,
    ClusterConfig,
    Config,
    DataConfig,
    EmbedderConfig,
    EvaluationConfig,
    GenerationConfig,
    InContextConfig,
    JudgeConfig,
    LabelsConfig,
    LessConfig,
    NetworkConfig,
    Objective,
    OptimizerConfig,
    PairScoresConfig,
    PoolConfig,
    QuotasConfig,
    ReportConfig,
    Section,
    SelectionConfig,
    SelectItConfig,
    TeacherConfig,
    TokenBudget,
    TuningConfig,
    parse_count,
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
