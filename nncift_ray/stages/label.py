"""Label: ask the teacher for the sampled pairs, a group of one helper at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.examples import Example
from nncift_ray.models.teachers import LabelRequest, MeasurementFailure, Teacher
from nncift_ray.stages.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import column_matrix
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CANDIDATE, TARGET, WITHIN

DEFAULT_SHARD_PAIRS = 256

TeacherFactory = Callable[[], Teacher]
Key = tuple[str, int]  # role and row index


class LabelStage(Stage):
    """Write ``measurements``: what the teacher measured of every pair and baseline."""

    name: ClassVar[str] = "label"
    unit: ClassVar[str] = "requests"
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"

    def __init__(
        self,
        sample: StageOutput,
        make_teacher: TeacherFactory,
        teacher_settings: Mapping[str, Any],
        *,
        embeddings: StageOutput | None = None,
        shard_pairs: int | None = None,
    ) -> None:
        """Label a sample; ``embeddings`` is given where the teacher reads them."""
        self._sample, self._make_teacher = sample, make_teacher
        self._teacher_settings = dict(teacher_settings)
        self._embeddings = embeddings
        self._shard_pairs = shard_pairs or DEFAULT_SHARD_PAIRS

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Measurements."""
        return {"measurements": schemas.MEASUREMENTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The sample, and the embeddings where the teacher reads them."""
        inputs = {"sample": self._sample}
        if self._embeddings is not None:
            inputs["embeddings"] = self._embeddings
        return inputs

    def settings(self) -> dict[str, Any]:
        """The teacher with its model."""
        return self._teacher_settings

    @functools.cached_property
    def _group_starts(self) -> np.ndarray:
        """Where each group begins in the pairs table, and where the last one ends."""
        groups = self._sample.read("pairs", ["group"], schemas.PAIRS)["group"].to_numpy()
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else []
        return np.r_[starts, len(groups)].astype(np.int64)

    def num_items(self) -> int:
        """Groups."""
        return len(self._group_starts) - 1

    @property
    def shard_items(self) -> int:
        """Groups that make about ``shard_pairs`` requests."""
        total = int(self._group_starts[-1])
        return max(1, self._shard_pairs * self.num_items() // max(1, total))

    def item_weight(self, start: int, stop: int) -> int:
        """Requests of some groups."""
        return int(self._group_starts[stop] - self._group_starts[start])

    def make_worker(self) -> Worker:
        """Load the teacher and the sampled texts."""
        teacher = self._make_teacher()
        examples = load_sampled_examples(self._sample)
        vectors = load_sampled_vectors(self._embeddings, examples)

        def label_shard(shard: Shard, sink: Sink) -> None:
            for group in range(shard.start, shard.stop):
                low, high = int(self._group_starts[group]), int(self._group_starts[group + 1])
                pairs = self._sample.read_range("pairs", low, high).to_pylist()
                label_group(pairs, teacher, examples, vectors, sink)

        return label_shard


def load_sampled_examples(sample: StageOutput) -> dict[Key, Example]:
    """Read the texts of the sample."""
    table = sample.read("sampled_examples", schema=schemas.SAMPLED_EXAMPLES)
    return {
        (row["role"], row["row_index"]): Example(row["example_id"], row["prompt"], row["response"])
        for row in table.to_pylist()
    }


def load_sampled_vectors(
    embeddings: StageOutput | None, examples: Mapping[Key, Example]
) -> dict[Key, np.ndarray]:
    """Read the vectors of the sample, float32; none where the teacher reads none."""
    vectors: dict[Key, np.ndarray] = {}
    if embeddings is None:
        return vectors
    for role in (CANDIDATE, TARGET):
        rows = np.array(sorted(row for kind, row in examples if kind == role), dtype=np.int64)
        if rows.size:
            table = embeddings.take_rows(f"{role}s", rows, ["embedding"])
            matrix = column_matrix(table["embedding"])
            vectors.update(((role, int(row)), matrix[at]) for at, row in enumerate(rows))
    return vectors


def label_group(
    pairs: list[dict[str, Any]],
    teacher: Teacher,
    examples: Mapping[Key, Example],
    vectors: Mapping[Key, np.ndarray],
    sink: Sink,
) -> None:
    """Ask the teacher for one group; a request that fails becomes a row in the errors table."""
    requests = [make_request(pair, examples, vectors) for pair in pairs]
    rows: list[dict[str, Any]] = []
    for pair, request, answer in zip(pairs, requests, teacher.measure(requests), strict=True):
        if isinstance(answer, MeasurementFailure):
            helper = request.helper.example_id if request.helper else "no example"
            sink.error(
                answer.reason,
                f"{answer.message} (with {helper} in context)",
                example_id=request.helped.example_id,
                excerpt=request.helped.prompt,
            )
            continue
        kept = {name: pair[name] for name in ("block", "helped_index", "helper_index", "split")}
        rows.append(
            kept
            | {
                "value": answer.value,
                "num_tokens": answer.num_tokens,
                "num_cached_tokens": answer.num_cached_tokens,
            }
        )
    sink.write_rows("measurements", rows, schemas.MEASUREMENTS)


def make_request(
    pair: Mapping[str, Any], examples: Mapping[Key, Example], vectors: Mapping[Key, np.ndarray]
) -> LabelRequest:
    """Look up the texts and vectors of a pair."""
    helped: Key = (CANDIDATE if pair["block"] == WITHIN else TARGET, pair["helped_index"])
    helper: Key | None = None if pair["helper_index"] is None else (CANDIDATE, pair["helper_index"])
    return LabelRequest(
        helped=examples[helped],
        helper=None if helper is None else examples[helper],
        helped_embedding=vectors.get(helped),
        helper_embedding=None if helper is None else vectors.get(helper),
    )
