"""Evaluate: select the subsets, teach with them, measure on held-out rows, collect every value.

Each step is a stage with a fingerprint of its own, so a method, a budget or a metric more costs
what is new, and a run that was killed goes on. A cell that fails is told and left out; the others
go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pyarrow as pa

import nncift_ray
from nncift_ray.corpus.examples import DeduplicateStage
from nncift_ray.corpus.ingest import IngestStage, find_sources
from nncift_ray.embedders import Embedder, EmbedPromptsStage, load_embedder
from nncift_ray.engines.models import (
    EngineFactory,
    ResolvedModel,
    find_engine,
    need_packages,
    resolve_embedder,
)
from nncift_ray.errors import DataError, ModelError, NnciftError, StageError
from nncift_ray.evaluation import ask, methods, results
from nncift_ray.evaluation.costs import collect_costs, partial_notices
from nncift_ray.evaluation.metrics import BY_EMBEDDER, BY_RULE, GradeStage, JudgeStage
from nncift_ray.evaluation.page import render_evaluation
from nncift_ray.evaluation.tune import FineTune, TuneJob, TuneStage
from nncift_ray.pipeline import (
    RUN_RECORD,
    Blueprint,
    begun_with_gpu,
    run_stages,
    session_of,
)
from nncift_ray.recipe.sections import Config, EmbedderConfig, EngineConfig, PoolConfig
from nncift_ray.runtime.driver import Executor, run_stage
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import StageOutput, describe_environment
from nncift_ray.runtime.progress import LineReporter, News, Reporter
from nncift_ray.runtime.schemas import SCORES
from nncift_ray.runtime.session import Session, observed
from nncift_ray.runtime.step import Stage

EVALUATE, SELECT = "evaluate", "select"
#: Stages that the subsets of one method do not share.
OF_ONE_BUDGET = ("select_partitions", SELECT)
#: What one cell may fail with while others may still succeed; anything else stops the evaluation.
OF_ONE_CELL = (DataError, ModelError, StageError)


@dataclass(frozen=True)
class Models:
    """The models of an evaluation, and what loads them inside actors."""

    job: TuneJob  # the model that is taught
    likelihood: EngineFactory
    generator: EngineFactory
    embedder: ResolvedModel
    make_embedder: Callable[[], Embedder]
    judge: EngineFactory | None  # None: no metric asks one
    train: FineTune | None = None  # None: ``tune.fine_tune``

    @property
    def notices(self) -> list[str]:
        """What was decided for the user about models."""
        models = [self.job.model, self.embedder, *([self.judge.model] if self.judge else [])]
        return [model.notice for model in models if model.notice]


def find_models(config: Config, has_gpu: bool) -> Models:
    """Find the models that a recipe evaluates with.

    Raises:
        ModelError: If one cannot be found.
    """
    evaluation = config.evaluation
    template, turns = config.teacher.template, config.teacher.turns
    options = EngineConfig(
        model=evaluation.model,
        revision=evaluation.revision,
        engine=evaluation.engine,
        dtype=evaluation.dtype,
        max_length=evaluation.in_context.max_length,
        template=template,
        turns=turns,
    )
    engine = find_engine(options, has_gpu=has_gpu)
    embedder = resolve_embedder(config.embedder.model, config.embedder.revision)
    judge = None
    if "judge" in evaluation.metrics:
        keys = {"model", "revision", "engine", "dtype", "quantization", "max_length"}
        judging = EngineConfig(**evaluation.judge.model_dump(include=keys))
        judge = find_engine(judging, has_gpu=has_gpu, generates=True)
    return Models(
        TuneJob(engine.model, evaluation.tuning, has_gpu, template, turns),
        engine,
        replace(engine, generates=True),
        embedder,
        partial(load_embedder, embedder),
        judge,
    )


Measure = Callable[[methods.Cell, methods.Subset], None]
#: Why parts of an evaluation could not be done: the message, and the parts that failed by it, e.g.
#: "random (seed 0) 10 % tuned gsm8k, likelihood".
Failures = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation left behind."""

    folder: Location
    data: results.Evaluation
    failures: Failures

    @property
    def page(self) -> Location:
        """The report."""
        return self.folder / results.PAGE_NAME


def describe_failures(failures: Failures) -> list[str]:
    """Return a line for every reason, with the first part that failed by it."""
    return [
        f"{parts[0]}{f' (and {len(parts) - 1} more)' if parts[1:] else ''}: {message}"
        for message, parts in failures.items()
    ]


