"""Label: ask the teacher for the sampled pairs, a group at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Example, ExampleKey, load_sampled_examples
from nncift_ray.errors import DataError, StageError
from nncift_ray.labels.sample import PairSample, SampleDesign, draw_block, draw_points
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ROW_GROUP_ROWS, Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CANDIDATE, POINTS, TARGET, WITHIN, helped_role
from nncift_ray.runtime.step import KILLED_WORKER, Shard, Stage, Worker
from nncift_ray.teachers.base import LabelRequest, MeasurementFailure, Teacher
from nncift_ray.teachers.gradient_store import HELPED, HELPER, GradientKey, GradientReader

Vectors = Mapping[ExampleKey, np.ndarray]
Gradients = Mapping[GradientKey, np.ndarray]


@dataclass(frozen=True)
class RequestMaker:
    """Looks up what requests are made of; texts and embeddings of the sample are in memory."""

    examples: Mapping[ExampleKey, Example]
    vectors: Vectors  # empty where the teacher reads none
    gradients: GradientReader | None  # reads from disk, a bounded part kept

    @classmethod
    def load(
        cls, sample: StageOutput, embeddings: StageOutput | None, gradients: StageOutput | None
    ) -> RequestMaker:
        """Read the sample's texts and, where they are given, embeddings."""
        examples = load_sampled_examples(sample)
        reader = None if gradients is None else GradientReader(gradients)
        return cls(examples, load_sampled_vectors(embeddings, examples), reader)

    def make(self, pairs: Sequence[Mapping[str, Any]]) -> list[LabelRequest]:
        """Return the requests of some pairs, in their order."""
        found: Gradients = {}
        if self.gradients is not None:
            found = self.gradients.vectors({key for pair in pairs for key in gradient_keys(pair)})
        return [self._make_one(pair, found) for pair in pairs]

    def _make_one(self, pair: Mapping[str, Any], gradients: Gradients) -> LabelRequest:
        helped, helper = example_keys(pair)
        if helper is None:
            return LabelRequest(self.examples[helped], helped_embedding=self.vectors.get(helped))
        return LabelRequest(
            helped=self.examples[helped],
            helper=self.examples[helper],
            helped_embedding=self.vectors.get(helped),
            helper_embedding=self.vectors.get(helper),
            helped_gradients=gradients.get(GradientKey(HELPED, *helped)),
            helper_gradients=gradients.get(GradientKey(HELPER, *helper)),
        )


def example_keys(pair: Mapping[str, Any]) -> tuple[ExampleKey, ExampleKey | None]:
    """Return the helped and the helper example of a pair."""
    helped: ExampleKey = (helped_role(pair["block"]), pair["helped_index"])
    helper = pair["helper_index"]
    return helped, None if helper is None else (CANDIDATE, helper)


def gradient_keys(pair: Mapping[str, Any]) -> list[GradientKey]:
    """Return the gradients that a pair's label is made of."""
    helped, helper = example_keys(pair)
    keys = [GradientKey(HELPED, *helped)]
    return keys if helper is None else [*keys, GradientKey(HELPER, *helper)]


def load_sampled_vectors(
    embeddings: StageOutput | None, examples: Mapping[ExampleKey, Example]
) -> dict[ExampleKey, np.ndarray]:
    """Read the vectors of the sample, float32; none where the teacher reads none."""
    vectors: dict[ExampleKey, np.ndarray] = {}
    if embeddings is None:
        return vectors
    for role in (CANDIDATE, TARGET):
        rows = np.array(sorted(row for kind, row in examples if kind == role), dtype=np.int64)
        if rows.size:
            table = embeddings.take_rows(f"{role}s", rows, ["embedding"])
            matrix = column_matrix(table["embedding"])
            vectors.update(((role, int(row)), matrix[at]) for at, row in enumerate(rows))
    return vectors


# Label: ask the teacher for the sampled pairs, a group at a time.

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


# Sample: draw what the teacher labels, and group it so that an engine can share work.

DEFAULT_GROUP_PAIRS = 256
SAMPLE_COLUMNS = ["row_index", "example_id", "prompt", "response"]


