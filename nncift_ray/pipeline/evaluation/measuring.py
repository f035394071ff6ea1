"""A cell as stages: teach the model with the subset, measure it on the test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nncift_ray.config import PoolConfig
from nncift_ray.errors import NnciftError
from nncift_ray.pipeline.blueprint import PoolUse
from nncift_ray.pipeline.evaluation.cells import ICL, TUNED, Cell
from nncift_ray.pipeline.evaluation.held_out import TestSet
from nncift_ray.pipeline.evaluation.makers import Makers
from nncift_ray.pipeline.evaluation.scores import CellResult
from nncift_ray.pipeline.evaluation.subsets import Subset
from nncift_ray.pipeline.evaluation.workbench import Workbench
from nncift_ray.stages.likelihood import LikelihoodStage
from nncift_ray.stages.shown_examples import ShownExamples
from nncift_ray.stages.tune import TuneJob, TuneStage
from nncift_ray.storage.output import StageOutput


class Measurer:
    """Brings the stages of cells to their end."""

    def __init__(self, bench: Workbench, makers: Makers, base: Mapping[str, StageOutput]) -> None:
        """Work at a bench.

        Args:
            bench: Where.
            makers: What loads the models.
            base: The recipe's stages, deduplicate among them.
        """
        self._bench, self._makers, self._base = bench, makers, base
        self._evaluation = bench.config.evaluation
        #: By the subset: reading the ids of its members once is enough, and so is failing.
        self._tuned: dict[object, StageOutput | NnciftError] = {}

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
            tuned=self._tuned_model(cell, subset),
            shown=self._shown(cell, subset, test),
            max_length=section.in_context.max_length,
            max_rows=section.nll_max_rows if cell.mode == ICL else None,
            seed=section.generation.seed,
            shard_rows=section.generation.pool.shard_rows,
        )
        output = self._bench.bring(stage, _with_model(section.generation.pool))
        return dataclasses.replace(known, likelihoods=output)

    def _tuned_model(self, cell: Cell, subset: Subset) -> StageOutput | None:
        """Return the model fine-tuned on the subset, where the mode is tuned.

        Raises:
            NnciftError: As the tune stage, also when it failed for another test set before.
        """
        if cell.mode != TUNED:
            return None
        if subset.key not in self._tuned:
            try:
                self._tuned[subset.key] = self._bench.bring(*self._tune_stage(subset))
            except NnciftError as error:
                self._tuned[subset.key] = error
        tuned = self._tuned[subset.key]
        if isinstance(tuned, NnciftError):
            raise tuned
        return tuned

    def _tune_stage(self, subset: Subset) -> tuple[TuneStage, PoolUse]:
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
        return stage, dataclasses.replace(_with_model(tuning.pool), max_actors=tuning.num_workers)

    def _shown(self, cell: Cell, subset: Subset, test: TestSet) -> ShownExamples | None:
        return None


def _with_model(pool: PoolConfig) -> PoolUse:
    return PoolUse(pool, can_use_gpu=True, single_threaded=False)
