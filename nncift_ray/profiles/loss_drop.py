"""The step ``loss_drop``: by how much a candidate's loss falls once the model knows the targets.

It knows them by a short training on them, or by some of them in its context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example
from nncift_ray.engines.base import Engine, ScoringFailure, ScoringRequest
from nncift_ray.engines.models import EngineFactory, LoraFactory
from nncift_ray.engines.tokens import TrainingExample, cut_batches
from nncift_ray.profiles.quality import fitting_prefix
from nncift_ray.profiles.step import ATOM_ROWS, DEFAULT_SHARD_ROWS, ModelRowStage
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, Shard, Worker

PASS_TOKENS = 8192
TARGETS_STREAM = 41  # random stream of the targets that are shown

#: One row a candidate, in order; losses in nats a response token, null where not measured.
LOSS_DROP = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("nll_before", pa.float32()),
        pa.field("nll_after", pa.float32()),
    ]
)

Losses = tuple[float, float]  # before and after
Measure = Callable[[Sequence[Example]], list[Losses | ScoringFailure]]


@dataclass(frozen=True)
class ByTraining:
    """Losses by the model as it came and as the warm-up on the targets left it: 2n passes.

    Source: Let the Target Select for Itself, arXiv 2605.09404.
    """

    make_model: LoraFactory
    warmup: StageOutput
    batch_tokens: int | None  # padded tokens of a pass; None: PASS_TOKENS

    def inputs(self) -> dict[str, StageOutput]:
        """What it reads."""
        return {"warmup": self.warmup}

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
        return {"model": self.make_model.settings(), "batch_tokens": self.batch_tokens}

    def __call__(self) -> Measure:
        """Load the model."""
        import torch

        from nncift_ray.teachers.gradients import read_checkpoint

        model = self.make_model()
        last = self.warmup.num_rows("checkpoints") - 1
        # Fresh adapters change nothing, so the first state is the model as it came.
        states = model.adapter_state(), read_checkpoint(last, self.warmup.read_file).adapter

        def measure(examples: Sequence[Example]) -> list[Losses | ScoringFailure]:
            encoded = [model.encode(example) for example in examples]
            sound = {at: one for at, one in enumerate(encoded) if isinstance(one, TrainingExample)}
            places = list(sound)
            found = np.zeros((2, len(examples)))
            for number, state in enumerate(states):
                model.load_adapter(state)
                lengths = [len(sound[at].input_ids) for at in places]
                for batch in cut_batches(lengths, 0, self.batch_tokens or PASS_TOKENS):
                    rows = [places[at] for at in batch]
                    with torch.no_grad():
                        losses = model.losses([sound[at] for at in rows])
                    found[number, rows] = losses.cpu().numpy()
            return [
                one if isinstance(one, ScoringFailure) else (found[0, at], found[1, at])
                for at, one in enumerate(encoded)
            ]

        return measure


@dataclass(frozen=True)
class InContext:
    """Losses alone and behind some targets, the same for all candidates: 2n passes.

    Source: Holdout-Loss-Based Data Selection via In-Context Learning, arXiv 2510.14459.
    """

    make_engine: EngineFactory
    examples: StageOutput
    num_shown: int
    seed: int

    def inputs(self) -> dict[str, StageOutput]:
        """What it reads."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
        return {
            "engine": self.make_engine.settings(),
            "num_shown": self.num_shown,
            "seed": self.seed,
        }

    def draw_targets(self) -> np.ndarray:
        """Return the rows of the targets that are shown, in their order."""
        sequence = np.random.SeedSequence([self.seed, TARGETS_STREAM])
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(
            self.examples.num_rows("targets")
        )
        return np.sort(order[: self.num_shown])

    def __call__(self) -> Measure:
        """Load the model and the targets."""
        engine = self.make_engine()
        table = self.examples.take_rows("targets", self.draw_targets(), EXAMPLE_COLUMNS)
        shown = [
            engine.encode(f"{row['prompt']}\n{row['response']}\n\n") for row in table.to_pylist()
        ]

        def measure(examples: Sequence[Example]) -> list[Losses | ScoringFailure]:
            requests = [_requests(engine, shown, example) for example in examples]
            answers = [engine.score([pair[side] for pair in requests]) for side in (0, 1)]
            found: list[Losses | ScoringFailure] = []
            for before, after in zip(*answers, strict=True):
                if isinstance(before, ScoringFailure) or isinstance(after, ScoringFailure):
                    found.append(before if isinstance(before, ScoringFailure) else after)
                else:
                    found.append((-before.log_probs.mean(), -after.log_probs.mean()))
            return found

        return measure


