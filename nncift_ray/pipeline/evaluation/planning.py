"""What an evaluation would do, how long it may take and what it may cost; nothing is started.

Numbers of rows are exact for small files. Speeds are guesses: ``cluster.teacher_tokens_per_second``
is taken for the model under evaluation, too, and for the judge.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nncift_ray.config import Config
from nncift_ray.pipeline.corpus_size import SourceEstimate, estimate_sources
from nncift_ray.pipeline.evaluation.cells import (
    ICL,
    TUNED,
    Cell,
    SubsetKey,
    modes_of,
    plan_cells,
    plan_rounds,
)
from nncift_ray.pipeline.evaluation.checking import check_tests
from nncift_ray.pipeline.evaluation.methods import Method, method_notices, variant
from nncift_ray.pipeline.evaluation.scores import ANSWERED
from nncift_ray.pipeline.evaluation.subsets import budget_count
from nncift_ray.pipeline.planner import SECONDS_PER_HOUR, RunPlan, detect_hardware, make_plan
from nncift_ray.pipeline.workload import (
    CHARS_PER_TOKEN,
    STAGE_START_SECONDS,
    TEACHER_TOKENS_PER_SECOND,
    TRAINING_SHARE,
)

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
