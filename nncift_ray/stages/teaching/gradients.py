"""Gradients: one projected LoRA gradient for each sampled example, side and checkpoint (LESS).

Suffixes: N rows of an atom, P projected dimensions.
Source: LESS, arXiv 2402.04333, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.core.examples import Example
from nncift_ray.core.teaching.projection import RademacherProjector
from nncift_ray.models.engine import ScoringFailure
from nncift_ray.models.lora_model import LoraModel
from nncift_ray.models.per_example import project_gradients
from nncift_ray.models.trainable_model import TrainingExample
from nncift_ray.models.warmup import WarmupCheckpoint
from nncift_ray.stages.driving.atoms import RowAtoms, RowSpan, RowStage
from nncift_ray.stages.driving.stage import KILLED_WORKER, Shard, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.checkpoints import read_warmup
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.sampled import (
    GRADIENT_BLOCK_ROWS,
    HELPED,
    HELPER,
    ExampleKey,
    GradientKey,
    checkpoint_of_table,
    gradient_table,
    load_sampled_examples,
)
from nncift_ray.storage.schemas import CANDIDATE, CROSS, TARGET

#: Gradients that are padded, projected and stored together.
ATOM_ROWS = GRADIENT_BLOCK_ROWS
DEFAULT_SHARD_ROWS = 128
NOT_FINITE = "not_finite"


class GradientsStage(RowStage):
    """Write ``checkpoint_0``, ``checkpoint_1``, ...: the same examples in the same order in each.

    Items run through a checkpoint before the next, so that an actor loads each about once.
    """

    name: ClassVar[str] = "gradients"
    unit: ClassVar[str] = "gradients"
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"
    divisible: ClassVar[bool] = True
    memory_advice: ClassVar[str] = (
        "lower teacher.batch_tokens or teacher.less.max_length, or give fewer actors "
        "(teacher.less.pool) more memory"
    )

    def __init__(
        self,
        sample: StageOutput,
        warmup: StageOutput,
        make_model: Callable[[], LoraModel],
        *,
        projection_dim: int,
        seed: int,
        batch_tokens: int,
        shard_rows: int | None = None,
    ) -> None:
        """Take gradients of a sample at a warm-up's checkpoints.

        Args:
            sample: The sample stage's output.
            warmup: The warm-up stage's output; says for the fingerprint which model it was.
            make_model: Loads the model that was warmed up; its adapter is replaced.
            projection_dim: Length of a projected gradient.
            seed: Of the projection.
            batch_tokens: Padded tokens computed at once. Other batches round otherwise, so it
                belongs to the fingerprint.
            shard_rows: Gradients a shard.
        """
        self._sample, self._warmup, self._make_model = sample, warmup, make_model
        self._projection_dim, self.seed = projection_dim, seed
        self._batch_tokens = batch_tokens
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._keys = list_gradients(sample)
        self._num_checkpoints = warmup.num_rows("checkpoints")
        ranges = tuple((table, len(self._keys)) for table in self.produces)
        self._atoms = RowAtoms(ranges, ATOM_ROWS)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """A table a checkpoint."""
        schema = schemas.gradients_schema(self._projection_dim)
        return {gradient_table(number): schema for number in range(self._num_checkpoints)}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The sample and the warm-up."""
        return {"sample": self._sample, "warmup": self._warmup}

    def settings(self) -> dict[str, Any]:
        """The projection and what is computed together."""
        return {
            "projection_dim": self._projection_dim,
            "seed": self.seed,
            "batch_tokens": self._batch_tokens,
            "atom_rows": ATOM_ROWS,
        }

    def row_numbers(self, start: int, stop: int) -> range:
        """Gradients of some atoms, numbered through all checkpoints."""
        spans = list(self._atoms.spans(start, stop))
        return range(self._numbers(spans[0]).start, self._numbers(spans[-1]).stop)

    def condemned_with(self, killers: Sequence[int], rows: range) -> Mapping[int, str]:
        """Condemn the other gradients of an example of which one killed."""
        guilty = {self._key(number).example for number in killers}
        message = "another gradient of the same example killed its worker; this was not tried"
        return {number: message for number in rows if self._key(number).example in guilty}

    def _numbers(self, span: RowSpan) -> range:
        first = checkpoint_of_table(span.name) * len(self._keys)
        return range(first + span.start, first + span.stop)

    def _key(self, number: int) -> GradientKey:
        return self._keys[number % len(self._keys)]

    def make_worker(self) -> Worker:
        """Load the model and the sampled texts."""
        examples = load_sampled_examples(self._sample)
        model = self._make_model()
        taker = GradientTaker(
            model,
            self._warmup,
            RademacherProjector(model.num_adapter_parameters, self._projection_dim, self.seed),
            self._batch_tokens,
        )
        first_place = first_places(self._keys)

        def take_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                numbers = shard.wanted(self._numbers(span))
                if not numbers:
                    continue
                taker.load_checkpoint(checkpoint_of_table(span.name))
                keys = [self._key(number) for number in numbers]
                texts = [examples[key.example] for key in keys]
                skip = {at: shard.skip[n] for at, n in enumerate(numbers) if n in shard.skip}
                atom = taker.take(keys, texts, skip)
                sink.write(span.name, atom.to_table(keys, texts))
                for at, failure in sorted(atom.failures.items()):
                    # What is wrong with a text is told once, not on both sides of every checkpoint.
                    first = numbers[at] == first_place[keys[at].example]
                    if first or failure.reason in (NOT_FINITE, KILLED_WORKER):
                        write_failure(sink, texts[at], failure)

        return take_shard


