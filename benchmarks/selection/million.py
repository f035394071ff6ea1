"""A million lists in a process of its own, so that the peak of memory is that of this job.

python -m benchmarks.selection.million hub 1000000 64 100000
"""

from __future__ import annotations

import json
import resource
import sys
import time

from benchmarks.selection.instances import draw_lists
from nncift_ray.selection.budgets import Budget
from nncift_ray.selection.greedy import lazy_greedy
from nncift_ray.selection.objectives import facility_location

SMALL = 1000


def main() -> None:
    """Draw, select, print one line of JSON."""
    kind, (rows, per_row, budget) = sys.argv[1], map(int, sys.argv[2:])
    small = draw_lists(kind, SMALL, per_row)
    lazy_greedy(facility_location(small), Budget(max_count=SMALL // 10))  # compiles
    scores = draw_lists(kind, rows, per_row)
    drawn_gb = _peak_gb()
    wall, cpu = time.perf_counter(), time.process_time()
    problem = facility_location(scores).problem()
    turned = time.process_time() - cpu
    ranking = lazy_greedy(problem, Budget(max_count=budget))
    print(
        json.dumps(
            {
                "seconds": round(time.process_time() - cpu, 2),
                "wall_seconds": round(time.perf_counter() - wall, 2),
                "by_column_seconds": round(turned, 2),
                "peak_gb": round(_peak_gb(), 2),
                "lists_gb": round(drawn_gb, 2),
                "value": ranking.value,
                "share_of_best": ranking.share_of_best,
            }
        )
    )


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
