"""What each method's choice cost, from its stages' manifests; and what an evaluation may cost.

A method is charged with all that its choice rests on, as if it were the only one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from nncift_ray.evaluation import methods
from nncift_ray.labels.sample import count_pairs
from nncift_ray.plan import (
    ACTOR_START_SECONDS,
    CHARS_PER_TOKEN,
    TEACHER_TOKENS_PER_SECOND,
    TRAINING_SHARE,
    RunPlan,
    SourceEstimate,
    detect_hardware,
    estimate_sources,
    make_plan,
)
from nncift_ray.recipe.sections import ClusterConfig, Config
from nncift_ray.runtime.output import StageManifest, StageOutput
from nncift_ray.runtime.schemas import ALL_STEPS, COSTS, CROSS, POINTS, WITHIN
from nncift_ray.selection.names import scored_blocks

EMBED, LABEL, FIT, INDEX, QUALITY = "embed", "label", "fit", "index", "quality"
#: Columns of COSTS that grow with a step's work and add up over steps.
AMOUNTS = ("seconds", "accelerator_seconds", "cpu_seconds", "price")


def collect_costs(
    subsets: Sequence[methods.Subset], cluster: ClusterConfig, wanted_candidates: int | None = None
) -> pa.Table:
    """Collect the costs of every method that asks a teacher.

    What holds a GPU is priced by the hour of GPU, all else by the hour of CPU; workers count while
    they work on shards, loading models and idle actors do not.

    Args:
        subsets: As they were selected; the first of each method is charged.
        cluster: Prices.
        wanted_candidates: Size of a larger corpus, with as many targets, that costs are
            extrapolated to; None: none.

    Returns:
        COSTS: a row a step and one of all. What was not measured is marked ``extrapolated``: a
        larger corpus, and a teacher by its own labels that was asked about a part of the pairs.
    """
    chosen = _charged(subsets)
    users = Counter(output.fingerprint for each in chosen for output in each.outputs.values())
    rows: list[dict[str, Any]] = []
    for each in chosen:
        measured = {name: _measure(output, cluster) for name, output in each.outputs.items()}
        shared = {name: users[output.fingerprint] > 1 for name, output in each.outputs.items()}
        shared[ALL_STEPS] = any(shared.values())
        tables = [(each.num_candidates, False, measured)]
        if each.is_partial:
            tables.append((each.num_candidates, True, each.grow(measured, each.num_candidates)))
        if wanted_candidates is not None and wanted_candidates > each.num_candidates:
            tables.append((wanted_candidates, True, each.grow(measured, wanted_candidates)))
        for num_candidates, extrapolated, steps in tables:
            total = {name: sum(of[name] for of in steps.values()) for name in AMOUNTS}
            tokens = sum(of["num_tokens"] or 0 for of in steps.values()) or None
            for step, amounts in {**steps, ALL_STEPS: total | {"num_tokens": tokens}}.items():
                asks = step in (LABEL, ALL_STEPS) and not extrapolated
                about = {"method": each.method, "step": step, "num_candidates": num_candidates}
                about |= {"extrapolated": extrapolated, "shared": shared[step]}
                rows.append(
                    amounts | about | {"labelled_fraction": each.fraction if asks else None}
                )
    return pa.Table.from_pylist(rows, COSTS)


def partial_notices(subsets: Sequence[methods.Subset]) -> list[str]:
    """Say which teachers by their own labels were asked about a part of the pairs only."""
    return [
        f"{each.method} was asked about {each.num_labels:,} of {each.possible():,} pairs "
        f"({each.fraction:.1%}), whole rows drawn with the seed: its subset is that of a sample, "
        "and its cost for all pairs is extrapolated"
        for each in _charged(subsets)
        if each.is_partial
    ]


def _measure(output: StageOutput, cluster: ClusterConfig) -> dict[str, Any]:
    """Return what a finished stage cost."""
    manifest, counts = output.manifest, output.manifest.counts()
    tokens = counts.get("tokens", 0) - counts.get("cached_tokens", 0)
    worked = manifest.worker_seconds
    return {
        "seconds": wall_seconds(manifest),
        "accelerator_seconds": worked * manifest.num_gpus,
        "cpu_seconds": worked * manifest.num_cpus,
        "price": cluster.price(worked, manifest.num_cpus, manifest.num_gpus),
        "num_tokens": tokens or None,  # computed by a language model; None: it asks none
    }


def wall_seconds(manifest: StageManifest) -> float:
    """Return the seconds of a stage, over all runs that worked on it.

    A manifest knows the run that finished the stage. Shards that were finished before that run
    began took their own seconds, on as many workers as worked side by side in the last one.
    """
    began = datetime.fromisoformat(manifest.finished_at) - timedelta(seconds=manifest.wall_seconds)
    # Manifests are dated to the second; clocks of workers may differ by more.
    margin = timedelta(seconds=1)
    earlier = sum(
        shard.seconds for shard in manifest.shards
        if shard.finished_at and datetime.fromisoformat(shard.finished_at) < began - margin
    )  # fmt: skip
    late = manifest.worker_seconds - earlier
    side_by_side = late / manifest.wall_seconds if manifest.wall_seconds > 0 else 1.0
    return manifest.wall_seconds + earlier / max(1.0, side_by_side)


class _Charged:
    """A method's stages, how many labels it asked for, and what its work grows with."""

    def __init__(self, subset: methods.Subset) -> None:
        assert subset.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
        self.method, self._config = subset.key.method, subset.config
        self._by_network = FIT in subset.outputs
        by_vectors = subset.config.teacher.kind == "delift_se" or QUALITY in subset.outputs
        reads_vectors = self._by_network or by_vectors
        self.outputs = {
            name: output for name, output in subset.outputs.items()
            if name != "export" and (name != EMBED or reads_vectors)
        }  # fmt: skip
        examples, labels = subset.outputs["deduplicate"], subset.outputs.get(LABEL)
        self.num_candidates = examples.num_rows("candidates")
        self._num_targets = examples.num_rows("targets")
        self._blocks = scored_blocks(subset.outputs)
        self.num_labels = self.possible()  # of a teacher that is not asked
        if labels is not None:
            asked = labels.manifest.facts()["asked"]
            self.num_labels = sum(counts["num_pairs"] for counts in asked.values())

    def possible(self, num_candidates: int | None = None) -> int:
        """Return how many labels there could be."""
        size = self.num_candidates if num_candidates is None else num_candidates
        return sum(possible_labels(block, size, self._num_targets) for block in self._blocks)

    @property
    def fraction(self) -> float:
        """The share of them that was asked for."""
        return self.num_labels / self.possible() if self.possible() else 0.0

    @property
    def is_partial(self) -> bool:
        """Whether labels that are to be scores are not all there."""
        return not self._by_network and self.num_labels < self.possible()

    def grow(self, measured: dict[str, dict[str, Any]], size: int) -> dict[str, dict[str, Any]]:
        """Extrapolate every step, on the same machines, to as many candidates and all labels."""
        labels = self._labels_of(size)
        grown: dict[str, dict[str, Any]] = {}
        for step, amounts in measured.items():
            growth = self._work(step, size, labels) / self._work(
                step, self.num_candidates, self.num_labels
            )
            # Starting workers takes as long for a million rows as for a thousand.
            worked = min(self.outputs[step].manifest.worker_seconds, amounts["seconds"])
            grown[step] = {name: amounts[name] * growth for name in AMOUNTS} | {
                "seconds": amounts["seconds"] + worked * (growth - 1),
                "num_tokens": amounts["num_tokens"] and round(amounts["num_tokens"] * growth),
            }
        return grown

    def _labels_of(self, size: int) -> float:
        """Return how many labels the method would ask for of a corpus of another size."""
        if not self._by_network:
            return self.possible(size)
        section = self._config.labels
        if section.label_pairs is not None:
            return self.num_labels

        def planned(at: int) -> float:
            """Return a fraction of rows and columns, up to a most."""
            shares = {block: section.fraction ** (1 if block == POINTS else 2)
                      for block in self._blocks}  # fmt: skip
            return sum(
                min(possible_labels(block, at, self._num_targets) * share, section.max_pairs)
                for block, share in shares.items()
            )

        now = planned(self.num_candidates)  # what was asked, grown alike
        return self.num_labels * planned(size) / now if now else self.num_labels

    def _work(self, step: str, size: int, labels: float) -> float:
        """Return what a step's work is proportional to."""
        rows = size + self._num_targets
        if step in (LABEL, FIT, "teacher_scores"):
            return labels
        if step == "gradients" and self._by_network:  # of the sample, a square of rows and columns
            return labels**0.5
        if step == "score_pairs" and INDEX not in self.outputs:
            pairs = {WITHIN: size * size, CROSS: size * self._num_targets, POINTS: size}
            return sum(pairs[block] for block in self._blocks)
        if step == "target_gradients" or (step == "warmup" and "loss_drop" in self.outputs):
            return self._num_targets or size
        if step in ("warmup", "loss_drop", INDEX, "select_partitions", "select"):
            return size
        return rows