def list_gradients(sample: StageOutput) -> list[GradientKey]:
    """Return which gradients the sampled pairs need, each once, by side, role and row."""
    pairs = sample.read("pairs", ["block", "helped_index", "helper_index"], schemas.PAIRS)
    crossing = pc.equal(pairs["block"], pa.scalar(CROSS))
    helpers = pairs["helper_index"].drop_null()
    rows_of = {
        (HELPED, CANDIDATE): pairs.filter(pc.invert(crossing))["helped_index"],
        (HELPED, TARGET): pairs.filter(crossing)["helped_index"],
        (HELPER, CANDIDATE): helpers,
    }
    return [
        GradientKey(side, role, int(row))
        for (side, role), rows in rows_of.items()
        for row in np.unique(rows.to_numpy())
    ]


def first_places(keys: Sequence[GradientKey]) -> dict[ExampleKey, int]:
    """Return where each example is first named."""
    return {key.example: at for at, key in reversed(list(enumerate(keys)))}


def write_failure(sink: Sink, example: Example, failure: ScoringFailure) -> None:
    """Write an example that has no gradient to the errors table."""
    sink.error(
        failure.reason, failure.message, example_id=example.example_id, excerpt=example.prompt
    )


@dataclass(frozen=True, eq=False)
class AtomGradients:
    """The gradients of one atom; the rows that have none are zeros and have a failure."""

    features_NP: np.ndarray
    failures: dict[int, ScoringFailure]  # by row

    def to_table(self, keys: Sequence[GradientKey], examples: Sequence[Example]) -> pa.Table:
        """Lay the rows out as they are stored."""
        num_rows, projection_dim = self.features_NP.shape
        missing = np.array([at in self.failures for at in range(num_rows)])
        flat = pa.array(self.features_NP.reshape(-1), pa.float32())
        feature = pa.FixedSizeListArray.from_arrays(flat, projection_dim, mask=pa.array(missing))
        return pa.Table.from_pydict(
            {
                "side": pa.array([key.side for key in keys], pa.string()),
                "role": pa.array([key.role for key in keys], pa.string()),
                "row_index": pa.array([key.row_index for key in keys], pa.int64()),
                "example_id": pa.array([example.example_id for example in examples], pa.string()),
                "done": pa.array(~missing),
                "feature": feature,
            },
            schema=schemas.gradients_schema(projection_dim),
        )


class GradientTaker:
    """A model that is set to one checkpoint after another and asked for gradients."""

    number = -1  # of the checkpoint that is loaded

    def __init__(
        self,
        model: LoraModel,
        warmup: StageOutput,
        projector: RademacherProjector,
        batch_tokens: int,
    ) -> None:
        """Keep a model; its adapter is that of no checkpoint yet."""
        self._model, self._warmup = model, warmup
        self._projector, self._batch_tokens = projector, batch_tokens
        self._checkpoint: WarmupCheckpoint | None = None

    def load_checkpoint(self, number: int) -> None:
        """Set the adapter and Adam's moments to those of a checkpoint."""
        if number == self.number:
            return
        self._checkpoint = None  # before the next one is read: both may be large
        groups, facts = read_warmup(self._warmup, number)
        self._checkpoint = WarmupCheckpoint(**groups, **facts)
        self._model.load_adapter(self._checkpoint.adapter)
        self.number = number

    def take(
        self, keys: Sequence[GradientKey], examples: Sequence[Example], skip: Mapping[int, str]
    ) -> AtomGradients:
        """Take the gradients of an atom: plain for the helped, Adam's next step for helpers.

        Args:
            keys: Whose gradient, on which side.
            examples: Their texts.
            skip: Rows of the atom that must not be tried, and why.
        """
        encoded = {
            at: ScoringFailure(KILLED_WORKER, skip[at]) if at in skip else self._model.encode(text)
            for at, text in enumerate(examples)
        }
        failures = {at: e for at, e in encoded.items() if isinstance(e, ScoringFailure)}
        sound = {at: e for at, e in encoded.items() if isinstance(e, TrainingExample)}
        features_NP = np.zeros((len(keys), self._projector.output_dim), np.float32)
        for side in (HELPED, HELPER):
            places = [at for at in sound if keys[at].side == side]
            if places:
                features_NP[places] = project_gradients(
                    self._model,
                    [sound[at] for at in places],
                    self._projector,
                    precondition=self._checkpoint if side == HELPER else None,
                    batch_tokens=self._batch_tokens,
                )
        for at in np.flatnonzero(~np.isfinite(features_NP).all(axis=1)).tolist():
            failures[at] = ScoringFailure(
                NOT_FINITE,
                f"its gradient as {keys[at].side} at checkpoint {self.number} is zero or not "
                "finite",
            )
            features_NP[at] = 0.0
        return AtomGradients(features_NP, failures)
