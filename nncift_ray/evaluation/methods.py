"""Which subsets are compared: each method is a recipe, the user's own with another teacher.

All recipes share the run directory, so what they have in common (ingest, embeddings, the labels of
a teacher that several methods ask) is done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nncift_ray.corpus.examples import iter_groups
from nncift_ray.corpus.ingest import expand_sources
from nncift_ray.errors import ConfigError, DataError, NnciftError
from nncift_ray.pipeline import Blueprint
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import (
    COSINE,
    MEASURED_TEACHERS,
    NN_CIFT,
    POINTWISE_TEACHERS,
    SMALL_LM,
    UNASKED_TEACHERS,
    WITHOUT_TEACHER,
    Config,
    EvaluationConfig,
    TokenBudget,
)
from nncift_ray.runtime.output import StageOutput
from nncift_ray.selection.names import ROUND_ROBIN, TOP_K

INITIAL, RANDOM, RANDOM_SOURCE, FULL = "initial", "random", "random_source", "full"
DRAWN = (RANDOM, RANDOM_SOURCE)  # at random, several times each
TUNED, ICL, UNTAUGHT = "tuned", "icl", "none"
FACILITY_LOCATION, DEITA = "facility_location", "deita"
#: Teachers whose own paper ranks candidates by one score each.
RANKING_TEACHERS = ("less", *POINTWISE_TEACHERS)
#: What of the recipe's sections also means something to a rival, and to a teacher's own labels.
KEYS_OF_RIVALS = ("seed", "include", "exclude", "quotas")
KEYS_OF_ALL_LABELS = ("validation_fraction", "group_pairs", "seed", "pool")
KEYS_OF_GIVEN_SCORES = ("top_k", "pool")
#: A teacher method labels every pair; the recipe's own bound is for samples.
NO_BOUND = 10**15
NAMES_SHOWN = 10
SUBSET_STREAM = 33  # random stream of random subsets, apart from those of samples and test rows
TESTS_EXAMPLE = """evaluation.tests: name at least one held-out test set, e.g.

  evaluation:
    tests:
      gsm8k: [corpora/gsm8k_test.jsonl]"""


def teacher_of(method: str) -> str | None:
    """Return the teacher that a method asks; None: it asks none."""
    return None if method in WITHOUT_TEACHER else method.rpartition("+")[2]


def variant(config: Config, method: str, budget: float) -> Config:
    """Return the recipe that selects a method's subset.

    LESS, SelectIT and what scores examples take the candidates of the highest score, cosine and
    rds_plus each target's nearest in turn (facility location without targets), all of them without
    a regard for quality, as their papers do; the others the recipe's own objective. Every subset is
    filled to the budget, a share of the candidates.

    Raises:
        ConfigError: If the recipe and the method contradict each other, naming the method.
    """
    teacher, prefix = teacher_of(method), method.rpartition("+")[0]
    tree = config.model_dump(mode="json")
    tree["teacher"]["kind"] = teacher
    tree["selection"] = _selection(config, teacher, budget)
    if teacher in (*RANKING_TEACHERS, *UNASKED_TEACHERS):
        tree["data"]["existing"] = []  # only conditional gains read them
    if prefix == SMALL_LM:
        small = {"model": config.evaluation.small_model, "revision": None, "adapter": None}
        small |= {"engine": "auto"} if config.teacher.server else {}  # that has another model
        tree["teacher"] |= small
        tree["teacher"]["selectit"]["models"] = []
    if teacher == COSINE:
        tree["pair_scores"]["by"] = "network"
    elif prefix != NN_CIFT:  # the labels are the scores: nobody reads what is for a network
        del tree["network"]
        tree["labels"] = {key: tree["labels"][key] for key in KEYS_OF_ALL_LABELS}
        tree["labels"]["max_pairs"] = NO_BOUND
        if teacher not in (
            *POINTWISE_TEACHERS,
            *MEASURED_TEACHERS,
        ):  # whose labels are as many as the candidates
            tree["labels"]["label_pairs"] = config.evaluation.teacher_pairs
        scoring = {key: tree["pair_scores"][key] for key in KEYS_OF_GIVEN_SCORES}
        tree["pair_scores"] = scoring | {"by": "teacher"}
    return make_config(tree, f"evaluation.methods: {method}")


def _selection(config: Config, teacher: str | None, budget: float) -> dict[str, Any]:
    own = config.selection.model_dump(mode="json")
    if config.selection.objective == RANDOM:
        raise ConfigError(
            "selection.objective: random asks no teacher; give the objective that the methods are "
            "to select by (the evaluation has a method 'random' of its own)"
        )
    plain = {key: own[key] for key in KEYS_OF_RIVALS} | {"budget": budget, "quality": "none"}
    if teacher == DEITA:
        return plain | {"objective": TOP_K, "weight_by": own["weight_by"], "min_distance": 0.1}
    if teacher in RANKING_TEACHERS:
        return plain | {"objective": TOP_K}
    if teacher in UNASKED_TEACHERS:
        return plain | {"objective": ROUND_ROBIN if config.data.targets else FACILITY_LOCATION}
    if config.selection.optimizer.kind == "cost_benefit":  # wants a budget in tokens
        own["optimizer"]["kind"] = "lazy"
    return own | {"budget": budget, "stop_gain": None}


def method_notices(config: Config) -> list[str]:
    """Say where the compared subsets are not those that the recipe alone would select."""
    selection, notes = config.selection, list[str]()
    if isinstance(selection.budget, TokenBudget) or selection.stop_gain is not None:
        notes.append(
            "selection.budget and stop_gain are left aside: all methods select equally many "
            "examples, evaluation.budgets"
        )
    if selection.quotas.given or selection.include or selection.exclude:
        notes.append(
            "selection.quotas, include and exclude hold for the methods that ask a teacher; random "
            "and full know no limits"
        )
    return notes


def check_tests(config: Config) -> None:
    """Look for the test sets.

    Raises:
        ConfigError: If the recipe names none.
        DataError: If a file is not there, naming the test set.
    """
    if not config.evaluation.tests:
        raise ConfigError(TESTS_EXAMPLE)
    for name, patterns in config.evaluation.tests.items():
        try:
            expand_sources(patterns)
        except NnciftError as error:
            raise type(error)(f"evaluation.tests.{name}: {error}") from error


def check_evaluation(config: Config) -> tuple[str, ...]:
    """Look for what would stop an evaluation later; return what the user should know.

    Raises:
        NnciftError: For the first thing that is missing or contradicts another.
    """
    check_tests(config)
    notices = method_notices(config)
    for method in config.evaluation.methods:
        if teacher_of(method) is not None:
            recipe = variant(config, method, config.evaluation.budgets[0])
            blueprint = Blueprint(recipe)
            blueprint.check()
            notices += blueprint.notices()
    return tuple(dict.fromkeys(notices))


# The cells of an evaluation, and the order in which they are worked off.


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
        seed = f" (seed {self.seed})" if self.method in DRAWN else ""
        return f"{self.method}{seed} {self.budget * 100:g} %"


@dataclass(frozen=True, slots=True)
class Cell:
    """A subset, how a model is taught with it, and the test set that shows what it can do then."""

    subset: SubsetKey
    mode: str  # TUNED, ICL or, of the untaught model, UNTAUGHT
    test: str

    def __str__(self) -> str:
        """Return it as progress lines have it, e.g. "nn_cift+delift 10 % tuned gsm8k"."""
        mode = "" if self.mode == UNTAUGHT else f" {self.mode}"
        return f"{self.subset}{mode} {self.test}"


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
                num_seeds = evaluation.random_seeds if name in DRAWN else 1
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


def modes_of(subset: SubsetKey, evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Return how a subset is used; tuning first, since its numbers are the more telling."""
    if subset.method == INITIAL:
        return (UNTAUGHT,)
    return tuple(sorted(evaluation.modes, key=lambda name: name != TUNED))


