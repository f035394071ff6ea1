"""Reading a data set to its end, with a watch on the processes behind it and, if asked, a kill."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ORPHAN_SECONDS = 10.0


@dataclass
class Watched:
    """What came out of a run, and what its actor looked like."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of the rows
    orphans: int = 0  # processes of a killed actor that still run
    processes: list[dict[str, Any]] = field(default_factory=list)
    raised: str | None = None

    @property
    def first_request_at(self) -> float:
        """When the engine was first asked."""
        return min(row["started"] for row in self.rows if row.get("started"))

    def speeds(self) -> dict[str, float]:
        """Requests per second, and the seconds before the first request."""
        return {
            "requests_per_second": len(self.rows) / (self.ended - self.first_request_at),
            "requests_per_second_with_start": len(self.rows) / (self.ended - self.begun),
            "start_seconds": self.first_request_at - self.begun,
        }


def engine_processes() -> list[psutil.Process]:
    """Return the actor that holds an engine and the processes below it, the actor first."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::MapWorker"):
                below = process.children(recursive=True)
                return [process, *(p for p in below if p.status() != psutil.STATUS_ZOMBIE)]
    return []


def describe_processes(processes: list[psutil.Process]) -> list[dict[str, Any]]:
    """Note each process's name, own memory and where its threads may run."""
    notes: list[dict[str, Any]] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            environment = process.environ()
            notes.append(
                {
                    "name": Path(process.cmdline()[0]).name,
                    "own_mib": round(process.memory_full_info().uss / 2**20),
                    "omp_num_threads": environment.get("OMP_NUM_THREADS"),
                    "omp_places": environment.get("OMP_PLACES"),
                }
            )
    return notes


def watch(data: Any, *, kill: str | None = None) -> Watched:
    """Read a data set to its end; ``kill`` ends the "engine" or "actor" after the first row."""
    seen = Watched(begun=time.time())
    try:
        for row in data.iter_rows():
            seen.rows.append(row)
            seen.arrivals.append(time.time())
            if kill is not None and len(seen.rows) == 1:
                processes = engine_processes()
                seen.processes = describe_processes(processes)
                seen.orphans = kill_engine(processes, kill)
    except Exception as error:  # noqa: BLE001  (what it raises is what is measured)
        seen.raised = f"{type(error).__name__}: {str(error).strip()[-200:]}"
    seen.ended = time.time()
    return seen


def kill_engine(processes: list[psutil.Process], what: str) -> int:
    """Kill the actor or the engine's process below it; returns how many outlive the actor."""
    actor, *below = processes
    engines = [process for process in below if process.cmdline()[0].startswith("VLLM")]
    victim = engines[0] if what == "engine" else actor
    victim.send_signal(signal.SIGKILL)
    if victim is not actor:
        return 0
    _, alive = psutil.wait_procs(below, timeout=ORPHAN_SECONDS)
    return len(alive)


def describe_kill(seen: Watched) -> dict[str, Any]:
    """What a kill cost."""
    return {
        "raised": seen.raised,
        "longest_pause_seconds": float(np.diff(seen.arrivals).max(initial=0.0)),
        "rows_before": int(np.argmax(np.diff(seen.arrivals))) + 1 if len(seen.rows) > 1 else 0,
        "seconds": seen.ended - seen.begun,
        "orphans": seen.orphans,
        "processes": seen.processes,
    }
