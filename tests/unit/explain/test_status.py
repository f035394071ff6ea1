"""What `nncift status` sees of a run: rates, time left and price, from the directory alone."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.errors import StorageError
from nncift_ray.runs import RATE_WINDOW_SECONDS, StatusReader, units_per_second
from nncift_ray.runtime.driver import execute_here, run_stage, stage_fingerprint, stage_folder
from nncift_ray.runtime.files import Location, is_locked, locked
from nncift_ray.runtime.output import BEGUN_NAME, SHARD_FOLDER, ShardRecord, StageBegun
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Resources
from tests.unit.runtime.test_driver import SquareStage

START = datetime.fromisoformat("2026-01-02T03:00:00.000+00:00")
PRICES = {"price_per_cpu_hour": 36.0, "price_per_gpu_hour": 360.0}  # a cent, ten cents a second


def begun_at(start: datetime, units: int = 1000, **fields: Any) -> StageBegun:
    rest = {"stage": "square", "fingerprint": "f", "unit": "rows", "num_items": units}
    rest |= {"num_cpus": 2.0, "num_gpus": 0.0, "num_shards_found": 0}
    return StageBegun(units=units, started_at=start.isoformat(), **(rest | fields))


def shard_ending(at: datetime, units: int, seconds: float = 10.0) -> ShardRecord:
    return ShardRecord(
        start=0, stop=1, parts=(), num_failures=0, seconds=seconds, units=units,
        finished_at=at.isoformat(),
    )  # fmt: skip


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_rate_is_that_of_the_last_minutes() -> None:
    shards = [shard_ending(after(t), 100) for t in (100, 900, 1000)]
    assert units_per_second(begun_at(START), shards, after(1100)) == 200 / RATE_WINDOW_SECONDS


def test_the_rate_of_a_young_stage_is_over_its_whole_time() -> None:
    shards = [shard_ending(after(20), 60), shard_ending(after(40), 60)]
    assert units_per_second(begun_at(START), shards, after(60)) == 2.0


def test_where_nothing_ended_lately_the_rate_is_that_of_all_time() -> None:
    assert units_per_second(begun_at(START), [shard_ending(after(100), 50)], after(1000)) == 0.05


def test_what_an_earlier_run_did_says_nothing_of_the_speed_of_this_one() -> None:
    shards = [shard_ending(after(-50), 500)]
    assert units_per_second(begun_at(START), shards, after(100)) is None


def test_a_worker_whose_clock_is_ahead_is_believed_to_have_ended_now() -> None:
    assert units_per_second(begun_at(START), [shard_ending(after(500), 100)], after(50)) == 2.0


class Halted(Exception):  # noqa: N818
    """Ends a stage in the middle, as a signal would."""


def write_run(folder: Path, stage: SquareStage, *, halt_after: int | None = None) -> None:
    """Run a stage, perhaps not to its end, and write the record of a run around it."""
    left = halt_after

    class Halting(SilentReporter):
        def shard_finished(self, name: str, record: ShardRecord) -> None:
            nonlocal left
            left = None if left is None else left - 1
            if left == 0:
                raise Halted

    record = {
        "config": {"cluster": PRICES | {"of_another_version": 1}},
        "stage_names": ["square", "later"],
        "stages": {"square": stage_fingerprint(stage)},
    }
    (folder / "run.json").write_text(json.dumps(record))
    try:
        run_stage(stage, Location.of(str(folder)), execute=execute_here, reporter=Halting())
    except Halted:
        return


def date_records(folder: Path, stage: SquareStage, ends: list[datetime], seconds: float) -> None:
    """Give the records of a halted stage times that a test can compute with."""
    home = Path(stage_folder(stage, Location.of(str(folder))).path)
    begun = json.loads((home / BEGUN_NAME).read_text()) | {"started_at": START.isoformat()}
    (home / BEGUN_NAME).write_text(json.dumps(begun))
    for file, end in zip(sorted((home / SHARD_FOLDER).iterdir()), ends, strict=True):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"finished_at": end.isoformat(), "seconds": seconds}))


def test_a_stage_in_progress_shows_rate_time_left_and_price(tmp_path: Path) -> None:
    stage = SquareStage(count=100, shard=10)
    stage.resources = Resources(num_cpus=2)
    write_run(tmp_path, stage, halt_after=3)
    date_records(tmp_path, stage, [after(10), after(20), after(30)], seconds=20.0)
    found = StatusReader(str(tmp_path)).read(after(60))
    square, later = found.stages
    assert (square.state, later.state, found.running) == ("begun", "missing", False)
    assert (square.units_done, square.units, square.unit) == (30, 100, "rows")
    assert square.units_per_second == 0.5
    assert square.seconds_left == 140.0
    assert square.last_sign == after(30).isoformat()
    # Three shards of 20 s by workers of 2 CPUs at a cent a second each.
    assert square.cost_usd == pytest.approx(1.20)
    assert found.cost_usd == pytest.approx(1.20)


def test_a_worker_with_a_gpu_costs_its_gpu(tmp_path: Path) -> None:
    stage = SquareStage(count=20, shard=10)
    stage.resources = Resources(num_cpus=2, num_gpus=1)
    write_run(tmp_path, stage, halt_after=1)
    date_records(tmp_path, stage, [after(10)], seconds=30.0)
    assert StatusReader(str(tmp_path)).read(after(60)).cost_usd == pytest.approx(3.0)


def test_a_stage_is_running_while_its_run_holds_the_lock(tmp_path: Path) -> None:
    write_run(tmp_path, SquareStage(count=20, shard=10), halt_after=1)
    run_dir = Location.of(str(tmp_path))
    reader = StatusReader(str(tmp_path))
    assert is_locked(run_dir) is False
    with locked(run_dir):
        assert is_locked(run_dir) is True
        found = reader.read()
        assert (found.running, found.stages[0].state) == (True, "running")
    found = reader.read()
    assert (found.running, found.stages[0].state) == (False, "begun")


def test_looking_keeps_nobody_from_running(tmp_path: Path) -> None:
    run_dir = Location.of(str(tmp_path))
    with locked(run_dir):
        assert is_locked(run_dir)
    assert is_locked(run_dir) is False
    with locked(run_dir), pytest.raises(StorageError, match="another run is working"):
        with locked(run_dir):
            pass


def test_a_reader_that_looks_again_sees_what_is_new(tmp_path: Path) -> None:
    stage = SquareStage(count=40, shard=10)
    write_run(tmp_path, stage, halt_after=1)
    reader = StatusReader(str(tmp_path))
    assert reader.read().stages[0].units_done == 10
    write_run(tmp_path, stage, halt_after=2)
    assert reader.read().stages[0].units_done == 30
    write_run(tmp_path, stage)
    square = reader.read().stages[0]
    assert (square.state, square.num_items, square.num_shards) == ("done", 40, 4)
    assert square.num_rows == 40


def test_a_reader_reads_a_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, SquareStage(count=40, shard=10), halt_after=3)
    reader = StatusReader(str(tmp_path))
    reader.read()
    read: list[str] = []
    plain = Location.read_bytes
    monkeypatch.setattr(
        Location, "read_bytes", lambda self: (read.append(self.name), plain(self))[1]
    )
    reader.read()
    assert sorted(read) == [BEGUN_NAME, "run.json"]
