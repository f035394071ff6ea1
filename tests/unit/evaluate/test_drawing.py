from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.evaluation.ask import TestSet, draw_test_rows
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter


def read_as_targets(folder: Path, rows: list[tuple[str, str]]) -> StageOutput:
    """Ingest and deduplicate rows (prompt, answer)."""
    folder.mkdir()
    lines = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    here = Location.of(str(folder / "run"))
    ingest = IngestStage(find_sources([], [str(folder / "rows.jsonl")]))
    found = run_stage(ingest, here, execute=execute_here, reporter=SilentReporter())
    stage = DeduplicateStage(found)
    return run_stage(stage, here, execute=execute_here, reporter=SilentReporter())


def test_draws_are_nested() -> None:
    draws = [set(draw_test_rows(50, size, seed=3).tolist()) for size in (1, 7, 20, 49, 50)]
    assert [len(draw) for draw in draws] == [1, 7, 20, 49, 50]
    assert all(small < large for small, large in zip(draws, draws[1:], strict=False))


def test_a_draw_is_sorted_and_has_no_row_twice() -> None:
    rows = draw_test_rows(1000, 100, seed=0)
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    assert 0 <= rows[0]
    assert rows[-1] < 1000


def test_seeds_draw_differently_and_one_seed_always_alike() -> None:
    assert draw_test_rows(100, 10, 1).tolist() == draw_test_rows(100, 10, 1).tolist()
    assert draw_test_rows(100, 10, 1).tolist() != draw_test_rows(100, 10, 2).tolist()


def test_every_row_is_as_likely_as_the_others() -> None:
    counts = np.zeros(10)
    for seed in range(400):
        counts[draw_test_rows(10, 3, seed)] += 1
    expected, deviation = 400 * 0.3, (400 * 0.3 * 0.7) ** 0.5
    assert np.abs(counts - expected).max() < 4 * deviation


@pytest.mark.parametrize("max_rows", [None, 5, 6])
def test_without_a_smaller_limit_all_rows_are_drawn(max_rows: int | None) -> None:
    assert draw_test_rows(5, max_rows, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_a_test_set_tells_of_rows_that_are_also_targets(tmp_path: Path) -> None:
    rows = [("seen", "a"), ("Seen  by PROMPT", "b"), ("new", "c")]
    tests = TestSet("mine", read_as_targets(tmp_path / "tests", rows))
    (told,) = tests.notices(
        read_as_targets(tmp_path / "run", [("seen", "a"), ("seen by prompt", "z")])
    )
    assert "test set 'mine': 2 of its 3 rows are also targets" in told
    assert tests.notices(read_as_targets(tmp_path / "other", [("else", "a")])) == []
