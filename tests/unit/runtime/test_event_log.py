"""The log for machines: one JSON object an event, with run, stage and shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.errors import StageError
from nncift_ray.runtime.driver import execute_here, run_stage, stage_fingerprint, stage_folder
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import BEGUN_NAME, ShardRecord, StageBegun
from nncift_ray.runtime.progress import EventLog, Reporter, SilentReporter
from tests.unit.runtime.test_driver import SquareStage


def logged(stage: SquareStage, folder: Path) -> list[dict[str, Any]]:
    lines: list[str] = []
    log = EventLog("mine", lines.append)
    try:
        run_stage(stage, Location.of(str(folder)), execute=execute_here, reporter=log)
    except StageError:
        pass
    return [json.loads(line) for line in lines]


def test_a_stage_is_told_from_begin_to_end_with_its_shards(tmp_path: Path) -> None:
    stage = SquareStage(count=10, shard=4)
    stage.bad_rows = {5}
    events = logged(stage, tmp_path)
    names = [event["event"] for event in events]
    assert names == ["stage_begun", *["shard_finished"] * 3, "stage_finished"]
    assert {event["run"] for event in events} == {"mine"}
    assert {event["fingerprint"] for event in events} == {stage_fingerprint(stage)}
    assert {"unit": "rows", "units": 10, "done": 0}.items() <= events[0].items()
    assert [event["shard"] for event in events[1:4]] == [
        "0000000000-0000000004", "0000000004-0000000008", "0000000008-0000000010"
    ]  # fmt: skip
    assert [(event["num_rows"], event["num_failures"]) for event in events[1:4]] == [
        (4, 0), (3, 1), (2, 0)
    ]  # fmt: skip
    assert [event["units"] for event in events[1:4]] == [4, 4, 2]


def test_a_failed_shard_is_told_each_time_it_is_given_up(tmp_path: Path) -> None:
    stage = SquareStage(count=4, shard=2)
    stage.fail_at = {3}
    failed = [event for event in logged(stage, tmp_path) if event["event"] == "shard_failed"]
    assert [(event["start"], event["error"]) for event in failed] == [
        (2, "RuntimeError: broken"), (2, "RuntimeError: broken")
    ]  # fmt: skip


def test_a_resumed_stage_says_what_was_found(tmp_path: Path) -> None:
    stage = SquareStage(count=10, shard=5)
    stage.fail_at = {7}
    logged(stage, tmp_path)
    stage.fail_at = set()
    begun, finished, _ = logged(stage, tmp_path)
    assert (begun["done"], begun["num_shards_found"]) == (5, 1)
    assert finished["start"] == 5


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    stage = SquareStage(count=10, shard=5)
    logged(stage, tmp_path)
    assert [event["event"] for event in logged(stage, tmp_path)] == ["stage_skipped"]


def test_a_log_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    stage = SquareStage(count=3, shard=3)
    log = EventLog("mine", full)
    output = run_stage(stage, Location.of(str(tmp_path)), execute=execute_here, reporter=log)
    assert output.num_rows("squares") == 3


def test_the_folder_says_what_is_to_do_until_it_is_done(tmp_path: Path) -> None:
    stage = SquareStage(count=9, shard=3)
    begun_file = stage_folder(stage, Location.of(str(tmp_path))) / BEGUN_NAME
    seen: list[StageBegun] = []

    class Watcher(SilentReporter):
        def shard_finished(self, name: str, record: ShardRecord) -> None:
            seen.append(StageBegun.read(begun_file.read_bytes(), str(begun_file)))

    run_stage(stage, Location.of(str(tmp_path)), execute=execute_here, reporter=Watcher())
    assert [(begun.units, begun.num_items) for begun in seen] == [(9, 9)] * 3
    assert not begun_file.exists()


def test_several_reporters_hear_the_same(tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    both = Reporter(EventLog("mine", first.append), EventLog("mine", second.append))
    stage = SquareStage(count=4, shard=2)
    run_stage(stage, Location.of(str(tmp_path)), execute=execute_here, reporter=both)
    both.notice("look here")
    kinds = [[json.loads(line)["event"] for line in lines] for lines in (first, second)]
    assert kinds[0] == kinds[1]
    assert kinds[0][-1] == "notice"


def test_counts_of_shards_add_up(tmp_path: Path) -> None:
    class TokenStage(SquareStage):
        def make_worker(self):  # noqa: ANN202
            square = super().make_worker()

            def work(shard, sink) -> None:  # noqa: ANN001
                sink.count("tokens", 10 * (shard.stop - shard.start))
                square(shard, sink)

            return work

    output = run_stage(
        TokenStage(count=5, shard=2), Location.of(str(tmp_path)),
        execute=execute_here, reporter=SilentReporter(),
    )  # fmt: skip
    assert [shard.counts for shard in output.manifest.shards] == [
        {"tokens": 20}, {"tokens": 20}, {"tokens": 10}
    ]  # fmt: skip
    assert output.manifest.counts() == {"tokens": 50}


@pytest.mark.parametrize("field", ["counts", "units", "finished_at"])
def test_a_record_of_an_earlier_version_is_still_read(tmp_path: Path, field: str) -> None:
    stage = SquareStage(count=2, shard=2)
    stage.fail_at = set()
    run_stage(stage, Location.of(str(tmp_path)), execute=execute_here, reporter=SilentReporter())
    folder = stage_folder(stage, Location.of(str(tmp_path)))
    manifest = folder / "manifest.json"
    tree = json.loads(manifest.read_bytes())
    for shard in tree["shards"]:
        del shard[field]
    manifest.write_bytes(json.dumps(tree).encode())
    again = run_stage(
        stage, Location.of(str(tmp_path)), execute=execute_here, reporter=SilentReporter()
    )
    assert again.num_rows("squares") == 2
