"""Evaluate: select the subsets, teach with them, measure on held-out rows, collect every value.

Each step is a stage with a fingerprint of its own, so a method, a budget or a metric more costs
what is new, and a run that was killed goes on. A cell that fails is told and left out; the others
go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nncift_ray.config import Config
from nncift_ray.errors import DataError, ModelError, NnciftError, StageError
from nncift_ray.pipeline.evaluation.cells import (
    Cell,
    SubsetKey,
    plan_cells,
    plan_rounds,
)
from nncift_ray.pipeline.evaluation.checking import check_evaluation
from nncift_ray.pipeline.evaluation.held_out import TestSet, prepare_test
from nncift_ray.pipeline.evaluation.makers import Makers, makers_of
from nncift_ray.pipeline.evaluation.measuring import Measurer
from nncift_ray.pipeline.evaluation.methods import Method, variant
from nncift_ray.pipeline.evaluation.publishing import Measured, publish
from nncift_ray.pipeline.evaluation.record import EvaluationFiles
from nncift_ray.pipeline.evaluation.scores import BY_JUDGE, GRADED, CellResult, cell_scores
from nncift_ray.pipeline.evaluation.subsets import (
    Subset,
    members_without_teacher,
    selected_members,
)
from nncift_ray.pipeline.evaluation.workbench import Workbench
from nncift_ray.pipeline.locking import locked
from nncift_ray.pipeline.observing import observed
from nncift_ray.pipeline.opening import RUN_RECORD
from nncift_ray.stages.driving.driver import Executor
from nncift_ray.stages.driving.progress import LineReporter, Reporter
from nncift_ray.stages.driving.ray_pool import cluster_has_gpu, execute_on_ray, ray_session
from nncift_ray.stages.driving.reporters import News
from nncift_ray.storage import evaluation_schemas as schemas
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput

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