def _charged(subsets: Sequence[methods.Subset]) -> list[_Charged]:
    """Return what is charged to each method: its first subset."""
    first: dict[str, methods.Subset] = {}
    for each in subsets:
        if each.outputs:
            first.setdefault(each.key.method, each)
    return [*map(_Charged, first.values())]


def possible_labels(block: str, num_candidates: int, num_targets: int) -> int:
    """Return how many pairs (or examples) a block has."""
    if block == POINTS:
        return num_candidates
    rows = num_targets if block == CROSS else num_candidates
    return count_pairs(rows, num_candidates, block == WITHIN)


# What an evaluation would do, how long it may take and what it may cost; nothing is started.

# Guesses, per actor.
WRITING_SHARE = 0.15  # of the speed of reading: tokens are written one after another, in batches
MODEL_START_SECONDS = {"cpu": 15.0, "gpu": 60.0}  # of an actor with a language model
JUDGE_PROMPT_TOKENS = 500.0  # of the rubric and what frames an answer
JUDGE_WRITTEN_SHARE = 0.3  # of evaluation.judge.max_tokens, on average
SHARED_STAGES = ("ingest", "deduplicate", "embed")  # of all methods
SELECT_STAGES = ("select_partitions", "select")


@dataclass
class PlanRow:
    """A step of the evaluation: one method's selection, or the cells of its subsets of one size."""

    what: str
    amount: str
    num_cells: int = 0
    num_tokens: float = 0.0  # computed by a language model: read, trained on and written
    seconds: float = 0.0
    cost_usd: float = 0.0


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation would do, from the start."""

    run_dir: str
    num_candidates: int
    exact: bool  # whether that number is counted
    tests: dict[str, int]  # rows by test set
    hardware: str
    rows: tuple[PlanRow, ...]
    notices: tuple[str, ...]

    @property
    def total(self) -> PlanRow:
        """All rows together."""
        names = ("num_cells", "num_tokens", "seconds", "cost_usd")
        sums = {name: sum(getattr(row, name) for row in self.rows) for name in names}
        return PlanRow("all", "", **sums)


def plan_evaluation(
    config: Config, *, hardware: Literal["cpu", "gpu"] | None = None
) -> EvaluationPlan:
    """Say what `nncift evaluate` would do, without starting anything.

    Raises:
        NnciftError: What would stop it at once: files or models that are not there.
    """
    methods.check_tests(config)
    kind, evaluation = hardware or detect_hardware(), config.evaluation
    candidates = estimate_sources(config, config.data.candidates)
    tests = {name: estimate_sources(config, files) for name, files in evaluation.tests.items()}
    groups: dict[tuple[str, float], list[methods.SubsetKey]] = {}
    for key in (key for keys in methods.plan_rounds(evaluation) for key in keys):
        groups.setdefault((key.method, key.budget), []).append(key)
    rows: list[PlanRow] = []
    notices = methods.method_notices(config)
    for method in filter(methods.teacher_of, evaluation.methods):
        made = make_plan(methods.variant(config, method, evaluation.budgets[0]), hardware=kind)
        notices += made.notices
        num_subsets = sum(name == method for name, _ in groups)
        rows.append(_plan_selection(method, made, num_subsets, is_first=not rows))
    for keys in groups.values():
        rows.append(_plan_cells(config, keys, candidates, tests, kind))
    return EvaluationPlan(
        config.run_dir, candidates.num_rows, candidates.exact,
        {name: test.num_rows for name, test in tests.items()}, kind, tuple(rows),
        tuple(dict.fromkeys(notices)),
    )  # fmt: skip


def _plan_selection(method: str, made: RunPlan, num_subsets: int, *, is_first: bool) -> PlanRow:
    """Plan labels, scores and all subsets of a method; what all methods share is the first's."""
    stages = [
        stage for stage in made.stages
        if stage.name != "export" and (is_first or stage.name not in SHARED_STAGES)
    ]  # fmt: skip
    labels = [stage.state for stage in stages if stage.name == LABEL]
    done = labels == ["done"]
    asked = "labels done" if done else f"{made.num_requests:,} requests" if labels else ""
    stages += [stage for stage in stages if stage.name in SELECT_STAGES] * (num_subsets - 1)
    return PlanRow(
        f"select by {method}",
        asked,
        num_tokens=0 if done else made.num_teacher_tokens,
        seconds=sum(stage.seconds for stage in stages),
        cost_usd=sum(stage.cost_usd for stage in stages),
    )


