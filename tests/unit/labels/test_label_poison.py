"""Requests that kill the teacher's process: which are given up, and which must stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.labels.sample import SampleDesign
from nncift_ray.labels.step import LabelSample, LabelStage
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.shards import MAX_DEATHS
from nncift_ray.runtime.step import KILLED_WORKER, Stage
from nncift_ray.teachers.base import LabelRequest
from nncift_ray.teachers.delift import DeliftTeacher
from tests.chain import write_corpus
from tests.fake_engines import FakeEngine
from tests.unit.runtime.dying import KilledError, replace_the_dead

LABEL_PAIRS = 150

Deadly = Callable[[LabelRequest], bool]


class Mortal(DeliftTeacher):
    """DELIFT on a fake engine whose process dies of some requests."""

    def __init__(self, deadly: Deadly) -> None:
        super().__init__(FakeEngine())
        self.deadly = deadly
        self.num_deaths = 0

    def measure(self, requests: Sequence[LabelRequest]) -> list[Any]:
        if any(self.deadly(request) for request in requests):
            self.num_deaths += 1
            raise KilledError
        return super().measure(requests)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> LabelSample:
    folder = tmp_path_factory.mktemp("sample")
    location = Location.of(str(folder / "run"))

    def run(stage: Stage) -> StageOutput:
        return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())

    candidates, targets, _ = write_corpus(folder / "corpus", 40, 10)
    examples = run(DeduplicateStage(run(IngestStage(find_sources([candidates], [targets])))))
    design = SampleDesign(label_pairs=LABEL_PAIRS, holdout_pairs_per_quadrant=4)
    return LabelSample(examples, {"within": design}, needs_baseline=True)


def label(sample: LabelSample, folder: Path, teacher: Mortal) -> StageOutput:
    stage = LabelStage(sample, Mortal, lambda: teacher, {"t": 1}, shard_pairs=1)
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=replace_the_dead, reporter=SilentReporter())


def measured(output: StageOutput) -> dict[tuple[Any, Any], float]:
    rows = output.read("measurements").to_pylist()
    return {(row["helped_index"], row["helper_index"]): row["value"] for row in rows}


def most_helped(sample: LabelSample) -> tuple[Any, str]:
    """Return the candidate that most requests ask about, and its id."""
    helped = sample.requests["helped_index"].to_pylist()
    index = max(set(helped), key=helped.count)
    return index, id_of(sample, index)


def id_of(sample: LabelSample, index: int) -> str:
    return sample.load_examples()["candidate", index].example_id


def test_a_pair_that_kills_costs_that_pair_alone(sample: LabelSample, tmp_path: Path) -> None:
    pair = next(row for row in sample.requests.to_pylist() if row["helper_index"] is not None)
    guilty = (id_of(sample, pair["helped_index"]), id_of(sample, pair["helper_index"]))

    def deadly(request: LabelRequest) -> bool:
        helper = request.helper
        return helper is not None and (request.helped.example_id, helper.example_id) == guilty

    calm = measured(label(sample, tmp_path / "calm", Mortal(lambda _: False)))
    output = label(sample, tmp_path / "hurt", Mortal(deadly))
    errors = output.read("errors").to_pylist()
    assert [(row["reason"], row["example_id"]) for row in errors] == [(KILLED_WORKER, guilty[0])]
    del calm[pair["helped_index"], pair["helper_index"]]
    assert measured(output) == calm


def test_an_example_that_kills_wherever_it_stands_is_searched_once(
    sample: LabelSample, tmp_path: Path
) -> None:
    index, example_id = most_helped(sample)

    def deadly(request: LabelRequest) -> bool:
        return example_id in (request.helped.example_id, getattr(request.helper, "example_id", ""))

    calm = measured(label(sample, tmp_path / "calm", Mortal(lambda _: False)))
    teacher = Mortal(deadly)
    output = label(sample, tmp_path / "hurt", teacher)
    assert measured(output) == {pair: calm[pair] for pair in calm if index not in pair}
    num_requests_with_it = sum(index in pair for pair in calm)
    assert output.manifest.num_failures == num_requests_with_it
    assert teacher.num_deaths < MAX_DEATHS * num_requests_with_it


def test_a_helper_that_kills_does_not_condemn_those_it_was_shown_to(
    sample: LabelSample, tmp_path: Path
) -> None:
    helpers = sample.requests["helper_index"].to_pylist()
    index = max(set(helpers) - {None}, key=helpers.count)
    example_id = id_of(sample, index)

    def deadly(request: LabelRequest) -> bool:
        return request.helper is not None and request.helper.example_id == example_id

    calm = measured(label(sample, tmp_path / "calm", Mortal(lambda _: False)))
    hurt = measured(label(sample, tmp_path / "hurt", Mortal(deadly)))
    assert hurt == {pair: calm[pair] for pair in calm if pair[1] != index}
