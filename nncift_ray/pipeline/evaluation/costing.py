"""What each method's choice cost, step by step, from the manifests of its stages.

A method is charged for every stage that its choice rests on, as if it were the only one; the table
marks what several share. Embeddings are charged to what reads vectors: networks, and DELIFT (SE),
whose labels are cosines. A teacher that selects by its own labels needs none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from nncift_ray.config import Config
from nncift_ray.core.evaluation.costs import (
    LAWS,
    Law,
    Prices,
    Size,
    StepCost,
    add_up,
    extrapolate,
    measure_step,
)
from nncift_ray.core.network.sample_layouts import count_pairs
from nncift_ray.pipeline.evaluation.subsets import Subset
from nncift_ray.storage.evaluation_schemas import ALL_STEPS, COSTS
from nncift_ray.storage.manifest import StageManifest
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN
from nncift_ray.storage.scores import scored_blocks

EMBED, LABEL, GRADIENTS, INDEX = "embed", "label", "gradients", "index"
NETWORK = "fit"
DELIFT_SE = "delift_se"
#: Steps whose work grows with the number of labels.
BY_LABELS = ("sample", LABEL, "utility", NETWORK, "teacher_scores")
NOT_CHARGED = ("export",)
LAW_OF_BLOCK: Mapping[str, Law] = {CROSS: "cross", WITHIN: "within", POINTS: "candidates"}


def collect_costs(
    subsets: Sequence[Subset], prices: Prices, wanted_candidates: int | None = None
) -> pa.Table:
    """Collect the costs of every method that asks a teacher.

    Args:
        subsets: As they were selected; the first of each method is charged.
        prices: US dollars an hour.
        wanted_candidates: Size of a larger corpus, with as many targets, that costs are
            extrapolated to; None: none.

    Returns:
        COSTS: a row a step and one of all. What was not measured is marked ``extrapolated``: a
        larger corpus, and a teacher by its own labels that was asked about a part of the pairs.
    """
    chosen = _one_a_method(subsets)
    users = Counter(output.fingerprint for subset in chosen for output in _charged(subset).values())
    rows: list[dict[str, Any]] = []
    for subset in chosen:
        rows += _rows_of(subset, prices, users, wanted_candidates)
    return pa.Table.from_pylist(rows, COSTS)


def _one_a_method(subsets: Sequence[Subset]) -> list[Subset]:
    found: dict[str, Subset] = {}
    for subset in subsets:
        if subset.outputs:
            found.setdefault(subset.key.method, subset)
    return list(found.values())


def _charged(subset: Subset) -> dict[str, StageOutput]:
    """Return the stages that a method's choice rests on."""
    reads_vectors = NETWORK in subset.outputs or _config(subset).teacher.kind == DELIFT_SE
    return {
        name: output for name, output in subset.outputs.items()
        if name not in NOT_CHARGED and (name != EMBED or reads_vectors)
    }  # fmt: skip


def _config(subset: Subset) -> Config:
    assert subset.config is not None  # noqa: S101 (it has outputs, so a recipe made them)
    return subset.config


def _rows_of(
    subset: Subset, prices: Prices, users: Counter[str], wanted_candidates: int | None
) -> list[dict[str, Any]]:
    charged, labels = _charged(subset), _Labels.count(subset)
    costs = [_cost_of(output, prices) for output in charged.values()]
    shared = {name: users[output.fingerprint] > 1 for name, output in charged.items()}
    size = labels.size
    tables = [(size, costs)]
    if labels.is_partial:
        tables.append((size, _grow(subset, costs, labels, size)))
    if wanted_candidates is not None and wanted_candidates > size.num_candidates:
        wanted = replace(size, num_candidates=wanted_candidates)
        tables.append((wanted, _grow(subset, costs, labels, wanted)))
    return [
        asdict(cost)
        | {
            "method": subset.key.method,
            "num_candidates": at.num_candidates,
            "shared": any(shared.values()) if cost.step == ALL_STEPS else shared[cost.step],
            "labelled_fraction": _fraction(cost, labels),
        }
        for at, steps in tables
        for cost in (*steps, add_up(steps, ALL_STEPS))
    ]


def _fraction(cost: StepCost, labels: _Labels) -> float | None:
    if cost.step not in (LABEL, ALL_STEPS):
        return None
    return None if cost.extrapolated else labels.fraction


def _cost_of(output: StageOutput, prices: Prices) -> StepCost:
    manifest = output.manifest
    return measure_step(
        manifest.stage,
        wall_seconds=wall_seconds(manifest),
        worker_seconds=manifest.worker_seconds,
        num_cpus=manifest.num_cpus,
        num_gpus=manifest.num_gpus,
        prices=prices,
        num_tokens=_num_tokens(output),
    )


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


