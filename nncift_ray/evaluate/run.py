"""Evaluate: select the subsets, teach with them, measure on held-out rows, collect every value.

Each step is a stage with a fingerprint of its own, so a method, a budget or a metric more costs
what is new, and a run that was killed goes on. A cell that fails is told and left out; the others
go on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from nncift_ray.embedders import EmbedPromptsStage
from nncift_ray.errors import DataError, ModelError, NnciftError, StageError
from nncift_ray.evaluate.ask import LikelihoodStage, RespondStage, RetrieveStage, ShownExamples
from nncift_ray.evaluate.grade import GradeStage, JudgeStage
from nncift_ray.evaluate.methods import (
    ICL,
    TUNED,
    Cell,
    Makers,
    Method,
    Subset,
    SubsetKey,
    TestSet,
    Workbench,
    budget_count,
    check_evaluation,
    check_tests,
    makers_of,
    members_without_teacher,
    method_notices,
    modes_of,
    plan_cells,
    plan_rounds,
    prepare_test,
    selected_members,
    variant,
)
from nncift_ray.evaluate.results import (
    ANSWERED,
    BY_JUDGE,
    BY_MODEL,
    BY_RULE,
    GRADED,
    CellResult,
    EvaluationFiles,
    Measured,
    cell_scores,
    publish,
)
from nncift_ray.evaluate.tune import TuneJob, TuneStage
from nncift_ray.pipeline import RUN_RECORD, PoolUse, observed
from nncift_ray.plan import (
    CHARS_PER_TOKEN,
    SECONDS_PER_HOUR,
    STAGE_START_SECONDS,
    TEACHER_TOKENS_PER_SECOND,
    TRAINING_SHARE,
    RunPlan,
    SourceEstimate,
    detect_hardware,
    estimate_sources,
    make_plan,
)
from nncift_ray.recipe.sections import Config, EmbedderConfig, PoolConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import Executor
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import LineReporter, News, Reporter
from nncift_ray.runtime.ray_pool import cluster_has_gpu, execute_on_ray, ray_session


class Measurer:
    """Brings the stages of cells to their end.

    The mode "tuned" asks the fine-tuned model bare questions; "icl" shows the model as it came the
    nearest examples of the subset; the untaught model is asked bare questions.
    """

    def __init__(self, bench: Workbench, makers: Makers, base: Mapping[str, StageOutput]) -> None:
        """Work at a bench.

        Args:
            bench: Where.
            makers: What loads the models.
            base: The recipe's stages, deduplicate among them.
        """
        self._bench, self._makers, self._base = bench, makers, base
        self._config, self._evaluation = bench.config, bench.config.evaluation
        #: What several measurements of a cell rest on, and failing once is enough.
        self._known: dict[object, StageOutput | NnciftError] = {}

    def likelihoods(
        self, cell: Cell, subset: Subset, test: TestSet, known: CellResult
    ) -> CellResult:
        """Measure how likely the taught model finds the reference answers.

        Raises:
            NnciftError: If a stage cannot be brought to its end.
        """
        section, make = self._evaluation, self._makers.engine
        stage = LikelihoodStage(
            test.output,
            make,
            make.settings(),
            tuned=self._tuned(cell, subset),
            shown=self._shown(cell, subset, test),
            max_length=section.in_context.max_length,
            max_rows=section.nll_max_rows if cell.mode == ICL else None,
            seed=section.generation.seed,
            shard_rows=section.generation.pool.shard_rows,
        )
        output = self._bench.bring(stage, _with_model(section.generation.pool))
        return dataclasses.replace(known, likelihoods=output)

    def answers(self, cell: Cell, subset: Subset, test: TestSet, known: CellResult) -> CellResult:
        """Let the taught model answer, and grade what it wrote by all but a judge.

        Metrics that ask no model are all of one stage: leaving one out would save nothing.

        Raises:
            NnciftError: If a stage cannot be brought to its end.
        """
        metrics, makers, pool = self._evaluation.metrics, self._makers, self._config.embedder.pool
        responses = self._respond(cell, subset, test)
        grades: list[StageOutput] = []
        if any(metric in BY_RULE for metric in metrics):
            stage = GradeStage(responses, test.output, metrics=BY_RULE)
            grades.append(self._bench.bring(stage, _BY_CPU))
        if any(metric in BY_MODEL for metric in metrics):
            stage = GradeStage(
                responses,
                test.output,
                metrics=BY_MODEL,
                model=makers.embedder,
                make_embedder=makers.make_embedder,
            )
            grades.append(self._bench.bring(stage, _with_model(pool)))
        return dataclasses.replace(known, responses=responses, grades=tuple(grades))

    def verdicts(self, cell: Cell, subset: Subset, test: TestSet, known: CellResult) -> CellResult:
        """Ask the judge about what the taught model wrote.

        Raises:
            NnciftError: If a stage cannot be brought to its end.
        """
        section, make = self._evaluation.judge, self._makers.judge
        assert make is not None  # noqa: S101 (asked for by a metric)
        responses = known.responses or self._respond(cell, subset, test)
        stage = JudgeStage(
            responses,
            test.output,
            make,
            make.settings(),
            max_tokens=section.max_tokens,
            rubric=section.rubric,
            shard_rows=section.pool.shard_rows,
        )
        output = self._bench.bring(stage, _with_model(section.pool))
        return dataclasses.replace(known, responses=responses, verdicts=output)

    def _respond(self, cell: Cell, subset: Subset, test: TestSet) -> StageOutput:
        written, make = self._evaluation.generation, self._makers.generator
        stage = RespondStage(
            test.output,
            make,
            make.settings(),
            written,
            tuned=self._tuned(cell, subset),
            shown=self._shown(cell, subset, test),
            max_length=self._evaluation.in_context.max_length,
            max_rows=written.max_rows,
            shard_rows=written.pool.shard_rows,
        )
        return self._bench.bring(stage, _with_model(written.pool))

    def _tuned(self, cell: Cell, subset: Subset) -> StageOutput | None:
        """Return the model fine-tuned on the subset, where the mode is tuned."""
        if cell.mode != TUNED:
            return None
        return self._once((TUNED, subset.key), lambda: self._bring_tuned(subset))

    def _bring_tuned(self, subset: Subset) -> StageOutput:
        make, tuning = self._makers.trainable, self._evaluation.tuning
        job = TuneJob(
            self._base["deduplicate"],
            subset.members,
            make,
            make.model.name,
            make.training,
            tuning.num_workers,
        )
        stage = TuneStage(job, self._makers.train, make.settings(), quantization=make.quantization)
        use = dataclasses.replace(_with_model(tuning.pool), max_actors=tuning.num_workers)
        return self._bench.bring(stage, use)

    def _shown(self, cell: Cell, subset: Subset, test: TestSet) -> ShownExamples | None:
        """Return the examples of the subset to show, where the mode is icl."""
        if cell.mode != ICL:
            return None
        contexts = self._once((ICL, subset.key, test.name), lambda: self._retrieve(subset, test))
        return ShownExamples(contexts, self._base["deduplicate"])

    def _retrieve(self, subset: Subset, test: TestSet) -> StageOutput:
        """Find examples for every test row, so that asking more of them finds none anew."""
        stage = RetrieveStage(
            self._prompts(self._base["deduplicate"], "candidates"),
            subset.members,
            self._prompts(test.output, "targets"),
            num_examples=self._evaluation.in_context.num_examples,
        )
        return self._bench.bring(stage, dataclasses.replace(_BY_CPU, single_threaded=False))

    def _prompts(self, examples: StageOutput, table: str) -> StageOutput:
        """Return the vectors of a table's prompts, which all subsets are searched by."""
        section, makers = self._config.embedder, self._makers
        stage = EmbedPromptsStage(
            examples,
            makers.embedder,
            EmbedderConfig(pool=section.pool),
            make_embedder=makers.make_embedder,
            tables=(table,),
        )
        return self._once(
            (stage.name, examples.fingerprint, table),
            lambda: self._bench.bring(stage, _with_model(section.pool)),
        )

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


