"""How much memory a process may still take: a container has less than its machine."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
#: Limit, use and statistics of control groups version 2 and version 1, with the statistic that
#: counts cached files, which make room when memory is asked for.
_LAYOUTS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the bytes that the machine, and the container if this is one, still have."""
    free = int(psutil.virtual_memory().available)
    for limit_name, used_name, statistics_name, cached_key in _LAYOUTS:
        try:
            limit = int((cgroups / limit_name).read_text())  # "max": no limit
            used = int((cgroups / used_name).read_text())
            statistics = (cgroups / statistics_name).read_text().split()
        except (OSError, ValueError):
            continue
        cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cached_key, "0")
        free = min(free, max(0, limit - used + int(cached)))
    return free
