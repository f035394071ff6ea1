"""Labelling: failures become error rows, utilities need their baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.labels import step as label_step
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample, LabelStage
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.step import Stage
from nncift_ray.teachers.base import LabelRequest, Measurement, MeasurementFailure, Teacher
from nncift_ray.teachers.delift import DeliftTeacher
from tests.chain import write_corpus
from tests.fake_engines import FakeEngine

UTILITY_TOLERANCE = 1e-6
EXACT_PAIRS = 60


class Moody(DeliftTeacher):
    """DELIFT on a fake engine that cannot measure some examples alone, and others never."""

    def __init__(self, alone: str = "", ever: str = "") -> None:
        super().__init__(FakeEngine())
        self.alone, self.ever = alone, ever

    def measure(self, requests: Sequence[LabelRequest]) -> list[Any]:
        answers: list[Measurement | MeasurementFailure] = super().measure(requests)
        for at, request in enumerate(requests):
            text = request.helped.prompt + "|"
            if (self.ever and self.ever in text) or (
                self.alone and self.alone in text and request.helper is None
            ):
                answers[at] = MeasurementFailure("not_finite", "1 of 3 log-probabilities")
        return answers


def run(stage: Stage, folder: Path) -> StageOutput:
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def sample(folder: Path) -> LabelSample:
    candidates, targets, _ = write_corpus(folder / "corpus", 40, 10)
    examples = run(
        DeduplicateStage(run(IngestStage(find_sources([candidates], [targets])), folder)), folder
    )
    design = SampleDesign(label_pairs=EXACT_PAIRS, holdout_pairs_per_quadrant=4)
    return LabelSample(examples, {"within": design}, needs_baseline=True)


def measure(folder: Path, teacher: Teacher, shard_pairs: int = 16) -> StageOutput:
    stage = LabelStage(
        sample(folder), type(teacher), lambda: teacher, {"t": 1}, shard_pairs=shard_pairs
    )
    return run(stage, folder)


def test_label_is_the_baseline_minus_the_value_with_the_example(tmp_path: Path) -> None:
    measured = measure(tmp_path, Moody())
    rows = measured.read("measurements").to_pylist()
    alone = {row["helped_index"]: row["value"] for row in rows if row["split"] is None}
    pair = next(row for row in rows if row["split"] is not None)
    label = next(
        row
        for row in measured.read("labels").to_pylist()
        if (row["helped_index"], row["helper_index"])
        == (pair["helped_index"], pair["helper_index"])
    )
    expected = DeliftTeacher.utility(alone[pair["helped_index"]], pair["value"])
    assert label["utility"] == pytest.approx(expected, abs=UTILITY_TOLERANCE)


def test_values_do_not_depend_on_the_shard_size(tmp_path: Path) -> None:
    small = measure(tmp_path / "a", Moody(), shard_pairs=1).read("measurements")
    large = measure(tmp_path / "b", Moody(), shard_pairs=999).read("measurements")
    assert small.equals(large)


def test_a_failed_request_is_an_error_row_and_its_neighbours_stay(tmp_path: Path) -> None:
    whole = measure(tmp_path / "a", Moody())
    helped = whole.read("measurements").to_pylist()[0]["helped_index"]
    broken = measure(tmp_path / "b", Moody(ever=f"question {helped}|"))
    kept = {
        (row["helped_index"], row["helper_index"]): row["value"]
        for row in broken.read("measurements").to_pylist()
    }
    expected = {
        (row["helped_index"], row["helper_index"]): row["value"]
        for row in whole.read("measurements").to_pylist()
        if row["helped_index"] != helped
    }
    assert kept == expected
    assert broken.manifest.num_failures == len(whole.read("measurements")) - len(kept)


def test_a_lost_baseline_loses_its_pairs_with_a_reason(tmp_path: Path) -> None:
    whole = measure(tmp_path / "a", Moody())
    helped = whole.read("measurements").to_pylist()[0]["helped_index"]
    made = measure(tmp_path / "b", Moody(alone=f"question {helped}|"))
    assert helped not in made.read("labels")["helped_index"].to_pylist()
    reasons = [row["reason"] for row in made.read("errors").to_pylist()]
    assert reasons == ["not_finite"] + ["no_baseline"] * (len(reasons) - 1)
    assert len(made.read("labels")) + len(reasons) - 1 == EXACT_PAIRS
    assert made.manifest.num_failures == len(reasons)


def test_labels_are_the_same_in_whatever_pieces_they_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(tmp_path / "a", Moody(), shard_pairs=999)
    monkeypatch.setattr(label_step, "ROW_GROUP_ROWS", 7)
    pieces = measure(tmp_path / "b", Moody(), shard_pairs=1)
    assert pieces.read("labels").equals(whole.read("labels"))
    assert whole.num_rows("labels") == EXACT_PAIRS