_BY_CPU = PoolUse(PoolConfig())


def _with_model(pool: PoolConfig) -> PoolUse:
    return PoolUse(pool, can_use_gpu=True, single_threaded=False)


# Evaluate: select the subsets, teach with them, measure on held-out rows, collect every value.

EVALUATE = "evaluate"
SELECT = "select"
#: Stages that the subsets of one method share, whatever their budget.
OF_ONE_BUDGET = ("select_partitions", SELECT)
#: What one cell may fail with while others may still succeed; anything else stops the evaluation.
OF_ONE_CELL = (DataError, ModelError, StageError)


@dataclass(frozen=True)
class Failure:
    """What could not be done, all for one reason."""

    parts: tuple[str, ...]  # e.g. "random (seed 0) 10 % tuned gsm8k, likelihood"
    message: str

    def __str__(self) -> str:
        """Return it as one line."""
        first, *others = self.parts
        more = f" (and {len(others)} more)" if others else ""
        return f"{first}{more}: {self.message}"


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation left behind."""

    files: EvaluationFiles
    failures: tuple[Failure, ...]


def evaluate(
    config: Config,
    *,
    reporter: Reporter | None = None,
    execute: Executor | None = None,
    make: Callable[[Config, bool], Makers] = makers_of,
) -> EvaluationResult:
    """Run every cell that is not done, and publish the tables; finished work is never done again.

    Args:
        config: The recipe.
        reporter: Hears of progress; plain lines by default.
        execute: Runs shards; a Ray Data actor pool by default.
        make: Makes what loads the models, of the recipe and of whether there is a GPU.

    Raises:
        NnciftError: With what is wrong and the remedy; finished work is kept. What only one cell
            fails with is in the result.
    """
    notices = check_evaluation(config)
    run_dir = Location.of(config.run_dir)
    run_dir.make_folder()
    with (
        locked(run_dir),
        ray_session(config.cluster),
        observed(config, run_dir, reporter or LineReporter()) as heard,
    ):
        news, has_gpu = News(heard), cluster_has_gpu()
        makers = make(config, has_gpu)
        notices = (*notices, *makers.notices)
        for notice in notices:
            news.notice(notice)
        bench = Workbench(config, run_dir, execute or execute_on_ray, news, has_gpu)
        return _Evaluation(bench, makers, notices).run()


class _Evaluation:
    """One evaluation at work."""

    def __init__(self, bench: Workbench, makers: Makers, notices: Sequence[str]) -> None:
        self._bench, self._makers = bench, makers
        self._config, self._evaluation = bench.config, bench.config.evaluation
        self._rounds = plan_rounds(self._evaluation)
        self._keys = [key for keys in self._rounds for key in keys]
        self._cells = plan_cells(self._keys, self._evaluation)
        self._base: dict[str, StageOutput] = {}
        self._tests: dict[str, TestSet] = {}
        self._subsets: dict[SubsetKey, Subset] = {}
        self._results: dict[Cell, CellResult] = {}
        self._begun: list[Cell] = []
        self._failures: list[tuple[NnciftError, list[str]]] = []
        self._notices = list(notices)

    def run(self) -> EvaluationResult:
        """Do all there is to do, and publish after every round."""
        self._read_corpora()
        self._select()
        measurer = Measurer(self._bench, self._makers, self._base)
        files: EvaluationFiles | None = None
        for keys in self._rounds:
            cells = plan_cells(keys, self._evaluation)
            self._begun += cells
            if "nll" in self._evaluation.metrics:
                self._measure(cells, "likelihood", measurer.likelihoods)
            if any(metric in GRADED for metric in self._evaluation.metrics):
                self._measure(cells, "answers", measurer.answers)
            if any(metric in BY_JUDGE for metric in self._evaluation.metrics):
                self._measure(cells, "verdicts", measurer.verdicts)
            files = self._publish()
        assert files is not None  # noqa: S101 (a recipe has a method, so a round)
        return EvaluationResult(files, self._failed())

    def _read_corpora(self) -> None:
        record = not (self._bench.run_dir / RUN_RECORD).exists()
        self._base = self._bench.bring_recipe(self._config, "embed", record=record)
        for name, patterns in self._evaluation.tests.items():
            test = prepare_test(self._bench, name, patterns, self._base["deduplicate"])
            self._tests[name] = test
            self._notices += test.notices()
            for notice in test.notices():
                self._bench.reporter.notice(notice)

    def _select(self) -> None:
        """Find the members of every subset; a method that fails once is not tried again."""
        num_candidates = self._base["deduplicate"].num_rows("candidates")
        failed: set[str] = set()
        for number, key in enumerate(self._keys, 1):
            members = members_without_teacher(key, num_candidates, self._config.selection.seed)
            if members is not None:
                self._subsets[key] = Subset(key, members)
            elif key.method not in failed:
                self._head(f"subset {number} of {len(self._keys)}: {key}")
                try:
                    self._subsets[key] = self._select_by_method(key)
                except OF_ONE_CELL as error:
                    failed.add(key.method)
                    self._fail(f"the subsets of {key.method}", error)

    def _select_by_method(self, key: SubsetKey) -> Subset:
        recipe = variant(self._config, Method.named(key.method), key.budget)
        outputs = self._bench.bring_recipe(recipe, SELECT, self._known(key.method, recipe))
        # Candidates are read before all else, so their numbers are those of the recipe itself.
        return Subset(key, selected_members(outputs[SELECT]), recipe, outputs)

    def _known(self, method: str, recipe: Config) -> dict[str, StageOutput]:
        """Return what need not be looked for again: files are hashed to be known."""
        for key, subset in self._subsets.items():
            if key.method == method:
                shared = subset.outputs.items()
                return {name: output for name, output in shared if name not in OF_ONE_BUDGET}
        return self._base if recipe.data == self._config.data else {}

    def _measure(
        self,
        cells: list[Cell],
        what: str,
        measure: Callable[[Cell, Subset, TestSet, CellResult], CellResult],
    ) -> None:
        """Measure one thing of some cells."""
        for cell in cells:
            subset = self._subsets.get(cell.subset)
            if subset is None:
                continue  # told when it could not be selected
            number = self._cells.index(cell) + 1
            self._head(f"cell {number} of {len(self._cells)}: {cell}, {what}")
            known = self._results.get(cell, CellResult())
            try:
                self._results[cell] = measure(cell, subset, self._tests[cell.test], known)
            except OF_ONE_CELL as error:
                self._fail(f"{cell}, {what}", error)

    def _publish(self) -> EvaluationFiles:
        """Write the tables of what is there; of cells whose turn has not come there is nothing."""
        count = {key: subset.num_examples for key, subset in self._subsets.items()}
        tables = [
            cell_scores(
                cell,
                count.get(cell.subset, 0),
                self._tests[cell.test],
                self._evaluation,
                self._results.get(cell, CellResult()),
            )
            for cell in self._begun
        ]
        scores = pa.concat_tables([schemas.SCORES.empty_table(), *tables])
        measured = Measured(
            scores=scores,
            results=self._results,
            subsets=list(self._subsets.values()),
            tests=self._tests,
            examples=self._base["deduplicate"],
            model=self._makers.engine.model.name,
            judge=self._makers.judge.model.name if self._makers.judge else "",
            notices=(*self._notices, *(f"failed: {failure}" for failure in self._failed())),
        )
        return publish(self._bench, measured)

    def _head(self, message: str) -> None:
        self._bench.reporter.heading(EVALUATE, message)

    def _fail(self, what: str, error: NnciftError) -> None:
        """Remember a failure; a second part that fails with the same error is told with it."""
        for known, parts in self._failures:
            if known is error:
                parts.append(what)
                return
        self._failures.append((error, [what]))
        self._bench.reporter.notice(
            f"{what}: failed, the others go on. {type(error).__name__}: {error}"
        )

    def _failed(self) -> tuple[Failure, ...]:
        return tuple(
            Failure(tuple(parts), f"{type(error).__name__}: {error}")
            for error, parts in self._failures
        )


# What an evaluation would do, how long it may take and what it may cost; nothing is started.

# Guesses, per actor.
WRITING_SHARE = 0.15  # of the speed of reading: tokens are written one after another, in batches
MODEL_START_SECONDS = {"cpu": 15.0, "gpu": 60.0}  # of an actor with a language model
TUNER_START_SECONDS = {"cpu": 25.0, "gpu": 60.0}  # of Ray Train and its worker
JUDGE_PROMPT_TOKENS = 500.0  # of the rubric and what frames an answer
JUDGE_WRITTEN_SHARE = 0.3  # of evaluation.judge.max_tokens, on average
#: Stages that all methods share.
SHARED_STAGES = ("ingest", "deduplicate", "embed")
SELECT_STAGES = ("select_partitions", "select")


@dataclass(frozen=True)
class PlanRow:
    """A step of the evaluation: one method's selection, or the cells of its subsets of one size."""

    what: str
    amount: str
    num_cells: int
    num_tokens: float  # computed by a language model: read, trained on and written
    seconds: float
    cost_usd: float


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation would do, from the start."""

    run_dir: str
    num_candidates: int
    exact: bool  # whether that number is counted
    tests: Mapping[str, int]  # rows by test set
    hardware: str
    rows: tuple[PlanRow, ...]
    notices: tuple[str, ...]

    @property
    def num_cells(self) -> int:
        """Cells of all rows."""
        return sum(row.num_cells for row in self.rows)

    @property
    def num_tokens(self) -> float:
        """Tokens that language models compute."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def seconds(self) -> float:
        """Estimated seconds."""
        return sum(row.seconds for row in self.rows)

    @property
    def cost_usd(self) -> float:
        """Estimated price."""
        return sum(row.cost_usd for row in self.rows)