def _plan_cells(
    config: Config,
    subsets: Sequence[methods.SubsetKey],
    candidates: SourceEstimate,
    tests: dict[str, SourceEstimate],
    kind: str,
) -> PlanRow:
    """Plan teaching with the subsets of one method and size, and measuring."""
    first, modes = subsets[0], methods.modes_of(subsets[0], config.evaluation)
    count = methods.budget_count(first.budget, candidates.num_rows) if first.budget else 0
    cells = [_cell_tokens(config, cell, candidates, tests)
             for cell in methods.plan_cells(subsets, config.evaluation)]  # fmt: skip
    read, written, num_starts = (sum(each) for each in zip(*cells, strict=True))
    trained = 0.0
    if methods.TUNED in modes:
        num_epochs = config.evaluation.tuning.num_epochs
        trained = len(subsets) * count * num_epochs * _tokens(candidates)
        num_starts += len(subsets)
    speed = config.cluster.teacher_tokens_per_second or TEACHER_TOKENS_PER_SECOND[kind]
    seconds = (
        num_starts * MODEL_START_SECONDS[kind]
        + len(cells) * ACTOR_START_SECONDS
        + (read + trained / TRAINING_SHARE + written / WRITING_SHARE) / speed
    )
    num_cpus, num_gpus = (0, 1) if kind == "gpu" else (os.cpu_count() or 1, 0)
    return PlanRow(
        f"{first.method} {first.budget * 100:g} %" if first.budget else first.method,
        f"{len(subsets)} x {count:,} rows" if count else "",
        len(cells),
        read + trained + written,
        seconds,
        config.cluster.price(seconds, num_cpus, num_gpus),
    )


