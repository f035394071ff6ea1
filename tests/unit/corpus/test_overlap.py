"""Near-duplicates and overlaps with tests, against Jaccard similarities and runs by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift_ray.corpus import examples as overlap
from nncift_ray.corpus.examples import (
    DeduplicateStage,
    TestTexts,
    find_twins,
    hash_sides,
    make_sketches,
    split_words,
)
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.errors import DataError
from nncift_ray.recipe.sections import DataConfig
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter

FOUR_STANDARD_ERRORS = 0.18  # of 128 hashes at a similarity of one half
PASSAGE = " ".join(f"word{i}" for i in range(120))
QUESTION = "A farmer has twelve sheep and sells all but five of them on Monday; how many stay?"


def twins_of(*pairs: tuple[str, str], min_similarity: float = 0.95) -> dict[int, int]:
    prompts, responses = zip(*pairs, strict=True)
    sketches = make_sketches(*hash_sides(prompts, responses)[1:])
    twin_N = find_twins(sketches, min_similarity)[0]
    return {row: int(twin) for row, twin in enumerate(twin_N) if twin >= 0}


def shingles(text: str) -> set[tuple[str, ...]]:
    words = split_words(text)
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_sketches_estimate_the_jaccard_similarity_of_runs_of_three_words() -> None:
    words = np.array([f"w{i}" for i in range(400)])
    one, two = " ".join(words[:300]), " ".join(words[100:])
    sketches = make_sketches(*hash_sides([one, two], ["yes", "yes"])[1:])
    exact = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
    estimate = (sketches[0] == sketches[1])[: overlap.PROMPT_HASHES].mean()
    assert estimate == pytest.approx(exact, abs=FOUR_STANDARD_ERRORS)


def test_case_marks_and_white_space_make_no_difference() -> None:
    assert twins_of(("What is it?", "A cat."), ("what is  it", "a CAT")) == {1: 0}


def test_a_long_prompt_with_a_few_other_words_is_a_twin() -> None:
    assert twins_of((f"Sum up: {PASSAGE}", "It counts."), (f"TLDR: {PASSAGE}", "It counts.")) == {
        1: 0
    }


def test_another_question_about_one_passage_is_no_twin() -> None:
    assert not twins_of((f"{PASSAGE} Who?", "The first one"), (f"{PASSAGE} When?", "On Monday"))


def test_two_slots_of_a_template_are_no_twins() -> None:
    assert not twins_of(("What is 47 + 12?", "59"), ("What is 47 + 13?", "60"))


def test_texts_without_words_are_like_nothing() -> None:
    assert not twins_of((":-)", "yes"), (":-(", "yes"))
    assert not twins_of(("Smile", ":-)"), ("Smile", ":-("))


def test_a_language_without_spaces_has_a_word_a_character() -> None:
    assert split_words("我喜欢 Ray2 数据") == ["我", "喜", "欢", "ray2", "数", "据"]


def test_each_twin_is_alike_to_one_that_stays_and_chains_do_not_pull_rows_out() -> None:
    words = [f"w{i}" for i in range(200)]
    rows = [(" ".join(words[5 * i : 5 * i + 100]), "yes") for i in range(8)]
    found = twins_of(*rows, min_similarity=0.85)
    assert found
    assert not set(found) & set(found.values())
    assert 7 not in found or found[7] != 0


def test_a_crowded_bucket_still_finds_exact_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_BUCKET", 2)
    rows = [(f"{PASSAGE} item {i} of the list", "yes") for i in range(6)]
    assert twins_of(*rows, rows[1], min_similarity=1.0) == {6: 1}


def look(texts: TestTexts, *prompts: str) -> dict[int, tuple[int, str]]:
    texts.look(np.arange(len(prompts)), prompts, hash_sides(prompts, [""] * len(prompts))[0])
    return texts.overlaps()


def test_thirteen_shared_words_are_an_overlap_and_twelve_are_not() -> None:
    words = split_words(QUESTION)
    texts = TestTexts([QUESTION], ["Five"], 13)
    found = look(texts, "Or: " + " ".join(words[2:15]), "Or: " + " ".join(words[2:14]) + " left?")
    assert found == {0: (0, " ".join(words[2:15]))}


def test_the_same_prompt_overlaps_however_short_and_whatever_the_case() -> None:
    assert look(TestTexts(["Hi", "Who  is it?"], ["a", "b"], 13), "who is IT?") == {0: (1, "")}


def test_words_that_many_candidates_hold_are_a_template() -> None:
    texts = TestTexts([f"{QUESTION} And one more thing"], ["x"], 13)
    crowd = [f"{QUESTION} Number {i}" for i in range(overlap.MAX_HOLDERS + 1)]
    assert look(texts, *crowd) == {}
    assert texts.num_templates == len(split_words(QUESTION)) - 12


def deduplicate(
    folder: Path,
    rows: list[tuple[str, str]],
    tests: list[tuple[str, str]] | None = None,
    parent: StageOutput | None = None,
    **data: Any,
) -> StageOutput:
    folder.mkdir(exist_ok=True)
    files: list[list[str]] = []
    for name, pairs in (("candidates", rows), ("tests", tests or [])):
        lines = [json.dumps({"prompt": p, "response": r}) for p, r in pairs]
        (folder / name).with_suffix(".jsonl").write_text("\n".join(lines))
        files.append([str(folder / f"{name}.jsonl")] if pairs else [])
    config = DataConfig(candidates=("a",), **data)
    ingest = IngestStage(find_sources(files[0], [], [], files[1]), config)
    location = Location.of(str(folder / "run"))
    output = run_stage(ingest, location, execute=execute_here, reporter=SilentReporter())
    stage = DeduplicateStage(output, parent, config)
    return run_stage(stage, location, execute=execute_here, reporter=SilentReporter())


ROWS = [(f"Sum up: {PASSAGE}", "It counts."), (QUESTION, "Five."), ("Name a colour.", "Red.")]


def test_what_is_left_out_is_listed_with_its_twin_or_its_test(tmp_path: Path) -> None:
    rows = [*ROWS, (f"TLDR: {PASSAGE}", "It counts!")]
    output = deduplicate(tmp_path, rows, [(QUESTION.lower(), "5")])
    assert output.read("candidates")["prompt"].to_pylist() == [ROWS[0][0], ROWS[2][0]]
    (twin,) = output.read("near_duplicates").to_pylist()
    assert (twin["line"], twin["twin_line"]) == (4, 1)
    assert twin["twin_example_id"] == output.read("candidates")["example_id"][0].as_py()
    (overlapping,) = output.read("contaminated").to_pylist()
    assert (overlapping["line"], overlapping["test_line"], overlapping["words"]) == (2, 1, None)
    facts = output.manifest.facts()
    assert (facts["num_candidates"], facts["num_duplicate_candidates"]) == (2, 0)
    assert len(DeduplicateStage(output).notices(output)) == 2


def test_null_keeps_near_duplicates(tmp_path: Path) -> None:
    rows = [*ROWS, (f"TLDR: {PASSAGE}", "It counts!")]
    assert deduplicate(tmp_path, rows, near_duplicates=None).num_rows("candidates") == len(rows)


def test_new_data_are_held_against_the_old_as_in_one_run(tmp_path: Path) -> None:
    new = [("Name a fruit.", "Fig."), (f"TLDR: {PASSAGE}", "It counts!"), ("name a FRUIT", "fig")]
    tests = [("Name a plant.", "Fern.")]
    parent = deduplicate(tmp_path / "old", ROWS, tests)
    grown = deduplicate(tmp_path / "new", new, tests, parent)
    whole = deduplicate(tmp_path / "all", [*ROWS, *new], tests)
    ids = whole.read("candidates")["example_id"].to_pylist()
    both = [output.read("candidates")["example_id"].to_pylist() for output in (parent, grown)]
    assert both[0] + both[1] == ids
    twins = [output.read("near_duplicates").to_pylist() for output in (grown, whole)]
    assert [row["twin_example_id"] for row in twins[0]] == [ids[0], ids[3]]
    assert [row["similarity"] for row in twins[0]] == [row["similarity"] for row in twins[1]]


def test_a_corpus_that_is_the_test_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no candidate is left.*data\.overlap_words"):
        deduplicate(tmp_path, [(QUESTION, "Five")], [(QUESTION, "5")])