def evaluate(
    config: Config,
    *,
    reporter: Reporter | None = None,
    execute: Executor | None = None,
    find: Callable[[Config, bool], Models] = find_models,
) -> EvaluationResult:
    """Run every cell that is not done, and publish the tables; finished work is never done again.

    Args:
        config: The recipe.
        reporter: Hears of progress; plain lines by default.
        execute: Runs shards, in place of what the session has for it.
        find: Finds the models of the recipe; it is told whether there is a GPU.

    Raises:
        NnciftError: With what is wrong and the remedy; finished work is kept. What only one cell
            fails with is in the result.
    """
    need_packages("evaluate", "nncift evaluate", "accelerate", "peft", "rouge_score")
    notices = methods.check_evaluation(config)
    run_dir = Location.of(config.run_dir)
    run_dir.make_folder()
    reporter = reporter or LineReporter()
    with (
        locked(run_dir),
        session_of(Blueprint(config), run_dir, reporter, execute) as session,
        observed(config, run_dir, reporter) as heard,
    ):
        has_gpu = session.has_gpu(config.evaluation.tuning.pool)
        models = find(config, begun_with_gpu(run_dir, has_gpu=has_gpu))
        work = _Work(config, run_dir, session, News(heard), models)
        for notice in (*notices, *models.notices):
            work.notice(notice)
        return work.run()