class SampleStage(Stage):
    """Write ``pairs``, in groups that an engine is handed at once, and ``sampled_examples``."""

    name: ClassVar[str] = "sample"
    version: ClassVar[int] = 3
    unit: ClassVar[str] = "draws"

    def __init__(
        self,
        examples: StageOutput,
        designs: Mapping[str, SampleDesign],
        *,
        needs_baseline: bool,
        group_pairs: int = DEFAULT_GROUP_PAIRS,
    ) -> None:
        """Draw for each block by its design.

        Args:
            examples: The deduplicated examples.
            designs: By block: "within" and "cross" of a pairwise teacher, "points" of a pointwise.
            needs_baseline: Whether every helped example is to be measured alone, too.
            group_pairs: Requests of a group at most: what an engine gets in one call. Rounding may
                depend on it, so it is part of the labels' fingerprint.
        """
        self._examples, self._designs = examples, dict(designs)
        self._needs_baseline, self._group_pairs = needs_baseline, group_pairs
        self.seed = next(iter(designs.values())).seed

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Pairs and texts."""
        return {"pairs": schemas.PAIRS, "sampled_examples": schemas.SAMPLED_EXAMPLES}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The deduplicated examples."""
        return {"examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """The design of the sample and of its groups."""
        return {
            "designs": {
                block: dataclasses.asdict(design) for block, design in self._designs.items()
            },
            "needs_baseline": self._needs_baseline,
            "group_pairs": self._group_pairs,
        }

    def num_items(self) -> int:
        """One draw."""
        return 1

    def make_worker(self) -> Worker:
        """Return the draw."""

        def draw(shard: Shard, sink: Sink) -> None:
            samples = {block: self._draw_block(block) for block in self._designs}
            requests = group_requests(
                samples, self._group_pairs, needs_baseline=self._needs_baseline
            )
            sink.write("pairs", requests)
            for role, rows in sampled_rows(samples).items():
                texts = self._examples.take_rows(f"{role}s", rows, SAMPLE_COLUMNS)
                column = pa.array([role] * texts.num_rows, pa.string())
                named = texts.add_column(0, schemas.SAMPLED_EXAMPLES.field("role"), column)
                sink.write("sampled_examples", named.cast(schemas.SAMPLED_EXAMPLES))

        return draw

    def _draw_block(self, block: str) -> PairSample:
        num_columns = self._examples.num_rows("candidates")
        num_rows = self._examples.num_rows(f"{helped_role(block)}s")
        design = self._designs[block]
        try:
            if block == POINTS:
                return draw_points(num_rows, design)
            return draw_block(num_rows, num_columns, block == WITHIN, design)
        except ValueError as error:
            size = f"{num_rows}" if block == POINTS else f"{num_rows} x {num_columns}"
            raise DataError(f"no label sample of {size} examples ({block}): {error}") from error


def sampled_rows(samples: Mapping[str, PairSample]) -> dict[str, np.ndarray]:
    """Return, by role, the sorted row indices that any request names."""
    named: dict[str, list[np.ndarray]] = {}
    for block, sample in samples.items():
        named.setdefault(helped_role(block), []).append(sample.helped)
        if sample.helper is not None:
            named.setdefault(CANDIDATE, []).append(sample.helper)
    return {role: np.unique(np.concatenate(rows)) for role, rows in sorted(named.items())}


def group_requests(
    samples: Mapping[str, PairSample], group_pairs: int, *, needs_baseline: bool
) -> pa.Table:
    """Lay the requests out in groups: baselines first, then each block's pairs by helper.

    A group is what an engine is given at once, of one block and at most ``group_pairs`` requests.
    Neighbours share their helper, whose text is computed once: a group holds the whole runs of as
    many helpers as fit, and only a run that no group could hold is cut.
    """
    tables: list[pa.Table] = []
    next_group = 0
    if needs_baseline:
        for block, sample in samples.items():
            helped = np.unique(sample.helped)
            groups = next_group + np.arange(len(helped)) // group_pairs
            tables.append(_pair_table(groups, block, helped, None, None))
            next_group = int(groups[-1]) + 1
    for block, sample in samples.items():
        keys = (sample.helped,) if sample.helper is None else (sample.helped, sample.helper)
        order = np.lexsort(keys)
        helper = None if sample.helper is None else sample.helper[order]
        runs = np.ones(len(order), np.int64) if helper is None else _run_lengths(helper)
        groups = next_group + _group_numbers(runs, group_pairs)
        split = np.asarray(sample.split)[order]
        tables.append(_pair_table(groups, block, sample.helped[order], helper, split))
        next_group = int(groups[-1]) + 1
    return pa.concat_tables(tables)


def _run_lengths(helper: np.ndarray) -> np.ndarray:
    """Return how many neighbours are equal, run by run."""
    starts = np.flatnonzero(np.r_[True, helper[1:] != helper[:-1]])
    return np.diff(np.r_[starts, len(helper)])


def _group_numbers(runs: np.ndarray, group_pairs: int) -> np.ndarray:
    """Number the requests of some runs by group, from 0; runs longer than a group are cut."""
    group, room = -1, 0
    counts: list[int] = []
    for run in runs.tolist():
        for piece in (group_pairs,) * (run // group_pairs) + (run % group_pairs,):
            if piece > room:
                group, room = group + 1, group_pairs
                counts.append(0)
            if piece:
                counts[group] += piece
                room -= piece
    return np.repeat(np.arange(len(counts)), counts)


def _pair_table(
    groups: np.ndarray,
    block: str,
    helped: np.ndarray,
    helper: np.ndarray | None,
    split: np.ndarray | None,
) -> pa.Table:
    count = len(helped)
    return pa.table(
        {
            "group": pa.array(groups, pa.int32()),
            "block": pa.array([block] * count, pa.string()),
            "helped_index": pa.array(helped, pa.int64()),
            "helper_index": pa.nulls(count, pa.int64())
            if helper is None
            else pa.array(helper, pa.int64()),
            "split": pa.nulls(count, pa.string())
            if split is None
            else pa.array([str(name) for name in split], pa.string()),
        },
        schema=schemas.PAIRS,
    )


# Utility: measurements to labels, each against the baseline of its helped example.

#: Labels written at a time: a row group, however small the parts that they are read from.
LABELS_HELD = ROW_GROUP_ROWS

UtilityFunction = Callable[[float | None, float], float]


class UtilityStage(Stage):
    """Write ``labels``: raw signed utilities, in the order of the pairs.

    Memory: one baseline a helped example, and some tens of thousands of labels at a time.
    """

    name: ClassVar[str] = "utility"
    unit: ClassVar[str] = "passes"

    def __init__(
        self,
        measurements: StageOutput,
        utility: UtilityFunction,
        teacher: str,
        *,
        needs_baseline: bool,
    ) -> None:
        """Use the teacher's own utility function."""
        self._measurements, self._utility, self._teacher = measurements, utility, teacher
        self._needs_baseline = needs_baseline

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Labels."""
        return {"labels": schemas.LABELS}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The measurements."""
        return {"measurements": self._measurements}

    def settings(self) -> dict[str, Any]:
        """Whose utility, and whether it is taken against a baseline."""
        return {"teacher": self._teacher, "needs_baseline": self._needs_baseline}

    def num_items(self) -> int:
        """One pass."""
        return 1

    def make_worker(self) -> Worker:
        """Return the join."""

        def join(shard: Shard, sink: Sink) -> None:
            baselines = self._read_baselines()
            held: list[dict[str, Any]] = []
            for row in self._rows():
                label = None if row["split"] is None else self._label(row, baselines, sink)
                if label is not None:
                    held.append(label)
                if len(held) == LABELS_HELD:
                    sink.write_rows("labels", held, schemas.LABELS)
                    held = []
            sink.write_rows("labels", held, schemas.LABELS)

        return join

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the measurements one by one, in the order of the pairs."""
        for batch in self._measurements.iter_batches("measurements"):
            yield from batch.to_pylist()

    def _read_baselines(self) -> dict[tuple[str, int], float]:
        """Return what each helped example measured alone, by block and row."""
        found: dict[tuple[str, int], float] = {}
        columns = ["block", "helped_index", "split", "value"]
        for batch in self._measurements.iter_batches("measurements", columns):
            for row in batch.filter(pc.is_null(batch.column("split"))).to_pylist():
                found[row["block"], row["helped_index"]] = row["value"]
        return found

    def _label(
        self, row: Mapping[str, Any], baselines: Mapping[tuple[str, int], float], sink: Sink
    ) -> dict[str, Any] | None:
        """Return the label of a measurement, or None after an error row for a lost baseline."""
        baseline = baselines.get((row["block"], row["helped_index"]))
        if self._needs_baseline and baseline is None:
            sink.error(
                "no_baseline",
                f"{row['block']} row {row['helped_index']}: the measurement without an example "
                "failed, so its pairs have no utility",
            )
            return None
        utility = self._utility(baseline, row["value"])
        if not np.isfinite(utility):
            raise StageError(
                f"teacher {self._teacher}: utility {utility} is not finite: {dict(row)}"
            )
        kept = {name: row[name] for name in ("block", "helped_index", "helper_index", "split")}
        return kept | {"utility": utility}
