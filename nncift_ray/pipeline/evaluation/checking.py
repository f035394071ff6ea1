"""What would stop an evaluation later, looked for before anything starts."""

from __future__ import annotations

from nncift_ray.config import Config
from nncift_ray.errors import ConfigError, NnciftError
from nncift_ray.pipeline.blueprint import Blueprint
from nncift_ray.pipeline.evaluation.methods import Method, method_notices, variant
from nncift_ray.pipeline.runner import trainers_of
from nncift_ray.storage.corpora import expand_sources

TESTS_EXAMPLE = """evaluation.tests: name at least one held-out test set, e.g.

  evaluation:
    tests:
      gsm8k: [corpora/gsm8k_test.jsonl]"""


def check_evaluation(config: Config) -> tuple[str, ...]:
    """Look for what would stop an evaluation later; return what the user should know.

    Raises:
        NnciftError: For the first thing that is missing or contradicts another.
    """
    check_tests(config)
    notices = method_notices(config)
    for recipe in variants(config):
        blueprint = Blueprint(recipe, trainers_of)
        blueprint.check()
        notices += blueprint.notices()
    return tuple(dict.fromkeys(notices))


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


def variants(config: Config) -> list[Config]:
    """Return the recipe of each method that asks a teacher, at the first budget.

    Raises:
        ConfigError: If a method and the recipe contradict each other.
    """
    methods = [Method.named(name) for name in config.evaluation.methods]
    budget = config.evaluation.budgets[0]
    return [variant(config, method, budget) for method in methods if method.teacher is not None]
