"""Label: ask the teacher for the sampled pairs, a group at a time."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.examples import Example
from nncift_ray.models.teachers import LabelRequest, MeasurementFailure, Teacher
from nncift_ray.stages.driving.stage import KILLED_WORKER, Shard, Stage, Worker
from nncift_ray.stages.teaching.label_requests import RequestMaker, example_keys
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.sampled import ExampleKey

DEFAULT_SHARD_PAIRS = 256

TeacherFactory = Callable[[], Teacher]


class LabelStage(Stage):
    """Write ``measurements``: what the teacher measured of every pair and baseline."""

    name: ClassVar[str] = "label"
    unit: ClassVar[str] = "requests"
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"
    divisible: ClassVar[bool] = True
    memory_advice: ClassVar[str] = (
        "lower teacher.batch_tokens, teacher.max_length or labels.group_pairs, set "
        "teacher.kv_cache_memory_bytes, or give fewer actors (labels.pool) more memory"
    )

    def __init__(
        self,
        sample: StageOutput,
        make_teacher: TeacherFactory,
        teacher_settings: Mapping[str, Any],
        *,
        embeddings: StageOutput | None = None,
        gradients: StageOutput | None = None,
        shard_pairs: int | None = None,
    ) -> None:
        """Label a sample; embeddings and gradients are given where the teacher reads them."""
        self._sample, self._make_teacher = sample, make_teacher
        self._teacher_settings = dict(teacher_settings)
        self._embeddings, self._gradients = embeddings, gradients
        self._shard_pairs = shard_pairs or DEFAULT_SHARD_PAIRS

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Measurements."""
        return {"measurements": schemas.MEASUREMENTS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The sample, and the embeddings and gradients where the teacher reads them."""
        inputs = {"sample": self._sample}
        if self._embeddings is not None:
            inputs["embeddings"] = self._embeddings
        if self._gradients is not None:
            inputs["gradients"] = self._gradients
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

    def row_numbers(self, start: int, stop: int) -> range:
        """Requests of some groups, by their place in the pairs table."""
        return range(int(self._group_starts[start]), int(self._group_starts[stop]))

    def condemned_with(self, killers: Sequence[int], rows: range) -> Mapping[int, str]:
        """Condemn what holds an example that killed alone, or as the helped one of two helpers."""
        helpers_of: defaultdict[ExampleKey, set[ExampleKey | None]] = defaultdict(set)
        for row in killers:
            helped, helper = self._examples_of(range(row, row + 1))[row]
            helpers_of[helped].add(helper)
        guilty = {key for key, helpers in helpers_of.items() if None in helpers or len(helpers) > 1}
        if not guilty:
            return {}
        message = "other requests with the same example killed their worker; this was not tried"
        return {
            row: message
            for row, examples in self._examples_of(rows).items()
            if not guilty.isdisjoint(examples)
        }

    def _examples_of(self, rows: range) -> dict[int, tuple[ExampleKey, ExampleKey | None]]:
        """Return the helped and the helper example of some requests."""
        columns = ["block", "helped_index", "helper_index"]
        pairs = self._sample.read_range("pairs", rows.start, rows.stop, columns).to_pylist()
        return {row: example_keys(pair) for row, pair in zip(rows, pairs, strict=True)}

    def make_worker(self) -> Worker:
        """Load the teacher and the sampled texts."""
        teacher = self._make_teacher()
        maker = RequestMaker.load(self._sample, self._embeddings, self._gradients)

        def label_shard(shard: Shard, sink: Sink) -> None:
            for group in range(shard.start, shard.stop):
                rows = shard.wanted(self.row_numbers(group, group + 1))
                if not rows:
                    continue
                pairs = self._sample.read_range("pairs", rows.start, rows.stop).to_pylist()
                pairs = leave_out(pairs, rows, shard.skip, maker.examples, sink)
                label_group(pairs, teacher, maker, sink)

        return label_shard


def leave_out(
    pairs: list[dict[str, Any]],
    rows: range,
    skip: Mapping[int, str],
    examples: Mapping[ExampleKey, Example],
    sink: Sink,
) -> list[dict[str, Any]]:
    """Return the pairs not to be skipped; the others become rows in the errors table."""
    kept: list[dict[str, Any]] = []
    for row, pair in zip(rows, pairs, strict=True):
        if row in skip:
            helped, helper = example_keys(pair)
            request = LabelRequest(examples[helped], examples[helper] if helper else None)
            write_failure(request, MeasurementFailure(KILLED_WORKER, skip[row]), sink)
        else:
            kept.append(pair)
    return kept


def label_group(
    pairs: list[dict[str, Any]], teacher: Teacher, maker: RequestMaker, sink: Sink
) -> None:
    """Ask the teacher for one group; a request that fails becomes a row in the errors table."""
    requests = maker.make(pairs)
    rows: list[dict[str, Any]] = []
    for pair, request, answer in zip(pairs, requests, teacher.measure(requests), strict=True):
        if isinstance(answer, MeasurementFailure):
            write_failure(request, answer, sink)
            continue
        sink.count("tokens", answer.num_tokens)
        sink.count("cached_tokens", answer.num_cached_tokens)
        kept = {name: pair[name] for name in ("block", "helped_index", "helper_index", "split")}
        rows.append(
            kept
            | {
                "value": answer.value,
                "num_tokens": answer.num_tokens,
                "num_cached_tokens": answer.num_cached_tokens,
                "num_minimal_tokens": answer.num_minimal_tokens,
            }
        )
    sink.write_rows("measurements", rows, schemas.MEASUREMENTS)


def write_failure(request: LabelRequest, failure: MeasurementFailure, sink: Sink) -> None:
    """Write a request without a measurement to the errors table."""
    helper = request.helper.example_id if request.helper else "no example"
    sink.error(
        failure.reason,
        f"{failure.message} (with {helper} in context)",
        example_id=request.helped.example_id,
        excerpt=request.helped.prompt,
    )
