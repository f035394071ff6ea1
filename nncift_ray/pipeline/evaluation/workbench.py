"""What brings the stages of an evaluation to their end, all in one run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nncift_ray.config import Config
from nncift_ray.pipeline.blueprint import Blueprint, PoolUse
from nncift_ray.pipeline.runner import resources_for, run_stages, trainers_of
from nncift_ray.stages.driving.driver import Executor, run_stage
from nncift_ray.stages.driving.progress import Reporter
from nncift_ray.stages.driving.stage import Stage
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput


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
        blueprint = Blueprint(config, trainers_of, has_gpu=self.has_gpu)
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
