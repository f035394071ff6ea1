"""A cell as stages: teach the model with the subset, measure it on the test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from nncift_ray.config import PoolConfig
from nncift_ray.errors import NnciftError
from nncift_ray.models.generation import GenerationSettings
from nncift_ray.pipeline.blueprint import PoolUse
from nncift_ray.pipeline.evaluation.cells import ICL, TUNED, Cell
from nncift_ray.pipeline.evaluation.held_out import TestSet
from nncift_ray.pipeline.evaluation.makers import Makers
from nncift_ray.pipeline.evaluation.scores import BY_MODEL, BY_RULE, CellResult
from nncift_ray.pipeline.evaluation.subsets import Subset
from nncift_ray.pipeline.evaluation.workbench import Workbench
from nncift_ray.stages.corpus.embed import EmbedPromptsStage
from nncift_ray.stages.evaluation.grade import GradeStage
from nncift_ray.stages.evaluation.judge import JudgeStage
from nncift_ray.stages.evaluation.likelihood import LikelihoodStage
from nncift_ray.stages.evaluation.respond import RespondStage
from nncift_ray.stages.evaluation.retrieve import RetrieveStage
from nncift_ray.stages.evaluation.shown_examples import ShownExamples
from nncift_ray.stages.evaluation.tune import TuneJob, TuneStage
from nncift_ray.storage.output import StageOutput


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
            GenerationSettings(
                written.max_tokens, written.temperature, written.min_p, written.seed
            ),
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
            makers.make_embedder,
            table=table,
            shard_rows=section.pool.shard_rows,
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