# The subsets: drawn at random, all candidates, or selected by a method.


@dataclass(frozen=True)
class Subset:
    """Which candidates a model is taught with, and what it took to find them."""

    key: SubsetKey
    members: NDArray[np.int64]  # sorted row numbers of candidates
    #: The recipe that selected them, and its stages up to select; none where nobody was asked.
    config: Config | None = None
    outputs: Mapping[str, StageOutput] = field(default_factory=dict[str, StageOutput])


def budget_count(budget: float, num_candidates: int) -> int:
    """Return how many examples a budget is, as the select stage counts."""
    return min(num_candidates, max(1, round(budget * num_candidates)))


def members_without_teacher(
    key: SubsetKey, num_candidates: int, seed: int, source: NDArray[np.int64] | None = None
) -> NDArray[np.int64] | None:
    """Return the members of a subset that asks no teacher; None: a method has to select it.

    Random subsets are nested: of one draw, a smaller budget is part of a larger one, so that a
    learning curve shows what more data do and not what other data do. ``seed`` is that of the
    recipe's selection; the draw's own number comes to it. ``source`` are the candidates of the
    source that ``random_source`` draws from.

    Raises:
        DataError: If the source has fewer candidates than the budget.
    """
    if key.method == INITIAL:
        return np.arange(0, dtype=np.int64)
    if key.method == FULL:
        return np.arange(num_candidates, dtype=np.int64)
    if key.method not in DRAWN:
        return None
    pool = np.arange(num_candidates) if source is None or key.method == RANDOM else source
    count = budget_count(key.budget, num_candidates)
    if count > len(pool):
        raise DataError(
            f"evaluation.source has {len(pool):,} candidates, and the budget is {count:,}: lower "
            "evaluation.budgets, or leave random_source out"
        )
    sequence = np.random.SeedSequence([seed, key.seed, SUBSET_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(pool)
    return np.sort(order[:count]).astype(np.int64)


def source_members(examples: StageOutput, config: Config) -> NDArray[np.int64]:
    """Return the candidates of the source that ``random_source`` draws from.

    Raises:
        DataError: If there is none.
    """
    source, field = config.evaluation.source, config.data.group_by
    groups = np.array(list(iter_groups(examples, field)))
    members = np.flatnonzero(groups == source)
    if not len(members):
        known = ", ".join(np.unique(groups)[:NAMES_SHOWN].tolist())
        raise DataError(
            f"evaluation.source: no candidate is of '{source}' "
            f"({'field ' + field if field else 'source file'}); there are {known}"
        )
    return members
