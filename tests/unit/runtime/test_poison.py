"""Rows that kill their worker: found one by one, one error row each, everything else untouched.

A death is simulated by an exception that no stage code may catch, in an executor that does what
Ray does: it makes the actor again and hands it the same shard again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from nncift_ray.errors import EngineDiedError, NnciftError, StageError
from nncift_ray.runtime.driver import (
    Executor,
    execute_here,
    finished_shards,
    run_stage,
    stage_folder,
)
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.progress import LineReporter, SilentReporter
from nncift_ray.runtime.shards import (
    ATTEMPTS_FOLDER,
    LOSSES_PER_DEATH,
    MAX_DEATHS,
    MAX_POISON_OF_AN_ITEM,
)
from nncift_ray.runtime.step import KILLED_WORKER, Shard, Stage, Worker
from tests.stages import RowsStage
from tests.unit.runtime.dying import KilledError, replace_lost_nodes, replace_the_dead

ROWS = pa.schema([pa.field("row", pa.int64()), pa.field("text", pa.string())])
EDGES = (0, 13, 30, 31, 50, 64, 90, 100)  # 100 rows in 7 items
MAX_STARTS = 200


class GroupStage(RowsStage):
    """Writes a text a row; ``deadly`` is asked about all rows of each item it works on."""

    name: ClassVar[str] = "groups"
    produces = {"rows": ROWS}
    items = len(EDGES) - 1
    divisible: ClassVar[bool] = True
    memory_advice: ClassVar[str] = "buy more"

    def __init__(self, deadly: Callable[[Sequence[int]], bool], shard_items: int = 1) -> None:
        self.deadly, self._shard_items = deadly, shard_items
        self.deadly_loads = 0
        self.num_starts = self.num_deaths = 0
        self.death: Callable[[], BaseException] = KilledError

    @property
    def shard_items(self) -> int:
        return self._shard_items

    def row_numbers(self, start: int, stop: int) -> range:
        return range(EDGES[start], EDGES[stop])

    def make_worker(self) -> Worker:
        self.num_starts += 1
        assert self.num_starts < MAX_STARTS, "the search does not end"
        if self.num_starts <= self.deadly_loads:
            self._die()
        return self.work

    def work(self, shard: Shard, sink: Sink) -> None:
        for item in range(shard.start, shard.stop):
            rows = [row for row in range(EDGES[item], EDGES[item + 1]) if wanted(row, shard)]
            skipped = [row for row in rows if row in shard.skip]
            for row in skipped:
                sink.error(KILLED_WORKER, shard.skip[row], example_id=str(row))
            kept = [row for row in rows if row not in shard.skip]
            if self.deadly(kept):
                self._die()
            sink.write_rows("rows", [{"row": row, "text": f"text {row}"} for row in kept], ROWS)

    def _die(self) -> None:
        self.num_deaths += 1
        raise self.death()  # a new one: an error raised again keeps old frames, and their files


class WholeStage(GroupStage):
    """The same, but an item is done whole or not at all."""

    divisible: ClassVar[bool] = False

    def row_numbers(self, start: int, stop: int) -> range:
        return range(start, stop)


def wanted(row: int, shard: Shard) -> bool:
    return shard.rows is None or row in shard.rows


def contains(*poison: int) -> Callable[[Sequence[int]], bool]:
    return lambda rows: not set(poison).isdisjoint(rows)


def run(stage: Stage, folder: Path, execute: Executor = replace_the_dead) -> StageOutput:
    return run_stage(stage, Location.of(str(folder)), execute=execute, reporter=SilentReporter())


def rows_of(output: StageOutput) -> list[Any]:
    return output.read("rows", schema=ROWS)["row"].to_pylist()


def killers_of(output: StageOutput) -> list[int]:
    errors = output.read("errors").to_pylist()
    assert {row["reason"] for row in errors} == {KILLED_WORKER}
    return [int(row["example_id"]) for row in errors]


@pytest.mark.parametrize("shard_items", [1, 3, 7])
@pytest.mark.parametrize("poison", [0, 30, 57, 99])
def test_one_poisonous_row_is_found_and_nothing_else_is_lost(
    tmp_path: Path, poison: int, shard_items: int
) -> None:
    output = run(GroupStage(contains(poison), shard_items), tmp_path)
    assert killers_of(output) == [poison]
    assert rows_of(output) == [row for row in range(100) if row != poison]


def test_two_poisonous_rows_of_one_item_are_both_found(tmp_path: Path) -> None:
    output = run(GroupStage(contains(70, 71)), tmp_path)
    assert killers_of(output) == [70, 71]
    assert rows_of(output) == [row for row in range(100) if row not in (70, 71)]


def test_other_shards_are_written_as_in_an_undisturbed_run(tmp_path: Path) -> None:
    calm = run(GroupStage(contains()), tmp_path / "calm")
    hurt = run(GroupStage(contains(57)), tmp_path / "hurt")
    shard_of_57 = EDGES.index(50)
    for item, (first, second) in enumerate(
        zip(calm.manifest.table_parts("rows"), hurt.manifest.table_parts("rows"), strict=True)
    ):
        assert (first.sha256 == second.sha256) == (item != shard_of_57)


def test_a_single_death_costs_a_retry_and_no_row(tmp_path: Path) -> None:
    fate = iter([True])
    stage = GroupStage(lambda rows: 40 in rows and next(fate, False))
    output = run(stage, tmp_path)
    assert rows_of(output) == list(range(100))
    assert output.manifest.num_failures == 0
    assert stage.num_deaths == 1


def test_two_deaths_by_chance_cost_no_row(tmp_path: Path) -> None:
    fate = iter([True] * MAX_DEATHS)
    output = run(GroupStage(lambda rows: 40 in rows and next(fate, False)), tmp_path)
    assert rows_of(output) == list(range(100))
    assert output.manifest.num_failures == 0


def test_a_death_by_chance_while_a_row_is_alone_does_not_condemn_it(tmp_path: Path) -> None:
    fate = iter([True])
    stage = GroupStage(lambda rows: 57 in rows or (rows == [56] and next(fate, False)))
    assert killers_of(run(stage, tmp_path)) == [57]


def test_the_search_costs_few_deaths(tmp_path: Path) -> None:
    stage = GroupStage(contains(70))
    run(stage, tmp_path)
    assert stage.num_deaths == MAX_DEATHS + MAX_DEATHS  # twice whole, twice the row alone


def test_an_engine_that_dies_in_a_living_actor_counts_as_a_death(tmp_path: Path) -> None:
    stage = GroupStage(contains(57))
    stage.death = lambda: EngineDiedError("engine core gone")
    output = run(stage, tmp_path)
    assert killers_of(output) == [57]
    assert stage.num_starts == stage.num_deaths + 1  # a new worker after each death


def test_rows_that_kill_only_together_are_a_matter_of_memory(tmp_path: Path) -> None:
    stage = GroupStage(lambda rows: len(rows) > 20)
    with pytest.raises(StageError, match="by the whole, though.*memory: buy more.*6 other") as got:
        run(stage, tmp_path)
    assert "items 5..6" in str(got.value)
    assert len(finished_shards(stage_folder(stage, Location.of(str(tmp_path))))) == 6


def test_an_item_that_cannot_be_divided_is_named(tmp_path: Path) -> None:
    stage = WholeStage(contains(57), shard_items=7)
    with pytest.raises(StageError, match=r"killed by items 4\.\.5 alone.*memory: buy more"):
        run(stage, tmp_path)


def test_an_item_of_which_every_row_kills_is_given_up_after_a_few(tmp_path: Path) -> None:
    stage = GroupStage(contains(*range(64, 90)), shard_items=7)
    output = run(stage, tmp_path)
    assert killers_of(output) == list(range(64, 90))
    assert rows_of(output) == [row for row in range(100) if not 64 <= row < 90]
    assert stage.num_deaths < MAX_DEATHS * (MAX_POISON_OF_AN_ITEM + 1) + 10


def test_a_death_in_loading_is_no_rows_fault(tmp_path: Path) -> None:
    stage = GroupStage(contains())
    stage.deadly_loads = MAX_STARTS
    with pytest.raises(StageError, match="while it was being made.*memory: buy more"):
        run(stage, tmp_path)
    assert stage.num_deaths == MAX_DEATHS


def test_one_death_in_loading_is_forgiven(tmp_path: Path) -> None:
    stage = GroupStage(contains(57))
    stage.deadly_loads = 1
    assert killers_of(run(stage, tmp_path)) == [57]


@pytest.mark.parametrize("kind", [GroupStage, WholeStage])
def test_nodes_lost_again_and_again_accuse_no_row(tmp_path: Path, kind: type[GroupStage]) -> None:
    num_losses = MAX_DEATHS * LOSSES_PER_DEATH - 1
    losses = iter(range(num_losses))
    stage = kind(lambda rows: 57 in rows and next(losses, None) is not None)
    output = run(stage, tmp_path, replace_lost_nodes)
    assert rows_of(output) == list(range(100))
    assert output.manifest.num_failures == 0
    # Nothing was searched: the shard was only done again.
    assert stage.num_deaths == num_losses


def test_nodes_lost_while_workers_load_stop_nothing(tmp_path: Path) -> None:
    stage = GroupStage(contains())
    stage.deadly_loads = MAX_DEATHS * LOSSES_PER_DEATH - 1
    assert rows_of(run(stage, tmp_path, replace_lost_nodes)) == list(range(100))


def test_a_row_that_takes_its_node_along_is_found_all_the_same(tmp_path: Path) -> None:
    stage = GroupStage(contains(57))
    output = run(stage, tmp_path, replace_lost_nodes)
    assert killers_of(output) == [57]
    assert rows_of(output) == [row for row in range(100) if row != 57]


def test_a_stage_that_kills_whatever_it_is_given_stops_early(tmp_path: Path) -> None:
    stage = GroupStage(lambda rows: bool(rows))
    with pytest.raises(StageError, match="every row of the first 3 shards.*memory: buy more"):
        run(stage, tmp_path)
    assert finished_shards(stage_folder(stage, Location.of(str(tmp_path)))) == []


def test_poisonous_rows_count_as_failed_rows(tmp_path: Path) -> None:
    stage = GroupStage(contains(57))
    stage.max_failed_fraction = 0.005
    with pytest.raises(StageError, match="1 of 100 rows failed"):
        run(stage, tmp_path)


def test_nothing_of_the_search_is_left_when_the_stage_is_finished(tmp_path: Path) -> None:
    output = run(GroupStage(contains(57)), tmp_path)
    assert not (output.folder / ATTEMPTS_FOLDER).exists()
    assert not [file for file in output.folder.list_files(recursive=True) if ".tmp-" in file.path]


def test_deaths_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    class LostMachineError(BaseException):
        """Stands for the driver's death: nobody tries again."""

    stage = GroupStage(contains(57))
    stage.death = LostMachineError
    for _ in range(MAX_DEATHS):
        with pytest.raises(LostMachineError):
            run_stage(
                stage,
                Location.of(str(tmp_path)),
                execute=execute_here,
                reporter=SilentReporter(),
            )
    again = GroupStage(contains())
    run(again, tmp_path)
    assert again.num_starts == 1


def test_the_user_is_told_which_rows_were_given_up(tmp_path: Path) -> None:
    lines: list[str] = []
    run_stage(
        GroupStage(contains(57)),
        Location.of(str(tmp_path)),
        execute=replace_the_dead,
        reporter=LineReporter(lines.append),
    )
    notes = [line for line in lines if line.startswith("note:")]
    assert len(notes) == 1
    assert KILLED_WORKER in notes[0]


def test_an_ordinary_error_met_in_the_search_is_reported_as_such(tmp_path: Path) -> None:
    def deadly(rows: Sequence[int]) -> bool:
        if 60 in rows and 57 not in rows:
            raise NnciftError("row 60 is broken")
        return 57 in rows

    with pytest.raises(NnciftError, match="row 60 is broken"):
        run(GroupStage(deadly), tmp_path)
