"""A method of the evaluation as a recipe: the user's own with another teacher, labels or objective.

All variants lie in the recipe's run directory, so what they have in common (ingest, embeddings, the
labels of a teacher that several methods ask) is done once: stages are known by their fingerprints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nncift_ray.config import Config, TokenBudget, make_config
from nncift_ray.config.evaluation import NN_CIFT, SMALL_LM, WITHOUT_TEACHER
from nncift_ray.errors import ConfigError
from nncift_ray.stages.selection.selection_plan import RANDOM, TOP_K

#: Teachers whose own paper ranks candidates by one score each.
RANKING_TEACHERS = ("less", "selectit")
POINTWISE = "selectit"
#: What of ``selection`` also means something to ``top_k``.
KEYS_OF_TOP_K = ("seed", "include", "exclude", "quotas")
#: What of the sections also means something where a teacher's labels are the scores.
KEYS_OF_ALL_LABELS = ("validation_fraction", "group_pairs", "seed", "pool")
KEYS_OF_GIVEN_SCORES = ("top_k", "pool")
#: A teacher method labels every pair; the recipe's own bound is for samples.
NO_BOUND = 10**15

ScoredBy = Literal["nobody", "teacher", "network", "small model"]


@dataclass(frozen=True)
class Method:
    """What the name of a method says."""

    name: str
    teacher: str | None  # one of BUILT_IN_TEACHERS
    scored_by: ScoredBy

    @classmethod
    def named(cls, name: str) -> Method:
        """Read a name of ``config.evaluation.METHODS``."""
        if name in WITHOUT_TEACHER:
            return cls(name, None, "nobody")
        prefix, plus, kind = name.rpartition("+")
        ways: dict[str, ScoredBy] = {NN_CIFT: "network", SMALL_LM: "small model"}
        return cls(name, kind, ways[prefix] if plus else "teacher")


def variant(config: Config, method: Method, budget: float) -> Config:
    """Return the recipe that selects a method's subset.

    LESS and SelectIT take the candidates of the highest score, as their papers do; the others the
    recipe's own objective. Every subset is filled to the budget, a share of the candidates.

    Raises:
        ConfigError: If the recipe and the method contradict each other, naming the method.
    """
    assert method.teacher is not None  # noqa: S101
    tree = config.model_dump(mode="json")
    tree["teacher"]["kind"] = method.teacher
    tree["selection"] = _selection(config, method, budget)
    if tree["selection"]["objective"] == TOP_K:
        tree["data"]["existing"] = []  # only conditional gains read them
    if method.teacher == POINTWISE:
        tree["network"] |= {"centre_rows": False, "loss": "squared_error"}
    if method.scored_by == "small model":
        assert config.evaluation.small_model is not None  # noqa: S101 (the recipe was checked)
        tree["teacher"] |= {
            "model": config.evaluation.small_model,
            "revision": None,
            "adapter": None,
        }
        tree["teacher"]["selectit"]["models"] = []
    if method.scored_by != "network":
        del tree["network"]  # nor has anybody a use for what only sampling and predicting read
        tree["labels"] = {key: tree["labels"][key] for key in KEYS_OF_ALL_LABELS}
        tree["labels"]["max_pairs"] = NO_BOUND
        if method.teacher != POINTWISE:  # whose labels are as many as the candidates
            tree["labels"]["label_pairs"] = config.evaluation.teacher_pairs
        scoring = {key: tree["pair_scores"][key] for key in KEYS_OF_GIVEN_SCORES}
        tree["pair_scores"] = scoring | {"by": "teacher"}
    return make_config(tree, f"evaluation.methods: {method.name}")


def _selection(config: Config, method: Method, budget: float) -> dict[str, Any]:
    own = config.selection.model_dump(mode="json")
    if config.selection.objective == RANDOM:
        raise ConfigError(
            "selection.objective: random asks no teacher; give the objective that the methods are "
            "to select by (the evaluation has a method 'random' of its own)"
        )
    if method.teacher in RANKING_TEACHERS:
        return {key: own[key] for key in KEYS_OF_TOP_K} | {"objective": TOP_K, "budget": budget}
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