class _Work:
    """One evaluation at work."""

    def __init__(
        self,
        config: Config,
        run_dir: Location,
        session: Session,
        reporter: Reporter,
        models: Models,
    ) -> None:
        self._config, self._evaluation = config, config.evaluation
        self._run_dir, self._session, self._reporter = run_dir, session, reporter
        self._has_gpu, self._models = session.has_gpu(config.evaluation.tuning.pool), models
        self._rounds = methods.plan_rounds(config.evaluation)
        self._base: Mapping[str, StageOutput] = {}  # the recipe's own stages
        self._tests: dict[str, ask.TestSet] = {}
        self._subsets: dict[methods.SubsetKey, methods.Subset] = {}
        #: What the cells whose turn has come left behind, by table.
        self._done: dict[methods.Cell, dict[str, StageOutput]] = {}
        #: What several measurements rest on: brought once, and failing once is enough.
        self._known: dict[object, StageOutput | NnciftError] = {}
        self._failures: dict[str, list[str]] = {}
        self._notices: list[str] = []

    def run(self) -> EvaluationResult:
        """Do all there is to do, and publish after every round."""
        record = not (self._run_dir / RUN_RECORD).exists()
        self._base = self._run_recipe(self._config, "embed", {}, record=record)
        for name in self._evaluation.tests:
            self._tests[name] = self._read_test(name)
            for notice in self._tests[name].notices(self._base["deduplicate"]):
                self.notice(notice)
        self._select()
        metrics = set(self._evaluation.metrics)
        steps = {
            "likelihood": (self._likelihoods, "nll" in metrics),
            "answers": (self._answers, bool(metrics & {*BY_RULE, *BY_EMBEDDER})),
            "verdicts": (self._verdicts, "judge" in metrics),
        }
        keys = [key for keys in self._rounds for key in keys]
        cells = methods.plan_cells(keys, self._evaluation)
        published = self._publish()
        for keys in self._rounds:
            here = [cell for cell in cells if cell.subset in keys]
            self._done |= {cell: {} for cell in here}
            for what, (measure, wanted) in steps.items():
                for cell in here if wanted else []:
                    place = f"cell {cells.index(cell) + 1} of {len(cells)}"
                    self._measure(cell, place, what, measure)
            published = self._publish()
        return EvaluationResult(
            self._run_dir / results.EVALUATION_FOLDER, published, self._failures
        )

    def notice(self, notice: str) -> None:
        """Tell the user, now and on the page."""
        self._notices.append(notice)
        self._reporter.notice(notice)

    def _bring(self, stage: Stage, pool: PoolConfig | None = None) -> StageOutput:
        """Bring one stage to its end."""
        session, cluster = self._session, self._config.cluster
        stage.resources = session.resources_for(stage, pool or PoolConfig(), cluster)
        return run_stage(stage, self._run_dir, execute=session.execute, reporter=self._reporter)

    def _once(self, key: object, bring: Callable[[], StageOutput]) -> StageOutput:
        """Bring a stage that several others rest on; its failure is theirs, and is not repeated."""
        if key not in self._known:
            try:
                self._known[key] = bring()
            except NnciftError as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, NnciftError):
            raise known
        return known

    def _run_recipe(
        self, config: Config, until: str, known: Mapping[str, StageOutput], *, record: bool = False
    ) -> dict[str, StageOutput]:
        """Bring the stages of a recipe to their end; ``record``: for `nncift status` to show."""
        blueprint = Blueprint(config, has_gpu=self._has_gpu)
        blueprint.check()
        for notice in blueprint.notices():
            self._reporter.notice(notice)
        blueprint.teaching.begun_with_gpu = begun_with_gpu(self._run_dir, has_gpu=self._has_gpu)
        return run_stages(
            blueprint, self._run_dir, until, self._session, self._reporter, record=record,
            known=known,
        )  # fmt: skip

    def _read_test(self, name: str) -> ask.TestSet:
        """Read a test set as a corpus."""
        try:
            ingest = IngestStage(find_sources((), self._evaluation.tests[name]), self._config.data)
            return ask.TestSet(name, self._bring(DeduplicateStage(self._bring(ingest))))
        except NnciftError as error:
            raise type(error)(f"evaluation.tests.{name}: {error}") from error

    # The subsets.

    def _select(self) -> None:
        """Find the members of every subset; a method that fails once is not tried again."""
        num_candidates = self._base["deduplicate"].num_rows("candidates")
        keys = [key for keys in self._rounds for key in keys]
        failed: set[str] = set()
        source, seed = None, self._config.selection.seed
        if methods.RANDOM_SOURCE in self._evaluation.methods:
            source = methods.source_members(self._base["deduplicate"], self._config)
        for number, key in enumerate(keys, 1):
            members = methods.members_without_teacher(key, num_candidates, seed, source)
            if members is not None:
                self._subsets[key] = methods.Subset(key, members)
            elif key.method not in failed:
                self._reporter.heading(EVALUATE, f"subset {number} of {len(keys)}: {key}")
                try:
                    self._subsets[key] = self._select_by_method(key)
                except OF_ONE_CELL as error:
                    failed.add(key.method)
                    self._fail(f"the subsets of {key.method}", error)

    def _select_by_method(self, key: methods.SubsetKey) -> methods.Subset:
        recipe = methods.variant(self._config, key.method, key.budget)
        # What need not be looked for again: files are hashed to be known.
        known = self._base if recipe.data == self._config.data else {}
        for other, subset in self._subsets.items():
            if other.method == key.method:
                known = {n: out for n, out in subset.outputs.items() if n not in OF_ONE_BUDGET}
        outputs = self._run_recipe(recipe, SELECT, known)
        # Candidates are read before all else, so their numbers are those of the recipe itself.
        ranking = outputs[SELECT].read("ranking", ["row_index"])
        return methods.Subset(key, np.sort(ranking["row_index"].to_numpy()), recipe, outputs)

    # The cells. "tuned" asks the fine-tuned model bare questions; "icl" shows the model as it came
    # the nearest examples of the subset; the untaught model is asked bare questions.

    def _measure(
        self,
        cell: methods.Cell,
        place: str,
        what: str,
        measure: Callable[[methods.Cell, methods.Subset], None],
    ) -> None:
        """Measure one thing of a cell."""
        subset = self._subsets.get(cell.subset)
        if subset is None:
            return  # told when it could not be selected
        self._reporter.heading(EVALUATE, f"{place}: {cell}, {what}")
        try:
            measure(cell, subset)
        except OF_ONE_CELL as error:
            self._fail(f"{cell}, {what}", error)

    def _likelihoods(self, cell: methods.Cell, subset: methods.Subset) -> None:
        section = self._evaluation
        stage = ask.LikelihoodStage(
            self._tests[cell.test].output,
            self._models.likelihood,
            tuned=self._tuned(cell, subset),
            shown=self._shown(cell, subset),
            max_length=section.in_context.max_length,
            max_rows=section.nll_max_rows if cell.mode == methods.ICL else None,
            seed=section.generation.seed,
            shard_rows=section.generation.pool.shard_rows,
        )
        self._done[cell]["likelihoods"] = self._bring(stage, section.generation.pool)

    def _responses(self, cell: methods.Cell, subset: methods.Subset) -> StageOutput:
        """Return the answers of the taught model."""
        section = self._evaluation
        if "responses" not in self._done[cell]:
            stage = ask.RespondStage(
                self._tests[cell.test].output,
                self._models.generator,
                section.generation,
                tuned=self._tuned(cell, subset),
                shown=self._shown(cell, subset),
                max_length=section.in_context.max_length,
            )
            self._done[cell]["responses"] = self._bring(stage, section.generation.pool)
        return self._done[cell]["responses"]

    def _answers(self, cell: methods.Cell, subset: methods.Subset) -> None:
        """Let the taught model answer, and grade what it wrote by all but a judge.

        Metrics that ask no model are all of one stage: leaving one out would save nothing.
        """
        responses, tests = self._responses(cell, subset), self._tests[cell.test].output
        metrics, models = set(self._evaluation.metrics), self._models
        if metrics & {*BY_RULE}:
            self._done[cell]["grades"] = self._bring(GradeStage(responses, tests))
        if metrics & {*BY_EMBEDDER}:
            stage = GradeStage(responses, tests, models.embedder, models.make_embedder)
            self._done[cell]["cosines"] = self._bring(stage, self._config.embedder.pool)

    def _verdicts(self, cell: methods.Cell, subset: methods.Subset) -> None:
        assert self._models.judge is not None  # noqa: S101 (asked for by a metric)
        section, tests = self._evaluation.judge, self._tests[cell.test].output
        stage = JudgeStage(self._responses(cell, subset), tests, self._models.judge, section)
        self._done[cell]["verdicts"] = self._bring(stage, section.pool)

    def _tuned(self, cell: methods.Cell, subset: methods.Subset) -> StageOutput | None:
        """Return the model fine-tuned on the subset, where the mode is tuned."""
        if cell.mode != methods.TUNED:
            return None
        examples, models = self._base["deduplicate"], self._models
        stage = TuneStage(examples, subset.members, models.job, models.train)
        pool = self._evaluation.tuning.pool
        return self._once((methods.TUNED, subset.key), lambda: self._bring(stage, pool))

    def _shown(self, cell: methods.Cell, subset: methods.Subset) -> ask.ShownExamples | None:
        """Return the examples of the subset to show, where the mode is icl."""
        if cell.mode != methods.ICL:
            return None

        def retrieve() -> StageOutput:
            """Find examples for every test row, so that asking more of them finds none anew."""
            stage = ask.RetrieveStage(
                self._prompts(self._base["deduplicate"], "candidates"),
                subset.members,
                self._prompts(self._tests[cell.test].output, "targets"),
                num_examples=self._evaluation.in_context.num_examples,
            )
            return self._bring(stage)

        contexts = self._once((methods.ICL, subset.key, cell.test), retrieve)
        return ask.ShownExamples(contexts, self._base["deduplicate"])

    def _prompts(self, examples: StageOutput, table: str) -> StageOutput:
        """Return the vectors of a table's prompts, which all subsets are searched by."""
        pool, models = self._config.embedder.pool, self._models
        stage = EmbedPromptsStage(
            examples, models.embedder, EmbedderConfig(pool=pool),
            make_embedder=models.make_embedder, tables=(table,),
        )  # fmt: skip
        key = (stage.name, examples.fingerprint, table)
        return self._once(key, lambda: self._bring(stage, pool))

    # What it came to.

    def _publish(self) -> results.Evaluation:
        """Write the tables of what is there; of cells whose turn has not come there is nothing."""
        folder, config = self._run_dir / results.EVALUATION_FOLDER, self._config
        subsets, examples = list(self._subsets.values()), self._base["deduplicate"]
        count = {subset.key: len(subset.members) for subset in subsets}
        scores = [
            results.cell_scores(
                cell, count.get(cell.subset, 0), self._tests[cell.test], self._evaluation, outputs
            )
            for cell, outputs in self._done.items()
        ]  # fmt: skip
        failed = [f"failed: {line}" for line in describe_failures(self._failures)]
        facts = results.EvaluationFacts(
            name=config.report.title or self._run_dir.name,
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=nncift_ray.__version__,
            confidence=self._evaluation.confidence,
            num_samples=self._evaluation.bootstrap_samples,
            num_candidates=examples.num_rows("candidates"),
            model=self._models.job.model.name,
            judge=self._models.judge.model.name if self._models.judge else "",
            config=config.model_dump(mode="json"),
            environment=describe_environment(),
            notices=tuple(dict.fromkeys([*self._notices, *failed, *partial_notices(subsets)])),
        )
        data = results.Evaluation(
            facts,
            pa.concat_tables([SCORES.empty_table(), *scores]),
            collect_costs(subsets, config.cluster, self._evaluation.extrapolate_to),
            results.collect_agreement(subsets),
            results.collect_fidelity(subsets),
            results.collect_answers(self._done, self._tests, self._evaluation.generation.seed,
                            self._evaluation.budgets[0]),
        )  # fmt: skip
        data.write(folder)
        (folder / results.PAGE_NAME).write_bytes(render_evaluation(data).encode())
        results.write_subsets(folder / results.SUBSETS_NAME, subsets, examples)
        return data

    def _fail(self, what: str, error: NnciftError) -> None:
        """Remember a failure; a second part that fails by the same error is not told again."""
        message = f"{type(error).__name__}: {error}"
        if message not in self._failures:
            self._reporter.notice(f"{what}: failed, the others go on. {message}")
        self._failures.setdefault(message, []).append(what)