def _requests(
    engine: Engine, shown: Sequence[Sequence[int]], example: Example
) -> tuple[ScoringRequest, ScoringRequest]:
    """Return what an example is asked alone and behind as many shown ones as fit, the last first.

    All candidates that all of them fit before share their prefix.
    """
    start, query = engine.start_ids or [engine.eos_id], engine.encode(f"{example.prompt}\n")
    ids = [*engine.encode(example.response), engine.eos_id] if example.response else []
    room = engine.max_length - len(start) - len(query) - len(ids)
    head = [*start, *fitting_prefix(reversed(shown), room)]
    alone = ScoringRequest([*start, *query], ids, len(start))
    return alone, ScoringRequest([*head, *query], ids, len(head))


class LossDropStage(ModelRowStage):
    """Write ``candidates``: each one's loss before and after the model knows the targets."""

    name: ClassVar[str] = "loss_drop"
    title: ClassVar[str] = "measure what knowing the targets saves"
    produces = {"candidates": LOSS_DROP}

    def __init__(
        self,
        examples: StageOutput,
        make_measure: ByTraining | InContext,
        shard_rows: int | None = None,
    ) -> None:
        """Measure the deduplicated candidates."""
        self._examples, self._make_measure = examples, make_measure
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._atoms = RowAtoms((("candidates", examples.num_rows("candidates")),), ATOM_ROWS)
        self.inputs = {"examples": examples, **self._make_measure.inputs()}

    def settings(self) -> dict[str, Any]:
        """The way, its model and what is computed together."""
        way = type(self._make_measure).__name__
        return {"way": way, "atom_rows": ATOM_ROWS, **self._make_measure.settings()}

    def make_worker(self) -> Worker:
        """Load the model."""
        measure = self._make_measure()

        def measure_shard(shard: Shard, sink: Sink) -> None:
            for item in range(shard.start, shard.stop):
                wanted = shard.wanted(self.row_numbers(item, item + 1))
                if len(wanted):
                    self._measure_rows(measure, wanted, shard.skip, sink)

        return measure_shard

    def _measure_rows(
        self, measure: Measure, numbers: range, skip: Mapping[int, str], sink: Sink
    ) -> None:
        rows = self._examples.read_range(
            "candidates", numbers.start, numbers.stop, list(EXAMPLE_COLUMNS)
        ).to_pylist()
        examples = {number: Example(**row) for number, row in zip(numbers, rows, strict=True)}
        found: dict[int, Losses | ScoringFailure] = {
            number: ScoringFailure(KILLED_WORKER, skip[number])
            for number in numbers
            if number in skip
        }
        asked = [number for number in numbers if number not in skip]
        found |= zip(asked, measure([examples[number] for number in asked]), strict=True)
        written: list[dict[str, Any]] = []
        for number, answer in sorted(found.items()):
            losses: Losses | tuple[None, None] = (None, None)
            if isinstance(answer, ScoringFailure):
                example_id, excerpt = examples[number].example_id, examples[number].prompt
                sink.error(answer.reason, answer.message, example_id=example_id, excerpt=excerpt)
            else:
                losses = answer
            names = ("nll_before", "nll_after")
            written.append({"row_index": number} | dict(zip(names, losses, strict=True)))
        sink.write_rows("candidates", written, LOSS_DROP)
