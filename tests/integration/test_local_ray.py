"""The Ray that a run starts on its machine: metrics that Prometheus can read, on loopback only."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from nncift_ray.errors import DataError, StopRequested
from nncift_ray.library import Run
from nncift_ray.recipe.sections import ClusterConfig
from nncift_ray.runtime.driver import run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import ShardRecord, Sink
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import MetricsReporter, execute_on_ray, metric_names, ray_session
from nncift_ray.runtime.step import Resources, Shard, Worker
from tests.stages import ROWS, RowsStage

pytestmark = pytest.mark.slow

NUM_ITEMS, TOKENS_AN_ITEM, CACHED_AN_ITEM = 6, 100, 40
WORK_SECONDS = 1.0  # so that a worker lives until its metrics are exported
PRICE = 3600.0  # a dollar a second of a CPU
SCRAPE_SECONDS = HEARD_SECONDS = 60.0


class CountingStage(RowsStage):
    """Writes a row an item but for item 0, which is a bad row, and fails its first attempt at 5."""

    name: ClassVar[str] = "counting"
    items = NUM_ITEMS

    def __init__(self, tally: Path) -> None:
        self.tally = tally
        self.resources = Resources(max_actors=2)

    def work(self, shard: Shard, sink: Sink) -> None:
        if shard.start == NUM_ITEMS - 1 and not self.tally.exists():
            self.tally.touch()
            raise RuntimeError("the first attempt fails")
        time.sleep(WORK_SECONDS)
        sink.count("tokens", TOKENS_AN_ITEM)
        sink.count("cached_tokens", CACHED_AN_ITEM)
        if shard.start == 0:
            sink.error("bad", "a bad row")
        else:
            sink.write_rows("rows", [{"row": shard.start}], ROWS)


class WaitingStage(CountingStage):
    """Works on a second item only once the driver has heard of the first."""

    name: ClassVar[str] = "waiting"
    items = 2

    def __init__(self, heard: Path) -> None:
        self.heard = heard
        self.resources = Resources(max_actors=1)

    def make_worker(self) -> Worker:
        finished: list[Shard] = []

        def work(shard: Shard, sink: Sink) -> None:
            deadline = time.monotonic() + HEARD_SECONDS
            while finished and not self.heard.exists():
                assert time.monotonic() < deadline, "the driver has not heard of the first item"
                time.sleep(0.05)
            finished.append(shard)
            sink.write_rows("rows", [{"row": shard.start}], ROWS)

        return work


class Leaver(SilentReporter):
    """Ends the run at the first finished shard."""

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        raise StopRequested


class Listener(SilentReporter):
    """Leaves a file once it hears of a finished shard."""

    def __init__(self, heard: Path) -> None:
        self.heard = heard
        self.failures: list[str] = []

    def shard_finished(self, name: str, record: ShardRecord) -> None:
        self.heard.touch()

    def shard_failed(self, name: str, start: int, stop: int, error: str) -> None:
        self.failures.append(error)


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(ClusterConfig()):
            yield


def scrape() -> dict[str, dict[str, float]]:
    """Return every sample of a run's series by name and stage."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:  # noqa: S310
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("run") == "scraped":
                labels = {"stage": "", **sample.labels}
                found.setdefault(sample.name, {})[labels["stage"]] = sample.value
    return found


def names_in(found: dict[str, Any]) -> set[str]:
    return {name.removesuffix("_count") for name in found}


