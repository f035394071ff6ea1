"""The demo counts the faults of a subset, and the subset's only."""

from __future__ import annotations

import pytest

from nncift_ray.demo.corpus import (
    EMPTY,
    EXACT_REPEAT,
    REWORDED_REPEAT,
    WRONG,
    WRONG_OF_TYPE,
    PlantedRow,
    family_shares,
    junk_shares,
    make_demo_rows,
    planted_records,
    random_junk_shares,
    rows_by_id,
    usable_rows,
)

# Mean of 200 draws of 100 rows: the standard error of a share of 0.15 is 0.0025.
RANDOM_TOLERANCE = 0.01


def _planted(line: int, example_id: str, kind: str = "clean", item: int = 0) -> PlantedRow:
    return PlantedRow(line=line, example_id=example_id, kind=kind, family="units", item=item)


@pytest.fixture(scope="module")
def corpus() -> list[PlantedRow]:
    rows, _ = make_demo_rows(seed=0, num_candidates=1000, num_targets=0)
    return [PlantedRow(**record) for record in planted_records(rows)]


def test_shares_of_the_whole_corpus_are_what_was_planted(corpus: list[PlantedRow]) -> None:
    assert junk_shares(corpus) == {
        WRONG: 0.15,
        WRONG_OF_TYPE: 0.075,
        EMPTY: 0.02,
        EXACT_REPEAT: 0.05,
        REWORDED_REPEAT: 0.10,
    }


def test_usable_rows_have_no_empty_answers_and_no_exact_repeats(corpus: list[PlantedRow]) -> None:
    usable = usable_rows(corpus)
    assert len(usable) == 930
    shares = junk_shares(usable)
    assert shares[EMPTY] == shares[EXACT_REPEAT] == 0


def test_first_row_of_an_item_is_no_repeat_whichever_wording_it_is() -> None:
    alone = [_planted(1, "b", kind="near_duplicate", item=7), _planted(2, "c", item=8)]
    assert junk_shares(alone)[REWORDED_REPEAT] == 0
    both = [*alone, _planted(3, "a", item=7)]
    assert junk_shares(both)[REWORDED_REPEAT] == pytest.approx(1 / 3)


def test_same_id_twice_is_an_exact_repeat_and_not_a_reworded_one() -> None:
    shares = junk_shares([_planted(1, "a"), _planted(2, "a", kind="exact_duplicate")])
    assert shares[EXACT_REPEAT] == 0.5
    assert shares[REWORDED_REPEAT] == 0


def test_random_subsets_hold_the_pools_share_of_wrong_answers(corpus: list[PlantedRow]) -> None:
    usable = usable_rows(corpus)
    random = random_junk_shares(usable, size=100)
    share = junk_shares(usable)[WRONG]
    assert random[WRONG].mean == pytest.approx(share, abs=RANDOM_TOLERANCE)
    assert random[WRONG].low < share < random[WRONG].high
    assert random[REWORDED_REPEAT].mean < junk_shares(usable)[REWORDED_REPEAT]


def test_a_picked_id_counts_as_the_original_of_its_copies() -> None:
    rows = [_planted(1, "a", kind="exact_duplicate"), _planted(2, "a"), _planted(3, "b")]
    assert [row.line for row in rows_by_id(rows, ["b", "a"])] == [3, 2]


def test_an_id_of_another_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="zzz"):
        rows_by_id([_planted(1, "a")], ["zzz"])


def test_no_rows_have_no_shares() -> None:
    with pytest.raises(ValueError, match="empty set"):
        junk_shares([])


def test_family_shares_add_up_to_one(corpus: list[PlantedRow]) -> None:
    assert sum(family_shares(corpus).values()) == pytest.approx(1.0)
