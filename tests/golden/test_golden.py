"""Recipes pick what they picked when their results were frozen (``freeze.py``).

On a CPU of the frozen capability (``torch.backends.cpu.get_cpu_capability``) ids are the same in
the same order, gains agree to 1e-6, and files are the same. Another capability sums in another
order. There gains agree rank by rank to 1e-4 of the largest, a pick may give way only to one that
ties with it within that tolerance, and files are compared where the order is the frozen one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.harness import Golden, golden_path, run_recipe
from tests.golden.recipes import RECIPES

TOLERANCE = 1e-6  # of a gain
TOLERANCE_ELSEWHERE = 1e-4  # of a gain, as a share of the largest: gains are differences of sums


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_picks_what_it_picked(name: str, tmp_path: Path) -> None:
    frozen, found = Golden.read(golden_path(name)), run_recipe(name, tmp_path / name)
    if found.machine["capability"] == frozen.machine["capability"]:
        assert list(found.picks) == list(frozen.picks)
        assert found.picks == pytest.approx(frozen.picks, rel=0, abs=TOLERANCE)
        assert found.files == frozen.files
    else:
        assert_picks_tie(found, frozen)
        assert list(found.picks) != list(frozen.picks) or found.files == frozen.files


def test_every_golden_file_has_a_recipe() -> None:
    assert {path.stem for path in golden_path("any").parent.glob("*.json")} == set(RECIPES)


def assert_picks_tie(found: Golden, frozen: Golden) -> None:
    """Gains agree rank by rank, and so do those of picks that only one of the two has."""
    close = {"rel": 0, "abs": TOLERANCE_ELSEWHERE * max(frozen.picks.values())}
    assert list(found.picks.values()) == pytest.approx(list(frozen.picks.values()), **close)
    replaced = [frozen.picks[each] for each in frozen.picks if each not in found.picks]
    replacing = [found.picks[each] for each in found.picks if each not in frozen.picks]
    assert sorted(replacing) == pytest.approx(sorted(replaced), **close)
