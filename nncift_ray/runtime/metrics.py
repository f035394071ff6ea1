"""What a run tells Prometheus, through Ray's own metrics; docs/observability.md lists the names.

Ray's metrics agent of each node serves them, with ``ray_`` before the names of this file and
``_total`` behind those of counters. The driver records what a finished shard's record says: each
shard once, whatever became of its worker. Workers record only what no record says,
attempts and the seconds it took to load what they work with: what a process records in the seconds
before it ends is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import Reporter

LABELS = ("run", "stage")
SECONDS_PER_HOUR = 3600.0
#: From a shard of a test to one that takes two hours.
SECONDS_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 7200.0)
#: Counters of the driver, and what they count.
COUNTERS = {
    "nncift_rows": "Rows written to the stage's tables, errors aside",
    "nncift_failed_rows": "Rows that went to the stage's errors table",
    "nncift_tokens": "Tokens of the texts that a model worked on, reused ones included",
    "nncift_cached_tokens": "Tokens whose work was reused from a prefix cache",
    "nncift_shards_finished": "Shards finished",
    "nncift_shards_failed": "Shards given up, to be tried again or to stop the stage",
    "nncift_shards_reused": "Shards found finished by an earlier run",
    "nncift_worker_seconds": "Seconds that workers spent on finished shards",
    "nncift_cost_usd": "Estimated price of the finished shards, US dollars",
}
SHARD_SECONDS, WORKER_START_SECONDS = "nncift_shard_seconds", "nncift_worker_start_seconds"
SHARDS_BEGUN, PROGRESS = "nncift_shards_begun", "nncift_progress_ratio"


def run_of(stage_folder: Location) -> str:
    """Return the label of the run that a stage's folder lies in."""
    return stage_folder.path.split("/")[-3]


class MetricsReporter(Reporter):
    """Records what the driver hears; Ray must be connected."""

    def __init__(self, run: str, cluster: ClusterConfig) -> None:
        """Record for a run, with the prices of the recipe."""
        super().__init__()
        self._run, self._cluster = run, cluster
        self._counters = {name: Counter(name, text, LABELS) for name, text in COUNTERS.items()}
        self._shard_seconds = histogram(SHARD_SECONDS, "Seconds of a finished shard")
        self._progress = Gauge(PROGRESS, "Share of the stage's work that is done, 0 to 1", LABELS)
        self._begun: dict[str, StageBegun] = {}
        self._done: dict[str, int] = {}

    def stage_skipped(self, name: str, num_items: int) -> None:
        """Show it as done."""
        self._progress.set(1.0, self._labels(name))

    def stage_started(self, begun: StageBegun, done: int) -> None:
        """Initialise the stage's counters from the shards that earlier runs finished."""
        self._begun[begun.stage], self._done[begun.stage] = begun, done
        self._add(begun.stage, "nncift_shards_reused", begun.num_shards_found)
        self._show_progress(begun.stage)

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        """Add a shard."""
        amounts = {
            "nncift_rows": record.num_rows,
            "nncift_failed_rows": record.num_failures,
            "nncift_tokens": record.counts.get("tokens", 0),
            "nncift_cached_tokens": record.counts.get("cached_tokens", 0),
            "nncift_shards_finished": 1,
            "nncift_worker_seconds": record.seconds,
            "nncift_cost_usd": record.seconds / SECONDS_PER_HOUR * self._hourly_price(name),
        }
        for metric, amount in amounts.items():
            self._add(name, metric, amount)
        self._shard_seconds.observe(record.seconds, self._labels(name))
        self._done[name] = self._done.get(name, 0) + record.units
        self._show_progress(name)

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        """Count it."""
        self._add(name, "nncift_shards_failed", 1)

    def stage_finished(self, name: str, seconds: float, num_failures: int) -> None:
        """Show it as done, also where it had nothing to do."""
        self._progress.set(1.0, self._labels(name))

    def _add(self, stage: str, metric: str, amount: float) -> None:
        if amount > 0:
            self._counters[metric].inc(amount, self._labels(stage))

    def _labels(self, stage: str) -> dict[str, str]:
        return {"run": self._run, "stage": stage}

    def _hourly_price(self, stage: str) -> float:
        begun = self._begun.get(stage)
        return 0.0 if begun is None else self._cluster.hourly_price(begun.num_cpus, begun.num_gpus)

    def _show_progress(self, stage: str) -> None:
        begun = self._begun.get(stage)
        if begun is not None and begun.units:
            self._progress.set(self._done[stage] / begun.units, self._labels(stage))


def metric_names() -> Sequence[str]:
    """Return every name as Prometheus sees it, histograms without their suffixes."""
    counters = [f"ray_{name}_total" for name in (*COUNTERS, SHARDS_BEGUN)]
    others = [f"ray_{name}" for name in (SHARD_SECONDS, WORKER_START_SECONDS, PROGRESS)]
    return [*counters, *others]


def histogram(name: str, text: str) -> Histogram:
    """Make a histogram of seconds."""
    return Histogram(name, text, list(SECONDS_BUCKETS), LABELS)
