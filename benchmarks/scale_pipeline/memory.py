"""Peak resident memory of a run's driver and of its workers, by stage, seen from outside."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass

import psutil

EVERY_SECONDS = 0.5
#: Ray's own servers (object store included) are no workers; their command lines begin otherwise.
WORKER_PREFIXES = ("ray::",)


@dataclass
class Peak:
    """The most seen at once, in bytes; shared memory of Ray's object store is counted in each."""

    driver: int = 0
    worker: int = 0  # the largest single one
    workers: int = 0  # all together


class MemoryWatch(threading.Thread):
    """Looks at a process and its descendants until it is told to stop."""

    def __init__(self, pid: int) -> None:
        """Watch the tree of a process."""
        super().__init__(daemon=True)
        self._driver = psutil.Process(pid)
        self._done = threading.Event()
        self.stage = "start"
        self.peaks: defaultdict[str, Peak] = defaultdict(Peak)

    def run(self) -> None:
        """Look now and then."""
        while not self._done.wait(EVERY_SECONDS):
            self._look()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()
        self.join()

    def _look(self) -> None:
        peak = self.peaks[self.stage]
        try:
            peak.driver = max(peak.driver, self._driver.memory_info().rss)
            sizes = [_worker_size(child) for child in self._driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        peak.worker = max([peak.worker, *sizes])
        peak.workers = max(peak.workers, sum(sizes))


def _worker_size(process: psutil.Process) -> int:
    try:
        name = " ".join(process.cmdline()[:1])
        return process.memory_info().rss if name.startswith(WORKER_PREFIXES) else 0
    except psutil.Error:
        return 0
