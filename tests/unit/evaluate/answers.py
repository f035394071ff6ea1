"""A test set and the answers of a model to it, as finished stages, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from nncift_ray.corpus.examples import make_example_id
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.schemas import EXAMPLES, RESPONSES
from nncift_ray.runtime.step import Stage
from tests.stages import GivenStage


def run(stage: Stage, folder: Path) -> StageOutput:
    """Run a stage in this process."""
    location = Location.of(str(folder / "run"))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def write_test_set(folder: Path, rows: Sequence[tuple[str, str]]) -> StageOutput:
    """Write questions and references as the targets of a deduplicate stage."""
    table = pa.Table.from_pylist(
        [
            {
                "row_index": at,
                "example_id": make_example_id(prompt, response),
                "prompt": prompt,
                "response": response,
                "record": "{}",
                "source": "test.jsonl",
                "line": at + 1,
                "layout": "alpaca",
                "num_duplicates": 0,
            }
            for at, (prompt, response) in enumerate(rows)
        ],
        schema=EXAMPLES,
    )
    return run(GivenStage("deduplicate", {"targets": table}), folder)


def write_answers(folder: Path, test: StageOutput, answers: Mapping[int, str]) -> StageOutput:
    """Write answers to some rows of a test set as a respond stage's."""
    ids = test.read("targets", ["example_id"])["example_id"].to_pylist()
    rows = [
        {
            "row_index": at,
            "example_id": ids[at],
            "response": answer,
            "num_prompt_tokens": 5,
            "num_tokens": len(answer) + 1,
            "finish_reason": "stop",
        }
        for at, answer in answers.items()
    ]
    table = pa.Table.from_pylist(rows, schema=RESPONSES)
    return run(GivenStage("respond", {"responses": table}), folder)