def _cell_tokens(
    config: Config, cell: methods.Cell, candidates: SourceEstimate, tests: dict[str, SourceEstimate]
) -> tuple[float, float, int]:
    """Return the tokens that one cell reads and writes, and how often a model is loaded for it."""
    evaluation, test = config.evaluation, tests[cell.test]
    prompt, reference = test.prompt_chars / CHARS_PER_TOKEN, test.response_chars / CHARS_PER_TOKEN
    if cell.mode == methods.ICL:
        shown = evaluation.in_context
        prompt = min(shown.max_length, prompt + shown.num_examples * _tokens(candidates))
    read = written = 0.0
    num_starts = 0
    if "nll" in evaluation.metrics:
        most = evaluation.nll_max_rows if cell.mode == methods.ICL else None
        read += min(test.num_rows, most or test.num_rows) * (prompt + reference)
        num_starts += 1
    if set(evaluation.metrics) - {"nll"}:
        rows = min(test.num_rows, evaluation.generation.max_rows or test.num_rows)
        read, written = read + rows * prompt, rows * evaluation.generation.max_tokens
        num_starts += 1
        if "judge" in evaluation.metrics:
            answer = evaluation.generation.max_tokens
            read += rows * (_tokens(test) + answer + JUDGE_PROMPT_TOKENS)
            written += rows * evaluation.judge.max_tokens * JUDGE_WRITTEN_SHARE
            num_starts += 1
    return read, written, num_starts


def _tokens(examples: SourceEstimate) -> float:
    """Return the mean tokens of an example, prompt and answer."""
    return (examples.prompt_chars + examples.response_chars) / CHARS_PER_TOKEN
