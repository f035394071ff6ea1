"""A method of the evaluation as a recipe: the user's own with another teacher, labels or objective.

All variants lie in the recipe's run directory, so what they have in common (ingest, embeddings, the
labels of a teacher that several methods ask) is done once: stages are known by their fingerprints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nncift_ray.corpus.hold_out import HoldOutStage
from nncift_ray.corpus.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.corpus.sources import expand_sources
from nncift_ray.embedders import Embedder, load_embedder
from nncift_ray.engines.load import EngineFactory, auto_dtype, find_engine
from nncift_ray.engines.models import ResolvedModel, resolve_embedder
from nncift_ray.errors import ConfigError, NnciftError
from nncift_ray.evaluate.metrics import draw_test_rows
from nncift_ray.evaluate.tune import Tuner
from nncift_ray.pipeline import (
    TRAINING_FOLDER,
    Blueprint,
    PoolUse,
    TuningFactory,
    resources_for,
    run_stages,
)
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import (
    NN_CIFT,
    POINTWISE_TEACHERS,
    SMALL_LM,
    WITHOUT_TEACHER,
    Config,
    EngineConfig,
    EvaluationConfig,
    PoolConfig,
    TokenBudget,
)
from nncift_ray.runtime.driver import Executor, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import Reporter
from nncift_ray.runtime.step import Stage
from nncift_ray.selection.tables import TOP_K

#: Teachers whose own paper ranks candidates by one score each.
RANKING_TEACHERS = ("less", "selectit")
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
        if method.teacher not in POINTWISE_TEACHERS:  # whose labels are as many as the candidates
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


# What would stop an evaluation later, looked for before anything starts.

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
        blueprint = Blueprint(recipe)
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


# The cells of an evaluation, and the order in which they are worked off.

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


# What loads the models of an evaluation inside actors, and what fine-tunes one.


@dataclass(frozen=True)
class Makers:
    """Factories; each also says what of it shapes numbers."""

    trainable: TuningFactory
    train: Tuner
    engine: EngineFactory
    generator: EngineFactory
    embedder: ResolvedModel
    make_embedder: Callable[[], Embedder]
    judge: EngineFactory | None  # None: no metric asks one

    @property
    def notices(self) -> list[str]:
        """What was decided for the user about models."""
        models = [self.engine.model, self.embedder, *([self.judge.model] if self.judge else [])]
        return [model.notice for model in models if model.notice]


def makers_of(config: Config, has_gpu: bool) -> Makers:
    """Find the models that a recipe evaluates with.

    Raises:
        ModelError: If one cannot be found.
    """
    evaluation = config.evaluation
    options = EngineConfig(
        model=evaluation.model,
        revision=evaluation.revision,
        engine=evaluation.engine,
        dtype=evaluation.dtype,
        max_length=evaluation.in_context.max_length,
    )
    engine = find_engine(options, auto_dtype(has_gpu=has_gpu))
    embedder = resolve_embedder(config.embedder.model, config.embedder.revision)
    return Makers(
        trainable=TuningFactory(engine.model, evaluation.tuning, has_gpu),
        train=_tuner(config, has_gpu),
        engine=engine,
        generator=replace(engine, generates=True),
        embedder=embedder,
        make_embedder=partial(load_embedder, embedder),
        judge=_judge(config, has_gpu) if "judge" in evaluation.metrics else None,
    )


def _tuner(config: Config, has_gpu: bool) -> Tuner:
    # Ray Train's import takes seconds, which a plan need not pay.
    from nncift_ray.ray_train import RayTuner

    tuning = config.evaluation.tuning
    num_cpus = tuning.pool.num_cpus or max(1, (os.cpu_count() or 1) // tuning.num_workers)
    return RayTuner(
        storage=Location.of(config.run_dir) / TRAINING_FOLDER,
        num_workers=tuning.num_workers,
        num_cpus=num_cpus,
        use_gpu=has_gpu,
        labels=tuning.pool.labels or config.cluster.labels,
        placement_timeout=config.cluster.placement_timeout,
    )


def _judge(config: Config, has_gpu: bool) -> EngineFactory:
    keys = {"model", "revision", "engine", "dtype", "quantization", "max_length"}
    options = EngineConfig(**config.evaluation.judge.model_dump(include=keys))
    return find_engine(options, auto_dtype(has_gpu=has_gpu), generates=True)


# What brings the stages of an evaluation to their end, all in one run directory.


@dataclass(frozen=True)
class Workbench:
    """A run directory within a session of Ray."""

    config: Config
    run_dir: Location
    execute: Executor
    reporter: Reporter
    has_gpu: bool

    def bring(self, stage: Stage, use: PoolUse) -> StageOutput:
        """Bring one stage to its end.

        Raises:
            NnciftError: As ``stages.driver.run_stage``.
        """
        stage.resources = resources_for(use, self.config.cluster)
        return run_stage(stage, self.run_dir, execute=self.execute, reporter=self.reporter)

    def bring_recipe(
        self,
        config: Config,
        until: str,
        known: Mapping[str, StageOutput] | None = None,
        *,
        record: bool = False,
    ) -> dict[str, StageOutput]:
        """Bring the stages of a recipe to their end, as far as ``until``.

        Args:
            config: The recipe, or a variant of it.
            until: Last stage to run.
            known: Finished stages that the recipe shares with another.
            record: Whether `nncift status` shall show this recipe.

        Raises:
            NnciftError: As ``pipeline.runner.run``.
        """
        blueprint = Blueprint(config, has_gpu=self.has_gpu)
        blueprint.check()
        for notice in blueprint.notices():
            self.reporter.notice(notice)
        return run_stages(
            blueprint,
            self.run_dir,
            until,
            self.execute,
            self.reporter,
            record=record,
            known=known,
        )


# The test sets: read as a corpus is, and held out from what models are taught with.


@dataclass(frozen=True)
class TestSet:
    """Rows that models are tested on."""

    __test__ = False  # pytest collects no class that is named like this

    name: str
    output: StageOutput  # of the hold_out stage: tables targets and left_out

    @property
    def num_rows(self) -> int:
        """Rows that models are tested on."""
        return self.output.num_rows("targets")

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The rows' ids."""
        column = self.output.read("targets", ["example_id"])["example_id"]
        return np.asarray(column.to_pylist(), dtype=np.str_)

    def rows(self, max_rows: int | None, seed: int) -> NDArray[np.int64]:
        """Return the rows that are asked where at most ``max_rows`` are."""
        return draw_test_rows(self.num_rows, max_rows, seed)

    def notices(self) -> list[str]:
        """Say what of the test set is also in the corpus, and what was done about it."""
        facts = self.output.manifest.facts()
        same, alike = facts["num_same_example"], facts["num_same_prompt"]
        lines: list[str] = []
        if same or alike:
            lines.append(
                f"test set '{self.name}': {same + alike:,} of its {self.num_rows + same + alike:,} "
                f"rows are left out: {same:,} are candidates, {alike:,} more have a candidate's "
                "prompt (evaluation/left_out.csv)"
            )
        if facts["num_among_targets"]:
            lines.append(
                f"test set '{self.name}': {facts['num_among_targets']:,} of its "
                f"{self.num_rows:,} rows are also targets, or have a target's prompt. They stay, "
                "but methods that use targets have seen them: better test on others"
            )
        return lines


