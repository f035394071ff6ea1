"""The driver: skip, shard, run, record, resume - with a stage that needs neither Ray nor models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from nncift_ray.errors import ModelError, StageError, StorageError
from nncift_ray.runtime.driver import (
    MAX_LOST_SHARDS,
    execute_here,
    finished_shards,
    plan_shards,
    run_stage,
    stage_folder,
)
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import (
    ERRORS_HELD,
    MANIFEST_NAME,
    ShardRecord,
    Sink,
    StageOutput,
    shard_name,
)
from nncift_ray.runtime.progress import LineReporter, SilentReporter
from nncift_ray.runtime.shards import (
    ATTEMPTS_FOLDER,
    LAST,
    WHOLE,
    CrashLog,
    ShardOutcome,
    ShardRunner,
)
from nncift_ray.runtime.step import DRIVER_INPUT_BYTES, Resources, Shard, Stage, Worker
from tests.stages import RowsStage

SQUARES = pa.schema([pa.field("item", pa.int64()), pa.field("square", pa.int64())])


class SquareStage(RowsStage):
    """Squares its item numbers; can be told to fail."""

    name: ClassVar[str] = "square"
    produces = {"squares": SQUARES}

    def __init__(self, count: int, shard: int, power: int = 2) -> None:
        self.items, self.shard, self.power = count, shard, power
        self.calls: list[Shard] = []
        self.num_loads = 0
        self.load_error: Exception | None = None
        self.fail_at: set[int] = set()
        self.error: BaseException = RuntimeError("broken")
        self.bad_rows: set[int] = set()
        self.schema = SQUARES

    def settings(self) -> dict[str, Any]:
        return {"count": self.items, "power": self.power}

    @property
    def shard_items(self) -> int:
        return self.shard

    def make_worker(self) -> Worker:
        self.num_loads += 1
        if self.load_error is not None:
            raise self.load_error

        def square(shard: Shard, sink: Sink) -> None:
            self.calls.append(shard)
            for item in range(shard.start, shard.stop):
                if item in self.fail_at:
                    raise self.error
                if item in self.bad_rows:
                    sink.error("bad", f"item {item} is bad")
                    continue
                row = {"item": item, "square": item**self.power}
                sink.write_rows("squares", [row], self.schema)

        return square


def run(stage: Stage, folder: Path) -> StageOutput:
    return run_stage(
        stage, Location.of(str(folder)), execute=execute_here, reporter=SilentReporter()
    )


@pytest.mark.parametrize(
    ("change", "in_driver"),
    [
        ({}, True),
        ({"items": 2}, False),
        ({"isolated": True}, False),
        ({"divisible": True}, False),
        ({"resources": Resources(num_gpus=0.5)}, False),
        ({"resources": Resources(labels={"zone": "a"})}, False),
        ({"resources": Resources(custom={"licence": 1})}, False),
        ({"input_bytes": lambda: DRIVER_INPUT_BYTES + 1}, False),
    ],
)
def test_one_small_item_that_asks_for_nothing_special_needs_no_actor(
    change: dict[str, Any], in_driver: bool
) -> None:
    stage = SquareStage(1, 1)
    for name, value in change.items():
        setattr(stage, name, value)
    assert stage.runs_in_driver() is in_driver


def test_what_a_stage_may_read_is_the_size_of_its_inputs(tmp_path: Path) -> None:
    output = run(SquareStage(4, 1), tmp_path)
    reading = SquareStage(1, 1)
    reading.inputs = {"first": output, "again": output}
    size = sum(location.size() or 0 for location, _ in output.table_parts("squares"))
    assert reading.input_bytes() == 2 * size


def squares(output: StageOutput) -> list[Any]:
    return output.read("squares", schema=SQUARES)["square"].to_pylist()


def test_rows_are_the_same_whatever_the_shard_size(tmp_path: Path) -> None:
    by_size = [squares(run(SquareStage(10, size), tmp_path / str(size))) for size in (1, 3, 10, 99)]
    assert by_size == [[i * i for i in range(10)]] * 4


def test_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    run(SquareStage(4, 2), tmp_path)
    again = SquareStage(4, 3)
    assert squares(run(again, tmp_path)) == [0, 1, 4, 9]
    assert again.calls == []


def test_other_settings_get_their_own_folder(tmp_path: Path) -> None:
    run(SquareStage(3, 1), tmp_path)
    assert squares(run(SquareStage(3, 1, power=3), tmp_path)) == [0, 1, 8]


def test_resume_with_another_shard_size_runs_only_what_is_missing(tmp_path: Path) -> None:
    broken = SquareStage(10, 2)
    broken.fail_at = {5}
    with pytest.raises(StageError, match="items 4..6"):
        run(broken, tmp_path)
    resumed = SquareStage(10, 3)
    assert squares(run(resumed, tmp_path)) == [i * i for i in range(10)]
    assert resumed.calls == [Shard(4, 6)]


class SumStage(SquareStage):
    """Adds the squares up once all are there."""

    name: ClassVar[str] = "sum"
    produces = {"squares": SQUARES, "sums": SQUARES}
    broken = False

    def finish(self, output: StageOutput, sink: Sink) -> None:
        if self.broken:
            raise StageError("no sum")
        sink.write_rows("sums", [{"item": self.items, "square": sum(squares(output))}], SQUARES)
        sink.error("rounded", "not quite")
        sink.facts["summed"] = True


def test_what_is_made_of_all_shards_is_part_of_the_output(tmp_path: Path) -> None:
    output = run(SumStage(10, 3), tmp_path)
    assert output.read("sums").to_pylist() == [{"item": 10, "square": 285}]
    assert squares(output) == [i * i for i in range(10)]
    assert output.manifest.num_failures == output.num_rows("errors") == 1
    assert output.manifest.facts() == {"summed": True}


def test_shards_stand_when_what_is_made_of_them_fails(tmp_path: Path) -> None:
    broken = SumStage(10, 3)
    broken.broken = True
    with pytest.raises(StageError, match="no sum"):
        run(broken, tmp_path)
    again = SumStage(10, 3)
    assert run(again, tmp_path).num_rows("sums") == 1
    assert again.calls == []


def test_other_shards_are_finished_when_one_fails(tmp_path: Path) -> None:
    broken = SquareStage(6, 1)
    broken.fail_at = {2}
    with pytest.raises(StageError, match="5 other shard"):
        run(broken, tmp_path)
    assert len(finished_shards(stage_folder(broken, Location.of(str(tmp_path))))) == 5


def test_a_failed_shard_is_tried_once_more(tmp_path: Path) -> None:
    flaky = SquareStage(3, 1)
    flaky.fail_at = {1}

    def heal_after_first(
        stage: Stage, folder: Location, shards: list[Shard]
    ) -> Iterator[ShardOutcome]:
        yield from execute_here(stage, folder, shards)
        flaky.fail_at = set()

    run_dir = Location.of(str(tmp_path))
    output = run_stage(flaky, run_dir, execute=heal_after_first, reporter=SilentReporter())
    assert squares(output) == [0, 1, 4]


def test_a_users_error_keeps_its_class_and_is_not_retried(tmp_path: Path) -> None:
    stage = SquareStage(1, 1)
    stage.fail_at, stage.error = {0}, ModelError("no such model; install it")
    with pytest.raises(ModelError, match="no such model; install it"):
        run(stage, tmp_path)
    assert len(stage.calls) == 1


def run_everywhere(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
    """Give every shard an actor of its own, which tries to make a worker."""
    for shard in shards:
        yield from execute_here(stage, folder, [shard])


def test_a_model_that_cannot_be_loaded_is_loaded_once_however_many_shards(tmp_path: Path) -> None:
    stage = SquareStage(50, 1)
    stage.load_error = ModelError("no such model; install it")
    run_dir = Location.of(str(tmp_path))
    with pytest.raises(ModelError, match="no such model; install it"):
        run_stage(stage, run_dir, execute=run_everywhere, reporter=SilentReporter())
    assert stage.num_loads == 1


def test_memory_that_never_suffices_to_load_stops_the_stage_with_advice(tmp_path: Path) -> None:
    stage = SquareStage(50, 1)
    stage.load_error = MemoryError("2 GiB wanted")
    run_dir = Location.of(str(tmp_path))
    with pytest.raises(StageError, match="not enough memory.*pool.num_cpus"):
        run_stage(stage, run_dir, execute=run_everywhere, reporter=SilentReporter())
    assert stage.num_loads == MAX_LOST_SHARDS


def test_a_worker_that_leaves_by_sys_exit_is_an_error_like_others(tmp_path: Path) -> None:
    stage = SquareStage(3, 1)
    stage.fail_at, stage.error = {1}, SystemExit("enough")
    with pytest.raises(StageError, match="items 1..2: SystemExit: enough"):
        run(stage, tmp_path)


def test_a_part_that_lost_bytes_is_computed_again(tmp_path: Path) -> None:
    first = run(SquareStage(4, 2), tmp_path)
    (first.folder / MANIFEST_NAME).delete()
    part = first.manifest.table_parts("squares")[0]
    (first.folder / part.name).write_bytes(b"truncated")
    again = SquareStage(4, 2)
    assert squares(run(again, tmp_path)) == [0, 1, 4, 9]
    assert again.calls == [Shard(0, 2)]


def test_leftover_temporary_files_are_removed(tmp_path: Path) -> None:
    stage = SquareStage(2, 1)
    folder = tmp_path / "square" / stage_folder(stage, Location.of(str(tmp_path))).name
    (folder / "squares").mkdir(parents=True)
    leftover = folder / "squares" / "part.parquet.tmp-0011aabb"
    leftover.write_bytes(b"half")
    run(stage, tmp_path)
    assert not leftover.exists()


def test_bad_rows_are_recorded_and_counted(tmp_path: Path) -> None:
    stage = SquareStage(4, 2)
    stage.bad_rows = {1}
    output = run(stage, tmp_path)
    assert squares(output) == [0, 4, 9]
    assert output.manifest.num_failures == 1
    assert output.read("errors").to_pylist()[0]["message"] == "item 1 is bad"


def test_too_many_bad_rows_stop_the_stage_with_count_and_place(tmp_path: Path) -> None:
    stage = SquareStage(4, 2)
    stage.bad_rows, stage.max_failed_fraction = {1, 2}, 0.25
    with pytest.raises(StageError, match=r"2 of 4 rows failed.*errors.*\n.*item 1 is bad"):
        run(stage, tmp_path)


def test_an_undeclared_schema_is_refused_with_both_sides(tmp_path: Path) -> None:
    stage = SquareStage(1, 1)
    stage.schema = pa.schema([pa.field("item", pa.int32()), pa.field("square", pa.int64())])
    with pytest.raises(StageError, match="(?s)int32.*but declares.*int64") as caught:
        run(stage, tmp_path)
    assert "squares" in str(caught.value)


def test_a_stage_with_no_items_is_complete_and_empty(tmp_path: Path) -> None:
    assert squares(run(SquareStage(0, 5), tmp_path)) == []


def test_outcomes_survive_the_way_between_processes() -> None:
    outcome = ShardOutcome(start=3, stop=9, error_type="ValueError", cause="killed")
    assert ShardOutcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_progress_says_what_was_skipped_and_resumed(tmp_path: Path) -> None:
    lines: list[str] = []
    broken = SquareStage(4, 1)
    broken.fail_at = {3}
    with pytest.raises(StageError):
        run(broken, tmp_path)
    for _ in range(2):
        run_stage(
            SquareStage(4, 1),
            Location.of(str(tmp_path)),
            execute=execute_here,
            reporter=LineReporter(lines.append),
        )
    assert lines[0] == "[square] started: 4 rows, 3 finished by an earlier run"
    assert lines[-1] == "[square] already done, skipped"


def test_an_overlapping_record_of_a_worker_that_outlived_its_driver_is_left_out(
    tmp_path: Path,
) -> None:
    stage = SquareStage(10, 4)
    folder = stage_folder(stage, Location.of(str(tmp_path)))
    for shard in (Shard(0, 4), Shard(2, 7)):
        ShardRunner(stage, folder, "session").execute(shard)
    assert squares(run(SquareStage(10, 3), tmp_path)) == [i * i for i in range(10)]


def test_a_shard_handed_out_again_after_its_record_was_written_is_not_done_again(
    tmp_path: Path,
) -> None:
    folder, shard, stage = Location.of(str(tmp_path)), Shard(0, 2), SquareStage(2, 2)
    first = ShardRunner(stage, folder, "session").run(shard)
    stage.calls.clear()
    again = ShardRunner(stage, folder, "session").run(shard)
    assert again == first
    assert stage.calls == []
    assert first.record is not None
    (folder / first.record.parts[0].name).delete()
    assert ShardRunner(stage, folder, "session").run(shard).record is not None
    assert stage.calls == [shard]


@pytest.mark.parametrize(("step", "cause"), [(WHOLE, ""), (LAST, "killed")])
def test_a_shard_found_written_is_known_for_one_that_had_rows_left_out(
    tmp_path: Path, step: str, cause: str
) -> None:
    folder, shard, stage = Location.of(str(tmp_path)), Shard(0, 2), SquareStage(2, 2)
    written = ShardRunner(stage, folder, "session").run(shard)
    attempts = folder / ATTEMPTS_FOLDER / "session"
    file = attempts / f"{shard_name(0, 2)}.json"
    with CrashLog(file).step(step):
        left_behind = file.read_bytes()  # as a worker that is lost in this step leaves it
    file.write_bytes(left_behind)
    assert ShardRunner(stage, folder, "session").run(shard) == written.model_copy(
        update={"cause": cause}
    )
    assert not file.exists()


def test_a_worker_that_wrote_to_another_disk_is_found_out(tmp_path: Path) -> None:
    def lose_parts(stage: Stage, folder: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
        for outcome in execute_here(stage, folder, shards):
            assert outcome.record is not None
            (folder / outcome.record.parts[0].name).delete()
            yield outcome

    with pytest.raises(StorageError, match="run_dir must be a disk they share"):
        run_stage(
            SquareStage(2, 1),
            Location.of(str(tmp_path)),
            execute=lose_parts,
            reporter=SilentReporter(),
        )


def test_many_bad_rows_are_streamed_and_none_is_lost(tmp_path: Path) -> None:
    stage = SquareStage(ERRORS_HELD * 2 + 5, 99_999)
    stage.bad_rows = set(range(ERRORS_HELD * 2 + 3))
    output = run(stage, tmp_path)
    assert output.num_rows("errors") == output.manifest.num_failures == ERRORS_HELD * 2 + 3


def test_shards_are_cut_out_of_what_no_finished_one_covers() -> None:
    records = [ShardRecord(start=a, stop=b, parts=(), num_failures=0, seconds=0) for a, b in (
        (4, 6), (0, 2)
    )]  # fmt: skip
    stage = SquareStage(10, 3)
    assert plan_shards(stage, 10, records) == [Shard(2, 4), Shard(6, 9), Shard(9, 10)]
    assert plan_shards(stage, 0, []) == []