def _num_tokens(output: StageOutput) -> int | None:
    """Return the tokens that a language model computed for a stage; None: it asked none."""
    manifest = output.manifest
    counts = manifest.counts()
    if "tokens" in counts:
        computed = counts["tokens"] - counts.get("cached_tokens", 0)
    elif manifest.stage == LABEL:  # of a run before shards counted tokens
        table = output.read("measurements", ["num_tokens", "num_cached_tokens"])
        computed = sum(
            int(total - cached)
            for total, cached in zip(*(column.to_numpy() for column in table.columns), strict=True)
        )
    else:
        computed = 0
    return computed or None


class _Labels:
    """How many labels a method asked for, of how many there could be."""

    def __init__(self, size: Size, blocks: Mapping[str, int], asked: int, by_network: bool) -> None:
        self.size, self._blocks, self.asked, self._by_network = size, blocks, asked, by_network

    @classmethod
    def count(cls, subset: Subset) -> _Labels:
        examples, sample = subset.outputs["deduplicate"], subset.outputs["sample"]
        size = Size(examples.num_rows("candidates"), examples.num_rows("targets"))
        blocks = {block: possible_labels(block, size) for block in scored_blocks(subset.outputs)}
        split = sample.read("pairs", ["split"])["split"]
        asked = len(split) - split.null_count  # baselines have no split
        return cls(size, blocks, asked, NETWORK in subset.outputs)

    @property
    def possible(self) -> int:
        return sum(self._blocks.values())

    @property
    def fraction(self) -> float:
        return self.asked / self.possible if self.possible else 0.0

    @property
    def is_partial(self) -> bool:
        """Whether labels that are to be scores are not all there."""
        return not self._by_network and self.asked < self.possible

    def wanted(self, config: Config, size: Size) -> float:
        """Return how many labels the method would ask for on a corpus of another size."""
        if not self._by_network:
            return sum(possible_labels(block, size) for block in self._blocks)
        if config.labels.label_pairs is not None:
            return self.asked
        # A fraction of rows and columns, up to a most: what was asked, grown alike.
        power = {POINTS: 1}
        now, then = (
            sum(
                min(
                    possible_labels(block, at) * config.labels.fraction ** power.get(block, 2),
                    config.labels.max_pairs,
                )
                for block in self._blocks
            )
            for at in (self.size, size)
        )
        return self.asked * then / now if now else self.asked


def possible_labels(block: str, size: Size) -> int:
    """Return how many pairs (or examples) a block has."""
    if block == POINTS:
        return size.num_candidates
    rows = size.num_targets if block == CROSS else size.num_candidates
    return count_pairs(rows, size.num_candidates, block == WITHIN)


def _grow(
    subset: Subset, costs: Sequence[StepCost], labels: _Labels, wanted: Size
) -> list[StepCost]:
    """Extrapolate every step by what its work grows with."""
    grown_labels = labels.wanted(_config(subset), wanted)
    return [
        extrapolate([cost], *_sizes(subset, cost.step, labels, wanted, grown_labels),
                    {cost.step: _law(subset, cost.step, labels)}, _start(subset, cost))[0]
        for cost in costs
    ]  # fmt: skip


def _sizes(
    subset: Subset, step: str, labels: _Labels, wanted: Size, grown_labels: float
) -> tuple[Size, Size]:
    """Return the sizes that a step's work is measured by: of the corpus, or of its labels."""
    if step in BY_LABELS:
        return Size(labels.asked), Size(round(grown_labels))
    if step == GRADIENTS and NETWORK in subset.outputs:
        # Of the examples in the sample, which is a square of rows and columns.
        return Size(1000), Size(round(1000 * (grown_labels / labels.asked) ** 0.5))
    return labels.size, wanted


def _law(subset: Subset, step: str, labels: _Labels) -> Law:
    if step in BY_LABELS:
        return "candidates"  # of the sizes that _sizes gives: one unit a label
    if step == GRADIENTS:
        return "candidates" if NETWORK in subset.outputs else "rows"
    if step == "score_pairs":
        blocks = scored_blocks(subset.outputs)
        if INDEX in subset.outputs:
            return "rows"
        return LAW_OF_BLOCK[blocks[0]] if len(blocks) == 1 else "pairs"
    return LAWS[step]


def _start(subset: Subset, cost: StepCost) -> dict[str, float]:
    """Return the seconds in which a step only started its workers, which do not grow."""
    manifest = subset.outputs[cost.step].manifest
    return {cost.step: max(0.0, cost.seconds - manifest.worker_seconds)}


def partial_notices(subsets: Sequence[Subset]) -> list[str]:
    """Say which teachers by their own labels were asked about a part of the pairs only."""
    notices: list[str] = []
    for subset in _one_a_method(subsets):
        labels = _Labels.count(subset)
        if labels.is_partial:
            notices.append(
                f"{subset.key.method} was asked about {labels.asked:,} of "
                f"{labels.possible:,} pairs ({labels.fraction:.1%}), whole rows drawn with the "
                "seed: its subset is that of a sample, and its cost for all pairs is extrapolated"
            )
    return notices
