"""Reworded repeats: equal answers, equal numbers and near embeddings; one of them may be picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.recipe.sections import SelectionConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput, vectors_to_arrow
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.selection import repeats
from nncift_ray.selection.repeats import (
    RepeatsStage,
    answer_key,
    find_repeats,
    group_sharers,
    prompt_numbers,
    read_repeats,
)
from nncift_ray.selection.step import read_constraints
from tests.made import given_output


def unit(*angles: float) -> np.ndarray:
    """Return vectors whose cosines are those of the angles between them, in degrees."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_an_answer_is_the_same_whatever_its_case_spaces_and_last_point() -> None:
    assert answer_key("New  Delhi.") == answer_key("new delhi")
    assert answer_key("3.5") != answer_key("35")


def test_rows_of_one_answer_are_grouped_and_an_answer_of_one_row_is_not() -> None:
    groups = group_sharers(np.array([2, 1, 3, 2], np.uint64))
    assert [group.tolist() for group in groups] == [[0, 3]]


def test_no_candidate_makes_no_group() -> None:
    assert group_sharers(np.array([], np.uint64)) == []


def test_a_near_row_repeats_the_nearest_that_stays_and_chains_do_not_form() -> None:
    found = find_repeats(unit(0, 20, 40, 5), [()] * 4, min_cosine=0.9)
    assert [(row, twin) for row, twin, _ in found] == [(1, 0), (3, 0)]
    assert found[0][2] == pytest.approx(np.cos(np.radians(20)))


def test_other_numbers_are_another_problem() -> None:
    numbers = [prompt_numbers(text) for text in ("17 + 4?", "15 + 6?", "Add 4 to 17")]
    assert [(row, twin) for row, twin, _ in find_repeats(unit(0, 0, 0), numbers, 0.9)] == [(2, 0)]


TEXTS = [("Capital of Peru?", "Lima"), ("Name Peru's capital", "lima."), ("A bean?", "Lima")]


def make_stage(
    folder: Path, quality: list[float] | None = None, texts: list[tuple[str, str]] = TEXTS
) -> RepeatsStage:
    rows: list[dict[str, Any]] = [
        {"row_index": i, "example_id": f"id{i}", "prompt": prompt, "response": response}
        | {"record": "{}", "source": "a", "line": i, "layout": "x", "num_duplicates": 0}
        for i, (prompt, response) in enumerate(texts)
    ]
    home = Location.of(str(folder))
    tables = {"candidates": pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)}
    examples = given_output(home, "deduplicate", tables)
    vectors = pa.table(
        {"embedding": vectors_to_arrow(unit(0, 10, *[80] * (len(texts) - 2)), "float32")}
    )
    embeddings = given_output(home, "embed", {"candidates": vectors})
    profiles = None
    if quality is not None:
        columns = {"row_index": [0, 1, 2], "quality": pa.array(quality, pa.float32())}
        profiles = given_output(home, "quality", {"candidates": pa.table(columns)})
    return RepeatsStage(examples, embeddings, 0.85, profiles)


def run(stage: RepeatsStage, folder: Path) -> StageOutput:
    location = Location.of(str(folder))
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


def test_the_first_stays_and_the_table_names_it(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    output = run(stage, tmp_path)
    assert read_repeats(output) == {1: 0}
    (row,) = output.read("repeats").to_pylist()
    assert (row["example_id"], row["repeats_example_id"]) == ("id1", "id0")
    assert "1 candidates repeat another" in stage.notices(output)[0]


def test_the_better_one_stays_where_quality_is_known(tmp_path: Path) -> None:
    output = run(make_stage(tmp_path, quality=[0.2, 0.9, 1.0]), tmp_path)
    assert read_repeats(output) == {0: 1}


def test_a_repeat_is_excluded_unless_it_is_to_be_included() -> None:
    ids = pa.chunked_array([["a", "b", "c"]])
    none = np.array([], np.int64)
    for include, wanted in (((), [1, 2]), (("b",), [2])):
        selection = SelectionConfig(objective="facility_location", budget=1, include=include)
        constraints, _ = read_constraints(selection, ids, None, none, repeats=[1, 2])
        assert constraints.exclude == wanted


def test_a_common_answer_wants_the_same_words_beside_those_of_the_templates(tmp_path: Path) -> None:
    names = ("Ada", "Bruno", "Chika", "Dmitri", "Elif", "Farid")
    texts = [(f"Is {name} tall? Say yes or no.", "yes") for name in names]
    texts += [(f"Yes or no: is it so that {name} is tall?", "Yes.") for name in names[1:]]
    texts += [("Is Greta tall? Say yes or no.", "no")]
    assert len(texts) - 1 > repeats.MAX_SHARERS
    output = run(make_stage(tmp_path, texts=texts), tmp_path)
    assert read_repeats(output) == {len(names) + i: i + 1 for i in range(len(names) - 1)}
    assert output.read("repeats")["cosine"].null_count == len(names) - 1


def test_prompts_of_template_words_alone_repeat_nothing() -> None:
    assert repeats.rare_words("Is it so?", {"is": 9, "it": 9, "so": 9}, 12) == ()