@pytest.mark.usefixtures("_ray")
def test_prometheus_can_read_what_a_stage_did(tmp_path: Path) -> None:
    reporter = MetricsReporter("scraped", ClusterConfig(price_per_cpu_hour=PRICE))
    run_dir = Location.of(str(tmp_path / "scraped"))
    stage = CountingStage(tmp_path / "tally")
    output = run_stage(stage, run_dir, execute=execute_on_ray, reporter=reporter)
    assert output.manifest.counts() == {"tokens": 600, "cached_tokens": 240}

    wanted = set(metric_names()) - {"ray_nncift_shards_reused_total"}
    found: dict[str, dict[str, float]] = {}
    deadline = time.monotonic() + SCRAPE_SECONDS
    while not wanted <= names_in(found):
        assert time.monotonic() < deadline, f"never seen: {sorted(wanted - names_in(found))}"
        time.sleep(1.0)
        found = scrape()
    values = {name: by_stage.get("counting") for name, by_stage in found.items()}
    assert values["ray_nncift_rows_total"] == NUM_ITEMS - 1
    assert values["ray_nncift_failed_rows_total"] == 1
    assert values["ray_nncift_tokens_total"] == 600
    assert values["ray_nncift_cached_tokens_total"] == 240
    assert values["ray_nncift_shards_finished_total"] == NUM_ITEMS
    assert values["ray_nncift_shards_failed_total"] == 1
    # Of an actor's last second nothing is exported, so attempts are at most what they were.
    assert 1 <= (values["ray_nncift_shards_begun_total"] or 0) <= NUM_ITEMS + 1
    assert values["ray_nncift_shard_seconds_count"] == NUM_ITEMS
    assert values["ray_nncift_progress_ratio"] == 1.0
    seconds = output.manifest.worker_seconds
    assert values["ray_nncift_worker_seconds_total"] == pytest.approx(seconds)
    assert values["ray_nncift_cost_usd_total"] == pytest.approx(seconds * PRICE / 3600)


@pytest.mark.usefixtures("_ray")
def test_nothing_listens_where_another_machine_could_reach_it() -> None:
    listening = {
        (process.name(), connection.laddr.ip, connection.laddr.port)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening, "Ray's processes were not found"
    outside = [one for one in sorted(listening) if not is_loopback(one[1])]
    assert not outside


def is_loopback(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


@pytest.mark.usefixtures("_ray")
def test_the_driver_hears_of_a_shard_before_the_next_is_finished(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    stage, listener = WaitingStage(heard), Listener(heard)
    run_stage(stage, Location.of(str(tmp_path / "run")), execute=execute_on_ray, reporter=listener)
    assert listener.failures == []


class DriverStage(CountingStage):
    """One item, which tells which process works on it."""

    name: ClassVar[str] = "driver"
    items = 1

    def work(self, shard: Shard, sink: Sink) -> None:
        sink.write_rows("rows", [{"row": os.getpid()}], ROWS)


@pytest.mark.usefixtures("_ray")
def test_one_small_item_is_done_by_the_driver_and_an_isolated_one_is_not(tmp_path: Path) -> None:
    run_dir = Location.of(str(tmp_path / "run"))
    processes: list[int] = []
    for name, isolated in (("here", False), ("away", True)):
        stage = type("Stage", (DriverStage,), {"name": name, "isolated": isolated})(tmp_path)
        output = run_stage(stage, run_dir, execute=execute_on_ray, reporter=SilentReporter())
        processes += output.read("rows")["row"].to_pylist()
    assert processes[0] == os.getpid()
    assert processes[1] != os.getpid()


@pytest.mark.usefixtures("_ray")
def test_a_stage_that_is_left_early_leaves_no_thread_that_calls_ray(tmp_path: Path) -> None:
    stage, run_dir = WaitingStage(tmp_path / "never"), Location.of(str(tmp_path / "run"))
    with pytest.raises(StopRequested):
        run_stage(stage, run_dir, execute=execute_on_ray, reporter=Leaver())
    names = {thread.name.partition("-")[0] for thread in threading.enumerate()}
    assert not names & {"outcomes of waiting", "iter_threaded", "StreamingExecutor"}


@pytest.mark.usefixtures("_ray")
def test_ray_reads_a_table_of_a_run_by_its_name(tmp_path: Path) -> None:
    run_dir, nothing = Location.of(str(tmp_path / "run")), cast("Any", None)
    stage = CountingStage(tmp_path / "tally")
    output = run_stage(stage, run_dir, execute=execute_on_ray, reporter=SilentReporter())
    run = Run(run_dir, {}, nothing, {"counting": output})
    assert sorted(run.to_ray("rows").to_pandas()["row"]) == list(range(1, NUM_ITEMS))
    assert run.to_ray("counting/rows").count() == run.table("rows").num_rows
    with pytest.raises(DataError, match="'nowhere' names 0 tables"):
        run.to_ray("nowhere")
