"""What the steps of a method cost, by how much another costs less, and what more data would cost.

Measured costs are sums over the records of finished stages. Extrapolated ones are the measured ones
times the growth of each step's work, and always marked as such: caches, start-up and the shape of
the cluster grow otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

SECONDS_PER_HOUR = 3600.0

#: What a step's work grows with, N candidates and T targets:
#: constant 1, candidates N, rows N + T, within N^2, cross N T, pairs N (N + T).
Law = Literal["constant", "candidates", "rows", "within", "cross", "pairs"]

#: The law of each stage as the default recipe uses it. Where the labels are a share of the pairs
#: ("teacher" methods that label all of them), give ``LAWS | {"label": "pairs"}``.
LAWS: Mapping[str, Law] = {
    "ingest": "rows",
    "deduplicate": "rows",
    "embed": "rows",
    # A number of labels, or `labels.fraction` up to `labels.max_pairs`, which large corpora meet.
    "sample": "constant",
    "label": "constant",
    "utility": "constant",
    "fit": "constant",
    # LESS: warm-up on a share of the candidates; gradients of the sampled examples.
    "warmup": "candidates",
    "gradients": "constant",
    "project": "rows",
    "index": "candidates",
    "score_pairs": "pairs",
    # All labels of the teacher in the place of a network's scores.
    "teacher_scores": "pairs",
    # On lists of fixed length: lazy greedy looks at a candidate a few times.
    "select_partitions": "candidates",
    "select": "candidates",
    "export": "candidates",
}


@dataclass(frozen=True, slots=True)
class Size:
    """How large a corpus is."""

    num_candidates: int
    num_targets: int = 0

    def work(self, law: Law) -> float:
        """Return the amount of work by a law, in its own unit."""
        n, t = float(self.num_candidates), float(self.num_targets)
        return {
            "constant": 1.0,
            "candidates": n,
            "rows": n + t,
            "within": n * n,
            "cross": n * t,
            "pairs": n * (n + t),
        }[law]


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars an hour."""

    per_gpu_hour: float
    per_cpu_hour: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step took."""

    step: str  # a stage's name, or "all"
    seconds: float  # on the clock
    accelerator_seconds: float  # GPUs held, over all actors, while they worked
    cpu_seconds: float  # CPUs held, likewise
    num_tokens: int | None  # computed by a language model; None: it asks none
    price: float  # US dollars
    extrapolated: bool = False


def measure_step(
    step: str,
    *,
    wall_seconds: float,
    worker_seconds: float,
    num_cpus: float,
    num_gpus: float,
    prices: Prices,
    num_tokens: int | None = None,
) -> StepCost:
    """Return the cost of a finished stage from what its manifest says.

    What holds a GPU is priced by the hour of GPU, which comes with its CPUs, all else by the hour
    of CPU. Workers count while they work on shards; loading models and idle actors do not.

    Args:
        step: The stage's name.
        wall_seconds: From the stage's start to its end. Of a stage that was stopped and went on
            the manifest knows the last run alone: its seconds are too few, the others are right.
        worker_seconds: Sum over all shards.
        num_cpus: CPUs of one worker.
        num_gpus: GPUs of one worker.
        prices: What they cost.
        num_tokens: Tokens computed by a language model.
    """
    accelerator_seconds = worker_seconds * num_gpus
    cpu_seconds = worker_seconds * num_cpus
    price = (
        accelerator_seconds * prices.per_gpu_hour if num_gpus else cpu_seconds * prices.per_cpu_hour
    ) / SECONDS_PER_HOUR
    return StepCost(step, wall_seconds, accelerator_seconds, cpu_seconds, num_tokens, price)


def add_up(costs: Sequence[StepCost], step: str = "all") -> StepCost:
    """Return the cost of steps one after another; extrapolated if one of them is."""
    tokens = [cost.num_tokens for cost in costs if cost.num_tokens is not None]
    return StepCost(
        step,
        sum(cost.seconds for cost in costs),
        sum(cost.accelerator_seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
        sum(tokens) if tokens else None,
        sum(cost.price for cost in costs),
        any(cost.extrapolated for cost in costs),
    )


def reduction_percent(cost: float, reference: float) -> float | None:
    """Return by how many percent a cost is below a reference; negative: it is above.

    None for a reference of nothing.
    """
    return 100.0 * (1.0 - cost / reference) if reference > 0 else None


def extrapolate(
    costs: Sequence[StepCost],
    measured: Size,
    wanted: Size,
    laws: Mapping[str, Law] = LAWS,
    fixed_seconds: Mapping[str, float] | None = None,
) -> list[StepCost]:
    """Say what steps would cost on a corpus of another size, on the same machines.

    Args:
        costs: Measured, each a single step.
        measured: The corpus they were measured on.
        wanted: The corpus that is asked about.
        laws: What each step's work grows with.
        fixed_seconds: Seconds on the clock of a step that do not grow, e.g. loading a model; a
            minute of it on a thousand rows is not a thousand minutes on a million.

    Returns:
        The costs in the same order, all marked as extrapolated, those that stay the same as well.

    Raises:
        ValueError: If a step has no law, or the measured corpus has no work of its law.
    """
    return [
        _grow(cost, _growth(cost.step, measured, wanted, laws), (fixed_seconds or {}))
        for cost in costs
    ]


def _growth(step: str, measured: Size, wanted: Size, laws: Mapping[str, Law]) -> float:
    if step not in laws:
        raise ValueError(f"nothing says what the work of step '{step}' grows with")
    work = measured.work(laws[step])
    if work <= 0:
        raise ValueError(
            f"step '{step}' grows with {laws[step]}, of which the measured corpus has none"
        )
    return wanted.work(laws[step]) / work


def _grow(cost: StepCost, growth: float, fixed_seconds: Mapping[str, float]) -> StepCost:
    fixed = min(fixed_seconds.get(cost.step, 0.0), cost.seconds)
    tokens = None if cost.num_tokens is None else round(cost.num_tokens * growth)
    return replace(
        cost,
        seconds=fixed + (cost.seconds - fixed) * growth,
        accelerator_seconds=cost.accelerator_seconds * growth,
        cpu_seconds=cost.cpu_seconds * growth,
        num_tokens=tokens,
        price=cost.price * growth,
        extrapolated=True,
    )