def plan_evaluation(
    config: Config, *, hardware: Literal["cpu", "gpu"] | None = None
) -> EvaluationPlan:
    """Say what `nncift evaluate` would do, without starting anything.

    Raises:
        NnciftError: What would stop it at once: files or models that are not there.
    """
    check_tests(config)
    kind = hardware or detect_hardware()
    work = _Work(config, kind)
    keys = [key for keys in plan_rounds(config.evaluation) for key in keys]
    rows = [*work.selections(keys), *work.lessons(keys)]
    return EvaluationPlan(
        run_dir=config.run_dir,
        num_candidates=work.candidates.num_rows,
        exact=work.candidates.exact,
        tests={name: test.num_rows for name, test in work.tests.items()},
        hardware=kind,
        rows=tuple(rows),
        notices=tuple(dict.fromkeys([*method_notices(config), *work.notices])),
    )


@dataclass
class _Effort:
    """What some cells cost; read, trained on and written count their tokens."""

    read: float = 0.0
    trained: float = 0.0
    written: float = 0.0
    starts: float = 0.0  # seconds of loading models


class _Work:
    """Amounts of work, by the sizes of the files."""

    def __init__(self, config: Config, kind: str) -> None:
        self._config, self._kind = config, kind
        self._evaluation = config.evaluation
        self.notices: list[str] = []
        self.candidates = estimate_sources(config, config.data.candidates)
        self.tests = {
            name: estimate_sources(config, patterns)
            for name, patterns in config.evaluation.tests.items()
        }
        self._speed = config.cluster.teacher_tokens_per_second or TEACHER_TOKENS_PER_SECOND[kind]

    def selections(self, keys: list[SubsetKey]) -> list[PlanRow]:
        """Return a row for each method that asks a teacher: labels, scores and all its subsets."""
        rows: list[PlanRow] = []
        for name in self._config.evaluation.methods:
            method = Method.named(name)
            budgets = [key.budget for key in keys if key.method == name]
            if method.teacher is None or not budgets:
                continue
            made = make_plan(variant(self._config, method, budgets[0]), hardware=self._kind_name)
            self.notices += made.notices
            rows.append(self._selection(name, made, len(budgets), is_first=not rows))
        return rows

    @property
    def _kind_name(self) -> Literal["cpu", "gpu"]:
        return "gpu" if self._kind == "gpu" else "cpu"

    def _selection(self, name: str, made: RunPlan, num_subsets: int, *, is_first: bool) -> PlanRow:
        left = [stage for stage in made.stages if stage.name != "export"]
        own = [stage for stage in left if is_first or stage.name not in SHARED_STAGES]
        further = [stage for stage in left if stage.name in SELECT_STAGES] * (num_subsets - 1)
        done = all(stage.state == "done" for stage in own if stage.name == "label")
        tokens = 0 if done else made.num_teacher_tokens
        return PlanRow(
            what=f"select by {name}",
            amount=f"{num_subsets} subset(s), {made.num_requests:,} requests"
            + (", labels done" if done else ""),
            num_cells=0,
            num_tokens=tokens,
            seconds=sum(stage.seconds for stage in [*own, *further]),
            cost_usd=sum(stage.cost_usd for stage in [*own, *further]),
        )

    def lessons(self, keys: list[SubsetKey]) -> list[PlanRow]:
        """Return a row for each method and budget: teaching and measuring."""
        groups: dict[tuple[str, float], list[SubsetKey]] = {}
        for key in keys:
            groups.setdefault((key.method, key.budget), []).append(key)
        return [self._lesson(subsets) for subsets in groups.values()]

    def _lesson(self, subsets: list[SubsetKey]) -> PlanRow:
        first, effort = subsets[0], _Effort()
        count = self._num_examples(first)
        cells = plan_cells(subsets, self._evaluation)
        modes = modes_of(first, self._evaluation)
        if TUNED in modes:
            tuning = self._evaluation.tuning
            effort.trained += len(subsets) * count * tuning.num_epochs * _tokens(self.candidates)
            effort.starts += len(subsets) * TUNER_START_SECONDS[self._kind]
        for cell in cells:
            self._add_cell(cell, effort)
        seconds = (
            effort.starts
            + effort.read / self._speed
            + effort.trained / (self._speed * TRAINING_SHARE)
            + effort.written / (self._speed * WRITING_SHARE)
        )
        what = first.method if not first.budget else f"{first.method} {first.budget * 100:g} %"
        return PlanRow(
            what=what,
            amount=f"{len(subsets)} x {count:,} examples, {', '.join(modes)}" if count else "",
            num_cells=len(cells),
            num_tokens=effort.read + effort.trained + effort.written,
            seconds=seconds,
            cost_usd=seconds / SECONDS_PER_HOUR * self._price,
        )

    def _add_cell(self, cell: Cell, effort: _Effort) -> None:
        evaluation, test = self._evaluation, self.tests[cell.test]
        prompt = self._prompt_tokens(cell, test)
        if cell.mode == ICL:
            effort.starts += STAGE_START_SECONDS
        if "nll" in evaluation.metrics:
            most = evaluation.nll_max_rows if cell.mode == ICL else None
            rows = min(test.num_rows, most or test.num_rows)
            effort.read += rows * (prompt + test.response_chars / CHARS_PER_TOKEN)
            effort.starts += MODEL_START_SECONDS[self._kind]
        if not any(metric in ANSWERED for metric in evaluation.metrics):
            return
        rows = min(test.num_rows, evaluation.generation.max_rows or test.num_rows)
        effort.read += rows * prompt
        effort.written += rows * evaluation.generation.max_tokens
        effort.starts += MODEL_START_SECONDS[self._kind] + STAGE_START_SECONDS
        if "judge" in evaluation.metrics:
            shown = _tokens(test) + evaluation.generation.max_tokens + JUDGE_PROMPT_TOKENS
            effort.read += rows * shown
            effort.written += rows * evaluation.judge.max_tokens * JUDGE_WRITTEN_SHARE
            effort.starts += MODEL_START_SECONDS[self._kind]

    def _prompt_tokens(self, cell: Cell, test: SourceEstimate) -> float:
        question = test.prompt_chars / CHARS_PER_TOKEN
        if cell.mode != ICL:
            return question
        shown = self._evaluation.in_context
        return min(shown.max_length, question + shown.num_examples * _tokens(self.candidates))

    def _num_examples(self, key: SubsetKey) -> int:
        return budget_count(key.budget, self.candidates.num_rows) if key.budget else 0

    @property
    def _price(self) -> float:
        cluster = self._config.cluster
        if self._kind == "gpu":
            return cluster.price_per_gpu_hour
        return cluster.price_per_cpu_hour * (os.cpu_count() or 1)


def _tokens(examples: SourceEstimate) -> float:
    """Return the mean tokens of an example, prompt and answer."""
    return (examples.prompt_chars + examples.response_chars) / CHARS_PER_TOKEN
