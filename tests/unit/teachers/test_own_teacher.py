"""The teacher that the documentation shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from nncift_ray.corpus.examples import Example
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    TeacherContext,
    make_teacher,
)
from tests.chain import run_chain

PAGE = Path(__file__).parents[3] / "docs" / "teachers.md"
MAX_LINES = 32


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the page's example as a module and return its import path."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= MAX_LINES
    (tmp_path / "my_teachers.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_teachers", raising=False)
    return "my_teachers:WordOverlap"


def test_the_documented_teacher_measures_and_reports_what_it_cannot(kind: str) -> None:
    teacher = make_teacher(kind, TeacherContext())
    helped = Example("1", "name green fruit", "pear tree")
    helper = Example("2", "green things", "pear and moss")
    wordless = Example("3", " ", "")
    assert isinstance(teacher, Teacher)
    first, second = teacher.measure([LabelRequest(helped, helper), LabelRequest(wordless, helper)])
    assert first == Measurement(2 / 5)  # green, pear of name, green, fruit, pear, tree
    assert isinstance(second, MeasurementFailure)
    assert second.reason == "no_words"


def test_the_documented_teacher_labels_a_whole_run(kind: str, tmp_path: Path) -> None:
    outputs = run_chain(
        tmp_path / "run",
        num_candidates=60,
        num_targets=12,
        make_teacher=lambda: make_teacher(kind, TeacherContext()),
    )
    labels = outputs["label"].read("labels")["utility"].to_pylist()
    assert 0.0 <= min(labels) < max(labels) <= 1.0
    assert outputs["select"].num_rows("ranking") == 30
