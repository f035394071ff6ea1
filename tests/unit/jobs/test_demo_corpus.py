"""The demo corpus is the same every time, and what is planted in it is what is said of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from nncift_ray.corpus.examples import make_example_id
from nncift_ray.demo.corpus import (
    CLEAN,
    EMPTY_RESPONSE,
    EXACT_DUPLICATE,
    NEAR_DUPLICATE,
    TARGET_FAMILIES,
    WRONG_RESPONSE,
    WRONG_SAME_FAMILY,
    DemoRow,
    make_demo_rows,
    write_demo_corpus,
)
from nncift_ray.demo.tasks import FAMILIES, draw_distinct_items, draw_item, to_roman

MAX_WORDS = 40


@pytest.fixture(scope="module")
def rows() -> list[DemoRow]:
    return make_demo_rows(seed=0, num_candidates=1000, num_targets=100)[0]


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    write_demo_corpus(tmp_path / "a", seed=3)
    write_demo_corpus(tmp_path / "b", seed=3)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_another_seed_writes_another_corpus(tmp_path: Path) -> None:
    write_demo_corpus(tmp_path / "a", seed=3)
    write_demo_corpus(tmp_path / "b", seed=4)
    assert _digests(tmp_path / "a") != _digests(tmp_path / "b")


def test_planted_shares_are_the_announced_ones(rows: list[DemoRow]) -> None:
    counts = Counter(row.kind for row in rows)
    assert counts == {
        CLEAN: 680,
        WRONG_RESPONSE: 75,
        WRONG_SAME_FAMILY: 75,
        NEAR_DUPLICATE: 100,
        EXACT_DUPLICATE: 50,
        EMPTY_RESPONSE: 20,
    }


def test_planted_file_names_every_line_by_number_and_id(tmp_path: Path) -> None:
    corpus = write_demo_corpus(tmp_path)
    lines = corpus.candidates.read_text(encoding="utf-8").splitlines()
    planted = [json.loads(line) for line in corpus.planted.read_text().splitlines()]
    assert [entry["line"] for entry in planted] == list(range(1, len(lines) + 1))
    for line, entry in zip(lines, planted, strict=True):
        record = json.loads(line)
        assert entry["example_id"] == make_example_id(record["prompt"], record["completion"])


def test_candidates_file_tells_nothing_of_what_is_planted(tmp_path: Path) -> None:
    corpus = write_demo_corpus(tmp_path)
    for line in corpus.candidates.read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == {"task", "prompt", "completion"}


def test_exact_duplicates_repeat_a_clean_row(rows: list[DemoRow]) -> None:
    clean = {row.example_id for row in rows if row.kind == CLEAN}
    copies = [row.example_id for row in rows if row.kind == EXACT_DUPLICATE]
    assert set(copies) <= clean
    assert len(set(copies)) == len(copies)


def test_all_but_exact_duplicates_have_their_own_id(rows: list[DemoRow]) -> None:
    ids = [row.example_id for row in rows if row.kind != EXACT_DUPLICATE]
    assert len(set(ids)) == len(ids)


def test_near_duplicates_ask_a_clean_rows_item_in_other_words(rows: list[DemoRow]) -> None:
    clean = {row.item: row for row in rows if row.kind == CLEAN}
    for row in (row for row in rows if row.kind == NEAR_DUPLICATE):
        assert row.prompt != clean[row.item].prompt
        assert row.completion == clean[row.item].completion


def test_wrong_responses_are_never_right(rows: list[DemoRow]) -> None:
    wrong = [row for row in rows if row.kind in (WRONG_RESPONSE, WRONG_SAME_FAMILY)]
    words = re.compile(r"[\w-]+ (?:plus|\+) ")
    sums = [row for row in wrong if row.family == "arithmetic" and words.search(row.prompt)]
    assert sums
    for row in sums:
        first, second = map(int, re.findall(r"\d+", row.prompt)[:2])
        assert row.completion != str(first + second)


def test_half_of_the_wrong_responses_answer_another_task_of_the_same_family(
    rows: list[DemoRow],
) -> None:
    answers: dict[str, set[str]] = {}
    for row in rows:
        if row.kind in (CLEAN, NEAR_DUPLICATE):
            answers.setdefault(row.family, set()).add(row.completion)
    hard = [row for row in rows if row.kind == WRONG_SAME_FAMILY]
    numbers = [row for row in hard if row.family == "arithmetic"]
    assert numbers
    assert all(row.completion.lstrip("-").isdigit() for row in numbers)
    logic = [row for row in hard if row.family in ("logic", "sentiment")]
    assert all(row.completion in answers[row.family] for row in logic)


def test_targets_are_clean_held_out_rows_of_four_families() -> None:
    candidates, targets = make_demo_rows(seed=0, num_candidates=1000, num_targets=100)
    assert {row.family for row in targets} == set(TARGET_FAMILIES)
    assert len(targets) == 100
    assert not {row.prompt for row in targets} & {row.prompt for row in candidates}


def test_texts_are_short(rows: list[DemoRow]) -> None:
    assert max(len(f"{row.prompt} {row.completion}".split()) for row in rows) <= MAX_WORDS


@pytest.mark.parametrize("family", FAMILIES)
def test_family_words_one_item_in_several_ways(family: str) -> None:
    item = draw_item(family, Random(5))
    assert len(set(item.prompts)) == len(item.prompts) >= 3
    assert item.answer
    assert not any("{" in prompt for prompt in item.prompts)


@pytest.mark.parametrize(("number", "written"), [(4, "IV"), (399, "CCCXCIX"), (1994, "MCMXCIV")])
def test_roman_numerals_follow_the_subtractive_rule(number: int, written: str) -> None:
    assert to_roman(number) == written


def test_vocabulary_too_small_is_said_with_the_family() -> None:
    with pytest.raises(ValueError, match="capitals"):
        draw_distinct_items("capitals", 100, Random(0))
