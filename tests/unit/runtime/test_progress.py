"""Progress: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nncift_ray.runtime import progress
from nncift_ray.runtime.output import ShardRecord, StageBegun
from nncift_ray.runtime.progress import LineReporter, TerminalReporter


def begun(stage: str, units: int, unit: str = "rows") -> StageBegun:
    return StageBegun(
        stage=stage, fingerprint="f", unit=unit, units=units, num_items=1, num_cpus=1, num_gpus=0,
        num_shards_found=0, started_at="",
    )  # fmt: skip


def shard(units: int) -> ShardRecord:
    return ShardRecord(start=0, stop=1, parts=(), num_failures=0, seconds=1.0, units=units)


def test_lines_tell_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    reporter.stage_started(begun("embed", 1000, "rows"), 200)
    reporter.shard_finished("embed", shard(400))
    assert lines[-1] == "[embed] 600/1,000 rows, 20.0 rows/s, about 20 s left"


def test_lines_do_not_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(float(second) for second in range(1, 31))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    reporter.stage_started(begun("embed", 1000, "rows"), 0)
    for _ in range(30):
        reporter.shard_finished("embed", shard(10))
    assert len(lines) == 1 + 3


def test_a_terminal_gets_one_line_a_finished_stage() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = TerminalReporter(console)
    reporter.stage_skipped("ingest", 1)
    reporter.stage_started(begun("embed", 1000, "rows"), 0)
    reporter.shard_finished("embed", shard(1000))
    reporter.stage_finished("embed", 12.0, 3)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ingest       already done, skipped" in text
    assert "✓ embed        1,000 rows in 12.0 s, 3 bad rows" in text


def test_closing_in_the_middle_leaves_the_terminal_usable() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter = TerminalReporter(console)
    reporter.stage_started(begun("embed", 10, "rows"), 0)
    reporter.close()
    reporter.close()
    assert "\x1b[?25h" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_long_item_is_told_of_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    reporter.stage_started(begun("select", 1, "rankings"), 0)
    reporter.working("select", "too early")
    reporter.working("select", "7 of at most 12 picks")
    assert lines[1:] == ["[select] 7 of at most 12 picks"]


def test_steps_are_counted_and_the_rest_of_the_run_is_foreseen() -> None:
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    reporter.expect({"ingest": 5.0, "embed": 10.0, "fit": 30.0, "select": 30.0})
    reporter.stage_skipped("ingest", 1)
    reporter.stage_started(begun("embed", 1000, "rows"), 0)
    assert lines[-1] == "[embed] started: step 2 of 4, 1,000 rows"
    reporter.stage_finished("embed", 20.0, 0)  # twice what was planned
    assert lines[-1] == "[embed] done in 20.0 s; about 2 min left"
