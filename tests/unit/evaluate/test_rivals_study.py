"""The study of rivals: its pools, its statistics, who takes which row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rivals.cells import draw
from benchmarks.rivals.draws import STUDIES, Drawn
from benchmarks.rivals.page import FOLDER, between_groups, subsets_needed, to_method, to_subsets
from benchmarks.rivals.picks import take_turns
from benchmarks.rivals.pools import (
    DRAWN_ONCE,
    WRONG,
    Pool,
    PoolRow,
    make_pool,
    planted_tests,
)
from nncift_ray.demo.corpus import CLEAN


def test_the_demo_pool_keeps_faults_apart_from_its_test_rows() -> None:
    pool = make_pool("demo", 1, Path("nowhere"))
    prompts = {row.prompt for row in pool.candidates}
    assert not prompts & {row.prompt for row in pool.test}
    assert {row.fault for row in pool.test} == {""}
    assert sum(row.fault == WRONG for row in pool.candidates) == 75
    assert pool == make_pool("demo", 1, Path("nowhere"))
    assert pool != make_pool("demo", 2, Path("nowhere"))


def test_families_of_the_long_tail_fall_as_one_over_rank_and_are_tested_alike() -> None:
    pool = make_pool("long_tail", 1, Path("nowhere"))
    sizes = np.array(sorted(Counter(row.source for row in pool.candidates).values())[::-1])
    expected = len(pool.candidates) / np.arange(1, 25) / np.sum(1 / np.arange(1, 25))
    assert len(sizes) == 24
    assert np.abs(sizes - expected).max() < 0.1 * len(pool.candidates)
    assert sizes[0] > 10 * sizes[-1]
    assert sum(row.fault == WRONG for row in pool.candidates) == 75
    tests = planted_tests("long_tail", 1, 10)
    assert set(Counter(row.source for row in tests).values()) == {10}
    assert not {row.prompt for row in pool.candidates} & {row.prompt for row in tests}


def test_random_rows_of_a_small_source_are_filled_up_with_others() -> None:
    rows = [PoolRow("rare" if n < 3 else CLEAN, f"{n}", "") for n in range(50)]
    pool = Pool("x", rows, [], [], "rare")
    drawn = draw(pool, [0, 1, 2], 0)
    assert len(drawn) == len(set(drawn)) == pool.budget == 10
    assert {0, 1, 2} < set(drawn)
    assert drawn != draw(pool, [0, 1, 2], 1)


def test_targets_take_their_best_free_rows_in_turn() -> None:
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.2, 0.3, 0.1]])
    assert take_turns(scores, 3) == [0, 2, 1]


def test_a_difference_to_random_counts_the_method_as_one_more_subset() -> None:
    random = np.array([[1.0, 3.0], [3.0, 5.0]])  # means 2 and 4: variance between subsets 2
    found = to_subsets(np.array([[0.0, 2.0], [2.0, 4.0]]), random)
    assert found.value == pytest.approx(-1.0)
    assert found.error == pytest.approx(np.sqrt(2 * (1 + 1 / 2)))  # rows all differ by -1
    assert found.freedom == 1


def test_a_difference_of_two_kinds_of_random_subsets_has_the_chance_of_both() -> None:
    first = np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]])  # means 1, 3 and 2: variance 1
    second = np.array([[3.0, 5.0], [5.0, 7.0]])  # means 4 and 6: variance 2
    found = between_groups(first, second)
    assert found.value == pytest.approx(-3.0)
    assert found.error == pytest.approx(np.sqrt(2 / 2 + 1 / 3 + 2 / 2))  # rows: -2 and -4
    assert found.freedom == 1


def test_a_difference_between_methods_has_the_chance_of_rows_and_seeds() -> None:
    found = to_method(np.array([[1.0, 4.0]]), np.array([[0.0, 0.0], [2.0, 2.0]]), 0.5)
    assert found.value == pytest.approx(1.5)  # rows: 0 and 3
    assert found.error == pytest.approx(np.sqrt(4.5 / 2 + 0.5 * (1 + 1 / 2)))


def test_more_spread_between_subsets_needs_more_of_them_until_none_suffice() -> None:
    few, more = (subsets_needed(s**2, 0.0, 100, 1) for s in (0.005, 0.012))
    assert few < more < np.inf
    assert subsets_needed(0.03**2, 0.0, 100, 1) == np.inf


def test_draws_are_compared_pool_by_pool_and_only_those_that_are_whole(tmp_path: Path) -> None:
    randoms = {f"random {n}": n / 10 for n in range(4)}  # mean 0.15
    study = STUDIES["demo"]
    values = dict.fromkeys((*study.methods, *study.later), 0.15) | {"cosine": -0.1} | randoms
    for seed, shift, nudge in ((2, 1.0, 0.1), (3, 5.0, 0.3), (4, 0.0, 0.0)):
        folder = tmp_path / "draws" / f"demo-{seed}"
        folder.mkdir(parents=True)
        for name, value in values.items():
            nll = shift + value + (nudge if name == study.default else 0.0)
            cell = {"nll": nll, "test_rows": 240, "wrong": 0.25, "families": 24}
            if (seed, name) != (4, "cosine"):
                (folder / f"{name}.json").write_text(json.dumps(cell), encoding="utf-8")
    drawn = Drawn(study, tmp_path)
    assert drawn.seeds == [2, 3]
    own, (rival, _) = drawn.to_random()[study.default], drawn.to_default()["cosine"]
    assert (own.value, own.error, own.freedom) == pytest.approx((0.2, 0.1, 1))
    assert (rival.value, rival.error) == pytest.approx((-0.45, 0.1))
    head, _, first, *_ = drawn.tables()[0].splitlines()
    assert head == "| method | NLL | wrong picks | families | - random | - default |"
    assert first.startswith("| nn_cift+delift | 3.350 | 25% | 24.0 | +0.200 (")
    assert drawn.summary(tmp_path, "demo")["random_subsets"] == 8


def test_the_published_figures_have_what_others_read_of_them() -> None:
    pools = json.loads((FOLDER / "rivals_cpu.json").read_text(encoding="utf-8"))["pools"]
    assert [pool["name"] for pool in pools][: len(DRAWN_ONCE)] == DRAWN_ONCE
    for pool in pools:
        difference = pool["default_vs_random"]
        assert difference["low"] < difference["difference"] < difference["high"]
        assert 0 <= difference["p_holm"] <= 1
        assert "p_holm" in (pool["default_vs_source_random"] or {"p_holm": 1})
        assert set(pool["beaten_by"]) <= set(pool["methods"])
        assert (pool["picks_wrong"] is None) == (pool["pool_wrong"] is None)
        assert min(pool["random_subsets"], pool["test_rows"]) > 0
