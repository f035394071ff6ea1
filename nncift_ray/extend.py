"""Go on from a finished run with new data: no teacher call, no fit, and nothing done twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import ks_2samp, mannwhitneyu

from nncift_ray.corpus.examples import DeduplicateStage, describe_left_out
from nncift_ray.corpus.ingest import IngestStage, RoleSource, describe_layouts, find_sources
from nncift_ray.embedders import Embedder, EmbedStage
from nncift_ray.engines.models import ResolvedModel, locate_model
from nncift_ray.errors import ConfigError, ModelError, StageError
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.pipeline import (
    RUN_RECORD,
    Blueprint,
    Outputs,
    RunResult,
    begun_with_gpu,
    finish_run,
    observed,
    run_stages,
    session_of,
)
from nncift_ray.plan import estimate_sources
from nncift_ray.profiles.step import ProfileStage
from nncift_ray.recipe.loading import apply_override, make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runs import Run, read_record
from nncift_ray.runtime import schemas
from nncift_ray.runtime.driver import Executor
from nncift_ray.runtime.files import Location, locked
from nncift_ray.runtime.output import ChainedOutput, Sink, StageOutput, column_matrix, root_of
from nncift_ray.runtime.progress import LineReporter, Reporter
from nncift_ray.runtime.schemas import CANDIDATE, CROSS, POINTS, WITHIN, helped_role
from nncift_ray.runtime.step import Shard, Stage, Worker
from nncift_ray.scores.index_step import read_final_recall
from nncift_ray.scores.step import ProjectStage, ScoreNewPairsStage

#: Stages that do only what is new, in order, and go on from the parent's tables.
CHAINED: Mapping[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        *(IngestStage, DeduplicateStage, EmbedStage, ProfileStage, ProjectStage),
        ScoreNewPairsStage,
    )
}
DRIFT = "drift"
#: Keys of the recipe that an extension may change, with all below them; what labels, network and
#: the scores kept were made with is the parent's.
FREE_KEYS = (
    *("data.layout", "data.columns", "data.preference", "data.reasoning"),
    *("data.max_chars", "data.max_failed_fraction"),
    *("data.group_by", "embedder.pool", "profiles.pool", "pair_scores.pool"),
    *("pair_scores.column_tile", "pair_scores.max_worker_bytes"),
    *("selection.budget", "selection.include"),
    *("selection.exclude", "selection.quotas", "selection.stop_gain", "selection.optimizer"),
    *("export", "cluster", "report"),
)
DIGEST_LENGTH = 8


@dataclass(frozen=True)
class ExtensionPlan:
    """What ``nncift extend`` would do."""

    parent: str
    run_dir: str
    files: tuple[str, ...]
    num_old: int  # candidates of the parent
    num_new: int  # usable rows of the files; copies of old ones among them are not known yet
    exact: bool  # whether they were counted, not estimated
    num_pairs: int  # to score
    num_pairs_of_union: int  # what a run over everything would score


def extend(
    parent_dir: str,
    data: Sequence[str],
    *,
    run_dir: str | None = None,
    overrides: Sequence[str] = (),
    reporter: Reporter | None = None,
    execute: Executor | None = None,
) -> RunResult:
    """Add new candidates to a finished run and select again; no teacher is asked.

    Args:
        parent_dir: The run to go on from; it is read and never changed.
        data: Files, globs or folders of new candidates.
        run_dir: Where to work; None: next to the parent, named by the new files' content.
        overrides: ``key.path=value`` for the recipe, of ``FREE_KEYS`` only.
        reporter: Hears of progress; plain lines by default.
        execute: Runs shards, in place of what the session has for it.

    Raises:
        NnciftError: With what is wrong and the remedy; finished shards are kept.
    """
    extension = prepare(parent_dir, data, run_dir, overrides)
    config, location = extension.config, Location.of(extension.config.run_dir)
    location.make_folder()
    reporter = reporter or LineReporter()
    with (
        locked(location),
        session_of(extension, location, reporter, execute) as session,
        observed(config, location, reporter) as reporter,
    ):
        outputs = run_stages(
            extension, location, "export", session, reporter, record=True, known=extension.known
        )
        notices = (
            f"goes on from {extension.parent.run_dir}: labels and network are of that run, whose "
            "seconds are not counted here; no teacher was asked",
            *describe_layouts(outputs["ingest"]),
            *describe_left_out(outputs["deduplicate"]),
        )
        return finish_run(config, location, outputs, notices, inherited=tuple(extension.known))


def plan_extension(
    parent_dir: str,
    data: Sequence[str],
    *,
    run_dir: str | None = None,
    overrides: Sequence[str] = (),
) -> ExtensionPlan:
    """Return what ``extend`` would do; start nothing.

    Raises:
        NnciftError: What would stop it at once.
    """
    extension = prepare(parent_dir, data, run_dir, overrides)
    corpus = estimate_sources(extension.config, data)
    outputs, new = extension.parent.outputs, corpus.num_rows
    old, targets = (outputs["deduplicate"].num_rows(role) for role in ("candidates", "targets"))
    blocks = outputs["project"].manifest.settings["blocks"]
    to_score = {WITHIN: new * (2 * old + new), CROSS: new * targets, POINTS: new}
    of_union = {WITHIN: (old + new) ** 2, CROSS: (old + new) * targets, POINTS: old + new}
    return ExtensionPlan(
        parent=str(extension.parent.run_dir),
        run_dir=extension.config.run_dir,
        files=tuple(
            dict.fromkeys(
                source.file.uri for source in extension.sources if source.role == CANDIDATE
            )
        ),
        num_old=old,
        num_new=new,
        exact=corpus.exact,
        num_pairs=sum(to_score[block] for block in blocks),
        num_pairs_of_union=sum(of_union[block] for block in blocks),
    )


class Extension(Blueprint):
    """The steps of a run that goes on from another: new data, behind the tables of the parent."""

    def __init__(
        self,
        parent: Run,
        config: Config,
        sources: Sequence[RoleSource],
        embedder: ResolvedModel,
        make_embedder: Callable[[], Embedder] | None = None,
    ) -> None:
        """Go on from a run whose stages are all finished.

        Args:
            parent: The run.
            config: Its recipe, with the new data among the candidates and a run directory of its
                own (``recipe_of_union``).
            sources: The new files.
            embedder: What the parent's vectors were made with.
            make_embedder: Called in place of loading it.

        Raises:
            StageError: If the parent is of another version of a stage.
        """
        super().__init__(config)
        self.parent, self.sources, self.embedder = parent, tuple(sources), embedder
        self.above, self._make_embedder = parent.outputs, make_embedder
        # dtype "auto" is what it was when the parent was begun
        self.teaching.begun_with_gpu = begun_with_gpu(parent.run_dir, has_gpu=False, record=False)
        for name, stage in CHAINED.items():
            version = self.above[name].manifest.version if name in self.above else stage.version
            if version != stage.version:
                raise StageError(
                    f"{parent.run_dir}: its stage '{name}' is of version {version}, and this "
                    f"version of nncift_ray makes {stage.version}: the two do not join. Run the "
                    "recipe again, with the new files among data.candidates."
                )

    @cached_property
    def steps(self) -> dict[str, Callable[[Outputs], Stage]]:
        """The parent's steps, in order, and drift once there are new activations."""
        made = super().steps | {DRIFT: self._drift}
        names = [name for name in self.parent.stage_names if name != DRIFT]
        if self.teaching.is_asked:
            names.insert(names.index("project") + 1, DRIFT)
        return {name: made[name] for name in names}

    @property
    def known(self) -> dict[str, StageOutput]:
        """What is the parent's as it is: labels and network."""
        own, names = {*CHAINED, DRIFT, "neighbours", "quality"}, list(self.steps)
        before = names[: names.index("score_pairs")]
        return {name: self.above[name] for name in before if name not in own}

    def _ingest(self, outputs: Outputs) -> Stage:
        return IngestStage(self.sources, self.config.data)

    def _deduplicate(self, outputs: Outputs) -> Stage:
        records = outputs["ingest"]
        own = records.own if isinstance(records, ChainedOutput) else records
        return DeduplicateStage(own, parent=self.above["deduplicate"], data=self.config.data)

    def _profiles(self, outputs: Outputs) -> Stage:
        stage = super()._profiles(outputs)
        made_with = self.above["profiles"].manifest.settings["engine"]
        if stage.settings()["engine"] != made_with:
            raise StageError(
                f"{self.parent.run_dir}: its profiles are of {made_with}, and this recipe would "
                f"use {stage.settings()['engine']}: the two do not join. Give the same model, or "
                "run the recipe on all data."
            )
        return stage

    def _project(self, outputs: Outputs) -> Stage:
        above = self.above["project"]
        return ProjectStage(
            self.network_inputs(outputs),
            outputs["fit"],
            above.manifest.settings["blocks"],
            parent=above,
            pairs_only=above.manifest.settings.get("pairs_only", False),
        )

    def _drift(self, outputs: Outputs) -> Stage:
        above = self.above["deduplicate"]
        return DriftStage(
            outputs["label"],
            outputs["embed"],
            outputs["project"],
            num_labelled_corpus=root_of(above).num_rows("candidates"),
            first_new=above.num_rows("candidates"),
        )

    def _score_pairs(self, outputs: Outputs) -> Stage:
        return ScoreNewPairsStage(
            outputs["project"],
            outputs["fit"],
            self.above["project"],
            self.above["score_pairs"],
            self.config.pair_scores,
            examples=outputs["deduplicate"],
        )

    def second_try(self, name: str, outputs: Outputs) -> None:
        """New pairs are all scored, so there is nothing to try otherwise."""

    def join(self, name: str, own: StageOutput) -> StageOutput:
        """Return what a finished step made, behind the parent's rows where it made the new ones."""
        return ChainedOutput(self.above[name], own) if name in CHAINED else own

    def notices_of(self, stage: Stage, own: StageOutput) -> list[str]:
        """Return what the user should hear when a step is done."""
        if stage.name == "deduplicate":
            old, new = (at.num_rows("candidates") for at in (self.above[stage.name], own))
            copies = own.manifest.facts()["num_duplicate_candidates"]
            line = f"{new:,} new candidates after {old:,}; {copies:,} exact copies collapsed"
            return [line if new else f"nothing new: {line}; the selection stays as it was"]
        if stage.name == DRIFT:
            return describe_drift(own.manifest.facts())
        if stage.name == "score_pairs":
            return [
                f"the run pruned block '{block}'; new pairs are all scored, and the joined lists "
                f"hold {found.recall:.4f} +- {found.standard_error:.4f} of the true ones on "
                f"{found.num_rows:,} held-out rows"
                for block, found in read_final_recall(own).items()
            ]
        return super().notices_of(stage, own)

    def record(self, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """Return what the run says of itself, the parent's record inside."""
        return super().record(fingerprints) | {
            "inherited": list(self.known),
            "chained": [name for name in CHAINED if name in self.steps],
            "parent": {**self.parent.record, "run_dir": str(self.parent.run_dir)},
        }


def prepare(
    parent_dir: str, data: Sequence[str], run_dir: str | None, overrides: Sequence[str] = ()
) -> Extension:
    """Check everything that can be checked before work starts.

    Raises:
        NnciftError: No such run, one that is not finished, no such files, another embedder, a key
            of the recipe that cannot be changed.
    """
    parent = Run.open(parent_dir)
    if parent.config.pair_scores.by == "teacher":
        raise ConfigError(
            f"{parent.run_dir}: its scores are the teacher's own labels (pair_scores.by: teacher), "
            "and new candidates have none: no network is there to predict them. Run the recipe "
            "again with the new files among data.candidates, or go on from a run by network."
        )
    parent.need(*parent.stage_names)
    sources = find_sources(data, [])
    benchmarks = find_sources((), (), (), parent.config.benchmarks)
    home = Location.of(run_dir or default_run_dir(str(parent.run_dir), sources))
    if str(home) == str(parent.run_dir):
        raise ConfigError(
            f"--run-dir {home} is the run to go on from, which is kept as it is; give another, or "
            "none"
        )
    if (home / RUN_RECORD).exists():
        above = read_record(home).get("parent")
        if above is None or above["run_dir"] != str(parent.run_dir):
            raise ConfigError(f"--run-dir {home} holds a run that does not go on from this one")
    embedder = find_embedder(parent)
    config = recipe_of_union(parent.config, data, str(home), overrides)
    return Extension(parent, config, [*sources, *benchmarks], embedder)


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


def find_embedder(parent: Run) -> ResolvedModel:
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


def describe_drift(facts: Mapping[str, Any]) -> list[str]:
    """Say in sentences how far the new data lie from the labels, and whether new ones are due."""
    if not facts["num_new"]:
        return []
    lines: list[str] = []
    distance = facts["distance"]
    if distance is not None:
        median = facts["median_distance"]
        lines.append(
            f"drift: median distance to the nearest labelled example {median['new']:.3f} (new), "
            f"{median['reference']:.3f} (labelled corpus); a new one is farther with chance "
            f"{distance['farther']:.2f}, KS {distance['ks']:.2f}"
        )
    for share in facts["ranges"]:
        lines.append(
            f"drift: {share['new']:.1%} of {share['block']} {share['side']} activations out of the "
            f"labelled range (labelled corpus {share['reference']:.1%})"
        )
    if facts["num_new"] < MIN_EXAMPLES:
        lines.append(f"{facts['num_new']} new examples are too few to say if relabelling is due")
    elif facts["due"]:
        lines.append(f"relabelling is due because {'; and '.join(facts['reasons'])}")
    else:
        lines.append("relabelling is not due: new data lie where the labelled corpus does")
    return lines


# Drift: how far new data lie from what the network was trained on, and whether labels are due. The
# reference is the corpus of the run that was labelled, however many runs have gone on from it.
# Suffixes: N examples, L labelled ones, D embedding, H hidden units.

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Sides = Mapping[tuple[str, str], NDArray[np.int64]]  # candidates by block and side of a pair

#: Chance that a new example lies farther from the labelled ones than a reference example, from
#: which new labels are due. 0.5 says that the two are alike; 0.65 is a shift of half a standard
#: deviation, where both are normal.
MAX_FARTHER = 0.65
#: ... and so many standard errors above 0.5, so that a handful of examples raises no alarm.
MIN_SIGMAS = 3.0
#: Share of a side's activations outside the labelled range, as a multiple of the reference's share,
#: from which new labels are due ...
MAX_RANGE_RATIO = 2.0
#: ... provided that it is also so much above it.
MIN_RANGE_EXCESS = 0.01
#: Fewer new examples than this are never enough to ask for new labels.
MIN_EXAMPLES = 20
#: Examples of each group whose distances are measured, and labelled ones they are measured from.
MAX_MEASURED, MAX_LABELLED = 4096, 16_384
BLOCK_ROWS, BATCH_ROWS = 1024, 16_384
NEW, REFERENCE = "new", "reference"
SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class DistanceShift:
    """How much farther from the labelled sample new examples lie than the reference."""

    farther: float  # chance that a new one lies farther than a reference one, ties half
    sigmas: float  # of (farther - 0.5), under the hypothesis that they are alike
    ks: float  # largest distance of the two distribution functions


@dataclass(frozen=True, slots=True)
class RangeShare:
    """Share of activations of one side of a block outside the range of the labelled examples."""

    block: str
    side: str  # rows | columns
    new: float
    reference: float


def nearest_distances(e_ND: F32, labelled_LD: F32) -> F64:
    """Return the cosine distance of unit vectors [N], from 0 to 2, to the nearest labelled one.

    Memory: 4 * 1024 * L bytes.
    """
    nearest_N = np.empty(len(e_ND), np.float64)
    for start in range(0, len(e_ND), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        nearest_N[part] = (e_ND[part] @ labelled_LD.T).max(axis=1)
    return np.clip(1.0 - nearest_N, 0.0, 2.0)


def compare_distances(new_N: F64, reference_R: F64) -> DistanceShift:
    """Compare two samples of distances by ranks (Mann, Whitney) and by Kolmogorov and Smirnov."""
    num_new, num_reference = len(new_N), len(reference_R)
    pairs = mannwhitneyu(new_N, reference_R, method="asymptotic").statistic
    farther = float(pairs / (num_new * num_reference))
    error = math.sqrt((num_new + num_reference + 1) / (12 * num_new * num_reference))
    statistic = float(ks_2samp(new_N, reference_R, method="asymp").statistic)
    return DistanceShift(farther, (farther - 0.5) / error, statistic)


def outside_shares(a_NH: F32, low_H: F32, high_H: F32) -> F64:
    """Return the share of each example's activations that lie outside a range [N]."""
    return ((a_NH < low_H) | (a_NH > high_H)).mean(axis=1, dtype=np.float64)


def find_reasons(
    shift: DistanceShift | None, ranges: Sequence[RangeShare], num_new: int = MIN_EXAMPLES
) -> list[str]:
    """Return why new labels are due, a sentence each: where either measure passes its two bounds.

    Args:
        shift: None where there is nothing new, or nothing to compare it with.
        ranges: One for each side of each block that the new examples have a part in.
        num_new: New examples; below ``MIN_EXAMPLES`` nothing is due.
    """
    reasons: list[str] = []
    if num_new < MIN_EXAMPLES:
        return reasons
    if shift is not None and shift.farther >= MAX_FARTHER and shift.sigmas >= MIN_SIGMAS:
        reasons.append(
            f"a new example lies farther from the labelled sample than an unlabelled one of the "
            f"labelled corpus with chance {shift.farther:.2f} (due from {MAX_FARTHER:g}; 0.5 would "
            f"be alike)"
        )
    for share in ranges:
        bound = max(MAX_RANGE_RATIO * share.reference, share.reference + MIN_RANGE_EXCESS)
        if share.new >= bound:
            reasons.append(
                f"{share.new:.1%} of the {share.block} {share.side} activations of new examples "
                f"lie outside what the labelled sample spans, {share.reference:.1%} of the "
                f"labelled corpus's own (due from {bound:.1%})"
            )
    return reasons


class DriftStage(Stage):
    """Write ``distances`` of a sample; the verdict is among the manifest's facts."""

    name: ClassVar[str] = DRIFT
    title: ClassVar[str] = "compare new data with the labelled corpus"
    version = 2
    produces = {"distances": schemas.DRIFT_DISTANCES}
    unit: ClassVar[str] = "comparisons"
    seed = SAMPLE_SEED

    def __init__(
        self,
        labels: StageOutput,
        embeddings: StageOutput,
        activations: StageOutput,
        num_labelled_corpus: int,
        first_new: int,
    ) -> None:
        """Compare the candidates from ``first_new`` on with the labelled corpus, the first ones.

        Labels are those of the run that was labelled, embeddings and activations of the union.
        """
        self._labels, self._embeddings, self._activations = labels, embeddings, activations
        self._num_reference, self._first_new = num_labelled_corpus, first_new
        self.inputs = {"labels": labels, "embeddings": embeddings, "activations": activations}

    def settings(self) -> dict[str, Any]:
        """Which rows are compared, and the rule."""
        return {
            "num_labelled_corpus": self._num_reference,
            "first_new": self._first_new,
            "max_farther": MAX_FARTHER,
            "min_sigmas": MIN_SIGMAS,
            "max_range_ratio": MAX_RANGE_RATIO,
            "min_range_excess": MIN_RANGE_EXCESS,
            "min_examples": MIN_EXAMPLES,
        }

    def make_worker(self) -> Worker:
        """Return the comparison."""
        return self._compare

    def _compare(self, shard: Shard, sink: Sink) -> None:
        num_new, labelled = self._num_rows() - self._first_new, read_labelled(self._labels)
        shift = self._compare_distances(labelled, sink) if num_new else None
        ranges = self._compare_ranges(labelled) if num_new else []
        reasons = find_reasons(shift, ranges, num_new)
        sink.facts.update(
            num_new=num_new,
            distance=None if shift is None else asdict(shift),
            ranges=[asdict(share) for share in ranges],
            due=bool(reasons),
            reasons=reasons,
        )

    def _num_rows(self) -> int:
        return self._embeddings.num_rows("candidates")

    def _compare_distances(self, labelled: Sides, sink: Sink) -> DistanceShift | None:
        """Measure a sample of either group; None where every reference example is labelled."""
        rng = np.random.default_rng(SAMPLE_SEED)
        rows = np.unique(np.concatenate(list(labelled.values())))
        labelled_LD = self._vectors(_draw(rng, rows, MAX_LABELLED))
        groups = {
            NEW: np.arange(self._first_new, self._num_rows()),
            REFERENCE: np.setdiff1d(np.arange(self._num_reference), rows),
        }
        found: dict[str, np.ndarray] = {}
        for group, members in groups.items():
            drawn = _draw(rng, members, MAX_MEASURED)
            if not len(drawn):
                return None
            found[group] = nearest_distances(self._vectors(drawn), labelled_LD)
            columns = {"group": [group] * len(drawn), "row_index": drawn, "distance": found[group]}
            sink.write("distances", pa.table(columns).cast(schemas.DRIFT_DISTANCES))
        sink.facts["median_distance"] = {name: float(np.median(x)) for name, x in found.items()}
        return compare_distances(found[NEW], found[REFERENCE])

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        found = self._embeddings.take_rows("candidates", rows, ["embedding"])
        return column_matrix(found["embedding"])

    def _compare_ranges(self, labelled: Sides) -> list[RangeShare]:
        """Measure what lies outside the labelled range, on each side that candidates are on."""
        shares: list[RangeShare] = []
        for (block, side), rows in labelled.items():
            table = f"{block}_{side}"
            seen = self._activations.take_rows(table, rows, ["activation"])
            seen_NH = column_matrix(seen["activation"])
            low_H, high_H = seen_NH.min(axis=0), seen_NH.max(axis=0)
            batches = self._activations.iter_batches(table, ["activation"], BATCH_ROWS)
            outside_N = np.concatenate([
                outside_shares(column_matrix(pa.chunked_array([batch.column(0)])), low_H, high_H)
                for batch in batches
            ])  # fmt: skip
            place_N = np.arange(len(outside_N))
            is_reference_N = (place_N < self._num_reference) & ~np.isin(place_N, rows)
            groups = outside_N[self._first_new :], outside_N[is_reference_N]
            new, reference = (float(group.mean()) if len(group) else 0.0 for group in groups)
            shares.append(RangeShare(block, side, new, reference))
        return shares


def read_labelled(labels: StageOutput) -> dict[tuple[str, str], np.ndarray]:
    """Return the candidates whose labels the networks were trained with, by (block, side).

    Held-out pairs are no part of it: their rows and columns were left out on purpose.
    """
    columns = ["block", "helped_index", "helper_index", "split"]
    pairs = labels.read("labels", columns, schemas.LABELS)
    block = np.asarray(pairs["block"].to_pylist())
    trained = np.isin(np.asarray(pairs["split"].to_pylist(), dtype=object), [TRAIN, VALIDATION])
    helped, helper = (
        pairs[name].fill_null(pa.scalar(-1, pa.int64())).to_numpy()
        for name in ("helped_index", "helper_index")
    )
    labelled: dict[tuple[str, str], np.ndarray] = {}
    for name in dict.fromkeys(block.tolist()):
        at = trained & (block == name)
        if helped_role(name) == CANDIDATE:
            labelled[name, "rows"] = np.unique(helped[at])
        if name != POINTS:
            labelled[name, "columns"] = np.unique(helper[at])
    return labelled


def _draw(rng: np.random.Generator, rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
