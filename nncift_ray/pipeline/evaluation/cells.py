"""The cells of an evaluation, and the order in which they are worked off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nncift_ray.config import EvaluationConfig

INITIAL, RANDOM, FULL = "initial", "random", "full"
Mode = Literal["none", "icl", "tuned"]
TUNED, ICL, UNTAUGHT = "tuned", "icl", "none"
MODE_OF_NAME: dict[str, Mode] = {TUNED: "tuned", ICL: "icl"}


@dataclass(frozen=True, slots=True)
class SubsetKey:
    """Names a subset: whose, of which draw, how large."""

    method: str
    seed: int  # tells random subsets apart, 0 elsewhere
    budget: float  # of the candidates; 0 initial, 1 full

    def __str__(self) -> str:
        """Return it as progress lines have it, e.g. "random (seed 1) 10 %"."""
        if self.method == INITIAL:
            return self.method
        seed = f" (seed {self.seed})" if self.method == RANDOM else ""
        return f"{self.method}{seed} {self.budget * 100:g} %"


@dataclass(frozen=True, slots=True)
class Cell:
    """A subset, how a model is taught with it, and the test set that shows what it can do then."""

    subset: SubsetKey
    mode: Mode
    test: str

    def __str__(self) -> str:
        """Return it as progress lines have it, e.g. "nn_cift+delift 10 % tuned gsm8k"."""
        parts = (str(self.subset), "" if self.mode == UNTAUGHT else self.mode, self.test)
        return " ".join(part for part in parts if part)


def plan_rounds(evaluation: EvaluationConfig) -> list[list[SubsetKey]]:
    """Return the subsets round by round: what comparisons need first comes first.

    The untaught model, random subsets and the methods at the first budget; then a round for each
    further budget; all candidates, which take longest, last.
    """
    first = {INITIAL: 0, RANDOM: 1}
    methods = sorted(evaluation.methods, key=lambda name: first.get(name, len(first)))
    rounds: list[list[SubsetKey]] = []
    for number, budget in enumerate(evaluation.budgets):
        subsets = [SubsetKey(INITIAL, 0, 0.0)] if number == 0 and INITIAL in methods else []
        wanted = methods if number == 0 else evaluation.curve_methods
        for name in methods:
            if name not in (INITIAL, FULL) and (wanted is None or name in wanted):
                num_seeds = evaluation.random_seeds if name == RANDOM else 1
                subsets += [SubsetKey(name, seed, budget) for seed in range(num_seeds)]
        rounds.append(subsets)
    rounds.append([SubsetKey(FULL, 0, 1.0)] if FULL in methods else [])
    return [subsets for subsets in rounds if subsets]


def plan_cells(subsets: Iterable[SubsetKey], evaluation: EvaluationConfig) -> list[Cell]:
    """Return the cells of some subsets in the order of work: mode by mode, test by test."""
    return [
        Cell(subset, mode, test)
        for subset in subsets
        for mode in modes_of(subset, evaluation)
        for test in evaluation.tests
    ]


def modes_of(subset: SubsetKey, evaluation: EvaluationConfig) -> Sequence[Mode]:
    """Return how a subset is used; tuning first, since its numbers are the more telling."""
    if subset.method == INITIAL:
        return ("none",)
    return tuple(
        MODE_OF_NAME[name] for name in sorted(evaluation.modes, key=lambda name: name != TUNED)
    )
