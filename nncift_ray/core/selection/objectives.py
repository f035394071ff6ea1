"""The set functions: what a good subset is, apart from how it is searched (`greedy`).

| objective | kind | reads | monotone |
|---|---|---|---|
| FacilityLocation | coverage | within (or cross) | yes |
| FacilityLocationMutualInformation | coverage | within, cross | yes |
| FacilityLocationQueryMutualInformation | coverage | cross | yes |
| FacilityLocationConditionalGain | coverage | within, existing | yes |
| SaturatedCoverage | saturation | within (or cross) | yes |
| GraphCut | pairwise | within | for symmetric s and lambda <= 1/2 |
| GraphCutConditionalGain | pairwise | within, existing | no |
| GraphCutMutualInformation | modular | cross | yes |
| TopScores | modular | points, or cross or within | where no score is negative |
"""

from nncift_ray.core.selection.coverage import (
    FacilityLocation,
    FacilityLocationConditionalGain,
    FacilityLocationMutualInformation,
    FacilityLocationQueryMutualInformation,
    coverage,
)
from nncift_ray.core.selection.cut import (
    GraphCut,
    GraphCutConditionalGain,
    GraphCutMutualInformation,
)
from nncift_ray.core.selection.modular import TopScores
from nncift_ray.core.selection.problem import Objective, Problem
from nncift_ray.core.selection.saturated import SaturatedCoverage

__all__ = [
    "FacilityLocation",
    "FacilityLocationConditionalGain",
    "FacilityLocationMutualInformation",
    "FacilityLocationQueryMutualInformation",
    "GraphCut",
    "GraphCutConditionalGain",
    "GraphCutMutualInformation",
    "Objective",
    "Problem",
    "SaturatedCoverage",
    "TopScores",
    "coverage",
]
