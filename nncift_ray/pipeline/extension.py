"""What a run that goes on from another is made of: its recipe, its place, its stages.

Stages up to the scores do what is new and are read behind the parent's (``ChainedOutput``); labels
and networks are the parent's; what follows the scores is done anew over the union.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import nncift_ray
from nncift_ray.config import Config, apply_override, make_config
from nncift_ray.errors import ConfigError, ModelError, StageError
from nncift_ray.models.embedded import ResolvedModel, locate_model
from nncift_ray.pipeline.blueprint import Blueprint
from nncift_ray.pipeline.factories import EmbedderFactory
from nncift_ray.pipeline.opening import RUN_RECORD, OpenedRun, open_run, read_record
from nncift_ray.pipeline.runner import (
    trainers_of,
)
from nncift_ray.stages.corpus.drift import DriftStage
from nncift_ray.stages.corpus.embed import EmbedderFactory as MakesEmbedder
from nncift_ray.stages.corpus.embed import EmbedStage
from nncift_ray.stages.corpus.ingest import DeduplicateStage, IngestStage, RoleSource, find_sources
from nncift_ray.stages.driving.stage import Stage
from nncift_ray.stages.pairs.project import ProjectStage, stored_dtype
from nncift_ray.stages.pairs.score_new_pairs import ScoreNewPairsStage
from nncift_ray.storage.chained import ChainedOutput, root_of
from nncift_ray.storage.filesystem import Location
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ReadLimits

#: Stages that do only what is new, in order.
CHAINED: Mapping[str, type[Stage]] = {
    "ingest": IngestStage,
    "deduplicate": DeduplicateStage,
    "embed": EmbedStage,
    "project": ProjectStage,
    "score_pairs": ScoreNewPairsStage,
}
DRIFT = "drift"
#: Keys of the recipe that an extension may change, with all below them; what labels, network and
#: the scores kept were made with is the parent's.
FREE_KEYS = (
    "data.layout",
    "data.columns",
    "data.max_chars",
    "data.max_failed_fraction",
    "data.group_by",
    "embedder.pool",
    "pair_scores.pool",
    "pair_scores.column_tile",
    "pair_scores.max_worker_bytes",
    "selection.budget",
    "selection.include",
    "selection.exclude",
    "selection.quotas",
    "selection.stop_gain",
    "selection.optimizer",
    "export",
    "cluster",
    "report",
)
DIGEST_LENGTH = 8

Outputs = Mapping[str, StageOutput]


class Extension:
    """The stages of a run that goes on from another."""

    def __init__(
        self,
        parent: OpenedRun,
        config: Config,
        sources: Sequence[RoleSource],
        embedder: ResolvedModel,
        make_embedder: MakesEmbedder,
    ) -> None:
        """Go on from a parent.

        Args:
            parent: A run whose stages are all finished.
            config: Its recipe, with the new data among the candidates and a run directory of its
                own (``recipe_of_union``).
            sources: The new files.
            embedder: What the parent's vectors were made with.
            make_embedder: Loads it.

        Raises:
            StageError: If the parent is of another version of a stage.
        """
        self.parent, self.config = parent, config
        self.sources, self._embedder = tuple(sources), embedder
        self._make_embedder = make_embedder
        self.blueprint = Blueprint(config, trainers_of)
        for name, stage in CHAINED.items():
            version = parent.outputs[name].manifest.version
            if version != stage.version:
                raise StageError(
                    f"{parent.run_dir}: its stage '{name}' is of version {version}, and this "
                    f"version of nncift_ray makes {stage.version}: the two do not join. Run the "
                    "recipe again, with the new files among data.candidates."
                )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """All stages, in order: the parent's, and drift once there are new activations."""
        names = [name for name in self.parent.stage_names if name != DRIFT]
        names.insert(names.index("project") + 1, DRIFT)
        return tuple(names)

    @property
    def inherited(self) -> tuple[str, ...]:
        """The stages that are the parent's as they are: labels and network."""
        names = self.stage_names
        before = names[: names.index("score_pairs")]
        return tuple(name for name in before if name not in CHAINED and name != DRIFT)

    def build(self, name: str, outputs: Outputs) -> Stage:
        """Build a stage from the outputs of those before it."""
        builders: dict[str, Callable[[Outputs], Stage]] = {
            "ingest": self._ingest,
            "deduplicate": self._deduplicate,
            "embed": self._embed,
            "project": self._project,
            DRIFT: self._drift,
            "score_pairs": self._score_pairs,
        }
        if name in builders:
            return builders[name](outputs)
        return self.blueprint.build(name, outputs)

    def adopt(self, name: str, own: StageOutput) -> StageOutput:
        """Return how later stages read what a stage has written."""
        return ChainedOutput(self.parent.outputs[name], own) if name in CHAINED else own

    def notices(self) -> list[str]:
        """What a reader of the report should know."""
        return [
            f"goes on from {self.parent.run_dir}: labels and network are of that run, whose "
            "seconds are not counted here; no teacher was asked"
        ]

    def record(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Return what the run says of itself, the parent's record inside."""
        above = self.parent.record["stages"]
        return {
            "version": nncift_ray.__version__,
            "config": self.config.model_dump(mode="json"),
            "stage_names": self.stage_names,
            "stages": {**{name: above[name] for name in self.inherited}, **fingerprints},
            "inherited": self.inherited,
            "chained": list(CHAINED),
            "parent": {**self.parent.record, "run_dir": str(self.parent.run_dir)},
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _ingest(self, outputs: Outputs) -> Stage:
        data = self.config.data
        return IngestStage(
            self.sources,
            layout=None if data.layout == "auto" else data.layout,
            columns=data.columns,
            limits=ReadLimits(max_chars=data.max_chars),
            max_failed_fraction=data.max_failed_fraction,
        )

    def _deduplicate(self, outputs: Outputs) -> Stage:
        ingest = outputs["ingest"]
        new = ingest.own if isinstance(ingest, ChainedOutput) else ingest
        return DeduplicateStage(new, parent=self.parent.outputs["deduplicate"])

    def _embed(self, outputs: Outputs) -> Stage:
        section = self.config.embedder
        return EmbedStage(
            outputs["deduplicate"],
            self._embedder,
            self._make_embedder,
            dtype=self.parent.outputs["embed"].manifest.settings["dtype"],
            shard_rows=section.pool.shard_rows,
            parent=self.parent.outputs["embed"],
        )

    def _project(self, outputs: Outputs) -> Stage:
        parent = self.parent.outputs["project"]
        settings = parent.manifest.settings
        return ProjectStage(
            outputs["embed"],
            outputs["fit"],
            settings["blocks"],
            self.config.network.num_units,
            dtype=stored_dtype(settings),
            parent=parent,
        )

    def _drift(self, outputs: Outputs) -> Stage:
        examples = self.parent.outputs["deduplicate"]
        return DriftStage(
            outputs["sample"],
            outputs["embed"],
            outputs["project"],
            num_labelled_corpus=root_of(examples).num_rows("candidates"),
            first_new=examples.num_rows("candidates"),
        )

    def _score_pairs(self, outputs: Outputs) -> Stage:
        section = self.config.pair_scores
        return ScoreNewPairsStage(
            outputs["project"],
            outputs["fit"],
            self.parent.outputs["project"],
            self.parent.outputs["score_pairs"],
            examples=outputs["deduplicate"],
            column_tile=section.column_tile,
            shard_rows=section.pool.shard_rows,
            max_worker_bytes=section.max_worker_bytes,
        )


def prepare(
    parent_dir: str, data: Sequence[str], run_dir: str | None, overrides: Sequence[str] = ()
) -> Extension:
    """Check everything that can be checked before work starts.

    Raises:
        NnciftError: No such run, one that is not finished, no such files, another embedder, a key
            of the recipe that cannot be changed.
    """
    parent = open_run(parent_dir)
    if parent.config.pair_scores.by == "teacher":
        raise ConfigError(
            f"{parent.run_dir}: its scores are the teacher's own labels (pair_scores.by: teacher), "
            "and new candidates have none: no network is there to predict them. Run the recipe "
            "again with the new files among data.candidates, or go on from a run by network."
        )
    parent.need(*parent.stage_names)
    sources = find_sources(data, [])
    home = Location.of(run_dir or default_run_dir(str(parent.run_dir), sources))
    _check_home(home, parent)
    embedder = find_embedder(parent)
    config = recipe_of_union(parent.config, data, str(home), overrides)
    return Extension(parent, config, sources, embedder, EmbedderFactory(embedder))


def default_run_dir(parent: str, sources: Sequence[RoleSource]) -> str:
    """Name a directory next to the parent by the content of the new files.

    The same files find the same directory, so the same command goes on from where it stopped.
    """
    content = json.dumps([source.settings() for source in sources], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]
    path, mark, query = parent.partition("?")
    return f"{path.rstrip('/')}-plus-{digest}{mark}{query}"


def recipe_of_union(
    config: Config, data: Sequence[str], run_dir: str, overrides: Sequence[str] = ()
) -> Config:
    """Return the recipe that a run over old and new data together would have.

    Raises:
        ConfigError: If an override is of a key that what is kept of the parent depends on.
    """
    tree = config.model_dump(mode="json")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS):
            raise ConfigError(
                f"--set {key}: labels, network and scores of the run were made with its own value. "
                f"What can be changed is {', '.join(FREE_KEYS)}; for anything else run the recipe "
                "anew on all data."
            )
        apply_override(tree, override)
    tree["data"]["candidates"] = [*config.data.candidates, *data]
    return make_config(tree | {"run_dir": run_dir}, "--set")


def find_embedder(parent: OpenedRun) -> ResolvedModel:
    """Find the very model that the parent's vectors were made with, whatever "auto" is today.

    Raises:
        ModelError: If it is not here in that revision.
    """
    made_with = parent.outputs["embed"].manifest.settings
    model = ResolvedModel(made_with["model"], "", made_with["revision"])
    try:
        return locate_model(model, "embedder")
    except ModelError as error:
        raise ModelError(
            f"{parent.run_dir}: its vectors are of the embedder {model.name} (revision "
            f"{model.revision}), and new ones must be of the same: {error}. Install that one, or "
            "run the recipe on all data with another."
        ) from error


def _check_home(home: Location, parent: OpenedRun) -> None:
    """Refuse a directory that holds another run."""
    if str(home) == str(parent.run_dir):
        raise ConfigError(
            f"--run-dir {home} is the run to go on from, which is kept as it is; give another, or "
            "none"
        )
    if (home / RUN_RECORD).exists():
        above = read_record(home).get("parent")
        if above is None or above["run_dir"] != str(parent.run_dir):
            raise ConfigError(f"--run-dir {home} holds a run that does not go on from this one")