def prepare_test(
    bench: Workbench, name: str, patterns: Sequence[str], examples: StageOutput
) -> TestSet:
    """Read a test set and leave out what is among the candidates.

    Args:
        bench: Where it is done.
        name: Of the test set.
        patterns: Its files.
        examples: The deduplicated corpus.

    Raises:
        NnciftError: If it cannot be read, or no row is left; naming the test set.
    """
    alone = PoolUse(PoolConfig())
    try:
        ingest = IngestStage(find_sources((), patterns), bench.config.data)
        rows = bench.bring(DeduplicateStage(bench.bring(ingest, alone)), alone)
        output = bench.bring(HoldOutStage(rows, examples, name), alone)
    except NnciftError as error:
        raise type(error)(f"evaluation.tests.{name}: {error}") from error
    return TestSet(name, output)


# The subsets that are compared: drawn at random, all candidates, or selected by a method.

SUBSET_STREAM = 33  # random stream of the draws, apart from those of samples and test rows


@dataclass(frozen=True)
class Subset:
    """Which candidates a model is taught with, and what it took to find them."""

    key: SubsetKey
    members: NDArray[np.int64]  # sorted row numbers of candidates
    #: The recipe that selected them, and its stages up to select; none where nobody was asked.
    config: Config | None = None
    outputs: Mapping[str, StageOutput] = field(default_factory=dict[str, StageOutput])

    @property
    def num_examples(self) -> int:
        """Its size."""
        return len(self.members)


def budget_count(budget: float, num_candidates: int) -> int:
    """Return how many examples a budget is, as the select stage counts."""
    return min(num_candidates, max(1, round(budget * num_candidates)))


def members_without_teacher(
    key: SubsetKey, num_candidates: int, seed: int
) -> NDArray[np.int64] | None:
    """Return the members of a subset that asks no teacher; None: a method has to select it.

    Random subsets are nested: of one draw, a smaller budget is part of a larger one, so that a
    learning curve shows what more data do and not what other data do.

    Args:
        key: Whose subset.
        num_candidates: Candidates there are.
        seed: Of the recipe's selection; the draw's own number comes to it.
    """
    if key.method == INITIAL:
        return np.arange(0, dtype=np.int64)
    if key.method == FULL:
        return np.arange(num_candidates, dtype=np.int64)
    if key.method != RANDOM:
        return None
    sequence = np.random.SeedSequence([seed, key.seed, SUBSET_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_candidates)
    return np.sort(order[: budget_count(key.budget, num_candidates)]).astype(np.int64)


def selected_members(select: StageOutput) -> NDArray[np.int64]:
    """Return the members of a finished selection."""
    return np.sort(select.read("ranking", ["row_index"])["row_index"].to_numpy())
