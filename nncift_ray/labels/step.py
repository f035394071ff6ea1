"""Label: draw a sample of pairs, ask the teacher for each, make labels of what it measured."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Example, ExampleKey, load_examples
from nncift_ray.errors import ConfigError, DataError, StageError
from nncift_ray.labels.sample import (
    PairSample,
    SampleDesign,
    design_of_scores,
    draw_block,
    draw_points,
)
from nncift_ray.recipe.sections import Config
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ROW_GROUP_ROWS, Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CANDIDATE, CROSS, POINTS, TARGET, WITHIN, helped_role
from nncift_ray.runtime.step import KILLED_WORKER, Shard, Stage, Worker, present
from nncift_ray.teachers.base import (
    LabelRequest,
    Measurement,
    MeasurementFailure,
    Teacher,
    needs_gpu,
)
from nncift_ray.teachers.less import HELPED, HELPER, GradientKey, GradientReader

#: Held-out pairs of each quadrant where the recipe gives none: one in so many labels, bounded.
#: Points have one quadrant where pairs have four.
HOLDOUT_SHARE = {WITHIN: 20, CROSS: 20, POINTS: 5}
MAX_HOLDOUT_PAIRS = 500


def label_designs(
    config: Config,
    blocks: Sequence[str],
    num_candidates: int,
    num_targets: int,
    *,
    compares_picks: bool = False,
) -> dict[str, SampleDesign]:
    """Return the design of each block's label sample, for a corpus of this size.

    ``compares_picks`` says whether the objective reads what every two candidates do for each other.

    A fraction that would come to more than ``labels.max_pairs`` is cut to that; a number of pairs
    that the recipe gives is not. Where the labels themselves are the scores, all there is is
    labelled, or whole rows up to that number.

    Raises:
        ConfigError: If so few labels leave candidates, or an objective, without what they need.
    """
    rows = {WITHIN: num_candidates, POINTS: num_candidates, CROSS: num_targets}
    if config.pair_scores.by == "teacher":
        return {
            block: _design_of_scores(
                config, block, rows[block], num_candidates, compares_picks=compares_picks
            )
            for block in blocks
        }
    return {
        block: _design_of_training(config, block, rows[block], num_candidates) for block in blocks
    }


def _design_of_training(
    config: Config, block: str, num_rows: int, num_candidates: int
) -> SampleDesign:
    """Return the design of the labels that a network learns from."""
    labels = config.labels
    if block == POINTS:
        wanted = round(num_rows * labels.fraction)
    else:
        wanted = int(num_rows * num_candidates * labels.fraction**2)
    pairs = labels.label_pairs or min(wanted, labels.max_pairs)
    default_holdout = min(MAX_HOLDOUT_PAIRS, max(1, pairs // HOLDOUT_SHARE[block]))
    holdout = labels.holdout_pairs
    return SampleDesign(
        label_fraction=labels.fraction,
        label_pairs=pairs if labels.label_pairs or wanted > pairs else None,
        holdout_pairs_per_quadrant=default_holdout if holdout is None else holdout,
        validation_fraction=labels.validation_fraction,
        seed=labels.seed,
    )


def _design_of_scores(
    config: Config, block: str, num_rows: int, num_candidates: int, *, compares_picks: bool
) -> SampleDesign:
    """Return the design of the labels that are the scores: all of them, or whole rows."""
    labels = config.labels
    key = "labels.label_pairs" if labels.label_pairs else "labels.max_pairs"
    most = labels.label_pairs or labels.max_pairs
    try:
        design = design_of_scores(
            num_rows,
            None if block == POINTS else num_candidates - (block == WITHIN),
            most,
            validation_fraction=labels.validation_fraction,
            seed=labels.seed,
        )
    except ValueError as error:
        raise ConfigError(
            f"{key} = {most:,}, block '{block}': with pair_scores.by teacher {error}. Raise {key}, "
            "or set pair_scores.by to network, which needs no label of every candidate."
        ) from error
    if design.whole_rows and block == WITHIN and compares_picks:
        raise ConfigError(
            f"selection.objective: {config.objective} reads what every two candidates do for each "
            f"other, {num_rows * (num_rows - 1):,} pairs, and {key} = {most:,} allows fewer "
            f"labels: raise {key}, set pair_scores.by to network, or take facility_location"
        )
    return design


DEFAULT_GROUP_PAIRS = 256
DEFAULT_SHARD_PAIRS = 256

#: What to ask the teacher, in groups that an engine is handed at once, neighbours sharing a helper.
REQUESTS = pa.schema(
    [
        pa.field("group", pa.int32(), nullable=False),
        pa.field("block", pa.string(), nullable=False),
        pa.field("helped_index", pa.int64(), nullable=False),
        # Null for the helped example alone: a baseline, or a point.
        pa.field("helper_index", pa.int64()),
        # train | validation | Q1 | Q2 | Q3 | Q4 (points: no Q1..Q3), null for baselines.
        pa.field("split", pa.string()),
    ]
)
PAIR_COLUMNS = ("block", "helped_index", "helper_index", "split")


# What is asked.


@dataclass(frozen=True)
class LabelSample:
    """The requests of a corpus: a pure function of its size and the designs with their seeds.

    So it is never stored: every process that needs it draws it.
    """

    examples: StageOutput  # deduplicated
    designs: Mapping[str, SampleDesign]
    """By block: "within" and "cross" of a pairwise teacher, "points" of a pointwise one."""
    needs_baseline: bool  # measure every helped example alone, too
    group_pairs: int = DEFAULT_GROUP_PAIRS
    """Most requests of an engine call. Rounding may depend on it."""

    @functools.cached_property
    def requests(self) -> pa.Table:
        """All requests, by group (REQUESTS).

        Raises:
            DataError: If a block has no pair.
        """
        num_columns = self.examples.num_rows("candidates")
        samples: dict[str, PairSample] = {}
        for block, design in self.designs.items():
            num_rows = self.examples.num_rows(f"{helped_role(block)}s")
            samples[block] = draw_sample(block, num_rows, num_columns, design)
        return group_requests(samples, self.group_pairs, needs_baseline=self.needs_baseline)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the requests drawn."""
        return LabelSample, (self.examples, self.designs, self.needs_baseline, self.group_pairs)

    def settings(self) -> dict[str, Any]:
        """Everything the requests depend on but the corpus."""
        return {
            "designs": {block: asdict(design) for block, design in self.designs.items()},
            "needs_baseline": self.needs_baseline,
            "group_pairs": self.group_pairs,
        }

    def load_examples(self) -> dict[ExampleKey, Example]:
        """Read the texts of all examples that a request names."""
        keys = {(key.role, key.row_index) for key in list_gradients(self.requests)}
        return load_examples(self.examples, keys)

    def count_asked(self) -> dict[str, dict[str, int]]:
        """Return by block how many rows are asked about, and with how many pairs (or points)."""
        asked = self.requests.filter(pc.is_valid(self.requests["split"]))
        counts: dict[str, dict[str, int]] = {}
        for block in self.designs:
            helped = asked.filter(pc.equal(asked["block"], pa.scalar(block)))["helped_index"]
            counts[block] = {"num_rows": len(helped.unique()), "num_pairs": len(helped)}
        return counts


def draw_sample(block: str, num_rows: int, num_columns: int, design: SampleDesign) -> PairSample:
    """Draw the pairs (or points) of a block.

    Raises:
        DataError: If there is none to draw.
    """
    try:
        if block == POINTS:
            return draw_points(num_rows, design)
        return draw_block(num_rows, num_columns, block == WITHIN, design)
    except ValueError as error:
        size = f"{num_rows}" if block == POINTS else f"{num_rows} x {num_columns}"
        raise DataError(f"no label sample of {size} examples ({block}): {error}") from error


def group_requests(
    samples: Mapping[str, PairSample], group_pairs: int, *, needs_baseline: bool
) -> pa.Table:
    """Return the requests in groups (REQUESTS): baselines first, then each block's pairs by helper.

    A group is what an engine is given at once, of one block and at most ``group_pairs`` requests.
    Neighbours share their helper, whose text is computed once: a group holds the whole runs of as
    many helpers as fit, and only a run that no group could hold is cut.
    """
    tables: list[pa.Table] = []
    next_group = 0

    def add(block: str, helped: np.ndarray, helper: np.ndarray | None, split: list[Any]) -> None:
        nonlocal next_group
        groups = next_group + _group_numbers(_run_lengths(len(helped), helper), group_pairs)
        next_group = int(groups[-1]) + 1
        missing = pa.nulls(len(helped), pa.int64())
        tables.append(
            pa.table(
                {
                    "group": pa.array(groups, pa.int32()),
                    "block": pa.array([block] * len(helped), pa.string()),
                    "helped_index": pa.array(helped, pa.int64()),
                    "helper_index": missing if helper is None else pa.array(helper, pa.int64()),
                    "split": pa.array(split, pa.string()),
                },
                schema=REQUESTS,
            )
        )

    for block, sample in samples.items() if needs_baseline else ():
        helped = np.unique(sample.helped)
        add(block, helped, None, [None] * len(helped))
    for block, sample in samples.items():
        add(block, sample.helped, sample.helper, sample.split.tolist())
    return pa.concat_tables(tables)


def _run_lengths(count: int, helper: np.ndarray | None) -> np.ndarray:
    """Return how many neighbours share their helper, run by run; one each where there is none."""
    if helper is None:
        return np.ones(count, np.int64)
    starts = np.flatnonzero(np.r_[True, helper[1:] != helper[:-1]])
    return np.diff(np.r_[starts, count])


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


def list_gradients(requests: pa.Table) -> list[GradientKey]:
    """Return which gradients the requests need, each once, by side, role and row."""
    crossing = pc.equal(requests["block"], pa.scalar(CROSS))
    rows_of = {
        (HELPED, CANDIDATE): requests.filter(pc.invert(crossing))["helped_index"],
        (HELPED, TARGET): requests.filter(crossing)["helped_index"],
        (HELPER, CANDIDATE): requests["helper_index"].drop_null(),
    }
    return [
        GradientKey(side, role, int(row))
        for (side, role), rows in rows_of.items()
        for row in np.unique(rows.to_numpy())
    ]


# Asking, a group at a time.


class LabelStage(Stage):
    """Write ``measurements`` of every pair and baseline, and from all of them ``labels``.

    Labels are raw signed utilities, in the order of the pairs. They are made when all measurements
    are there, for a pair's baseline is measured in another group.
    """

    name: ClassVar[str] = "label"
    title: ClassVar[str] = "ask the teacher for labels"
    produces = {"measurements": schemas.MEASUREMENTS, "labels": schemas.LABELS}
    version: ClassVar[int] = 3
    unit: ClassVar[str] = "requests"
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"
    divisible: ClassVar[bool] = True
    memory_advice: ClassVar[str] = (
        "lower teacher.batch_tokens, teacher.max_length or labels.group_pairs, set "
        "teacher.kv_cache_memory_bytes, or give fewer actors (labels.pool) more memory"
    )

    def __init__(
        self,
        sample: LabelSample,
        teacher_class: type[Teacher],
        make_teacher: Callable[[], Teacher],
        teacher_settings: Mapping[str, Any],
        *,
        embeddings: StageOutput | None = None,
        gradients: StageOutput | None = None,
        shard_pairs: int | None = None,
    ) -> None:
        """Label a sample; embeddings and gradients are given where the teacher reads them."""
        self._sample, self._teacher_class = sample, teacher_class
        self._make_teacher, self._teacher_settings = make_teacher, dict(teacher_settings)
        self._embeddings, self._gradients = embeddings, gradients
        self._shard_pairs = shard_pairs or DEFAULT_SHARD_PAIRS
        self.can_use_gpu = needs_gpu(teacher_class)
        # A teacher that computes no model is done before a second actor has started.
        loads_model = teacher_class.needs_engine or self.can_use_gpu
        self.single_threaded, self.max_actors = not loads_model, None if loads_model else 1
        self.seed = next(iter(sample.designs.values())).seed
        self.inputs = present(
            examples=self._sample.examples, embeddings=embeddings, gradients=gradients
        )

    def settings(self) -> dict[str, Any]:
        """The sample, and the teacher with its model."""
        return {"sample": self._sample.settings(), "teacher": self._teacher_settings}

    @functools.cached_property
    def _group_starts(self) -> np.ndarray:
        """Where each group begins among the requests, and where the last one ends."""
        groups = self._sample.requests["group"].to_numpy()
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        return np.r_[starts, len(groups)].astype(np.int64)

    def num_items(self) -> int:
        """Groups."""
        return len(self._group_starts) - 1

    @property
    def shard_items(self) -> int:
        """Groups that make about ``shard_pairs`` requests."""
        return max(1, self._shard_pairs * self.num_items() // int(self._group_starts[-1]))

    def item_weight(self, start: int, stop: int) -> int:
        """Requests of some groups."""
        return int(self._group_starts[stop] - self._group_starts[start])

    def row_numbers(self, start: int, stop: int) -> range:
        """Requests of some groups, by their place among all."""
        return range(int(self._group_starts[start]), int(self._group_starts[stop]))

    def _rows(self, numbers: range) -> list[dict[str, Any]]:
        return self._sample.requests.slice(numbers.start, len(numbers)).to_pylist()

    def rows_to_quarantine(self, poison: Sequence[int], rows: range) -> Mapping[int, str]:
        """Condemn what holds an example that killed alone, or as the helped one of two helpers."""
        helpers_of: defaultdict[ExampleKey, set[ExampleKey | None]] = defaultdict(set)
        for number in poison:
            helped, helper = example_keys(self._rows(range(number, number + 1))[0])
            helpers_of[helped].add(helper)
        guilty = {key for key, helpers in helpers_of.items() if None in helpers or len(helpers) > 1}
        if not guilty:
            return {}
        message = "other requests with the same example killed their worker; this was not tried"
        return {
            number: message
            for number, row in zip(rows, self._rows(rows), strict=True)
            if not guilty.isdisjoint(example_keys(row))
        }

    def make_worker(self) -> Worker:
        """Load the teacher and the sampled texts."""
        teacher, examples = self._make_teacher(), self._sample.load_examples()
        vectors = {} if self._embeddings is None else load_vectors(self._embeddings, examples)
        reader = None if self._gradients is None else GradientReader(self._gradients)

        def label_shard(shard: Shard, sink: Sink) -> None:
            for group in range(shard.start, shard.stop):
                numbers = shard.wanted(self.row_numbers(group, group + 1))
                rows = dict(zip(numbers, self._rows(numbers), strict=True))
                requests = dict(
                    zip(rows, make_requests(rows.values(), examples, vectors, reader), strict=True)
                )
                asked = [number for number in numbers if number not in shard.skip]
                answers: dict[int, Measurement | MeasurementFailure] = {
                    number: MeasurementFailure(KILLED_WORKER, shard.skip[number])
                    for number in shard.skip.keys() & rows.keys()
                }
                measured = teacher.measure([requests[number] for number in asked]) if asked else []
                answers |= zip(asked, measured, strict=True)
                _write_answers(rows, requests, answers, sink)

        return label_shard

    def finish(self, output: StageOutput, sink: Sink) -> None:
        """Write the labels, in the order of the pairs; memory: one baseline a helped example.

        Raises:
            StageError: If a utility is not finite.
        """
        baselines: dict[tuple[str, int], float] = {}
        if self._sample.needs_baseline:
            for batch in output.iter_batches("measurements", [*PAIR_COLUMNS, "value"]):
                for row in batch.filter(pc.is_null(batch.column("split"))).to_pylist():
                    baselines[row["block"], row["helped_index"]] = row["value"]
        held: list[dict[str, Any]] = []
        for batch in output.iter_batches("measurements", [*PAIR_COLUMNS, "value"]):
            pairs = batch.filter(pc.is_valid(batch.column("split"))).to_pylist()
            labels = (self._label(pair, baselines, sink) for pair in pairs)
            held += [label for label in labels if label is not None]
            if len(held) >= ROW_GROUP_ROWS:  # not one row group for each small shard
                sink.write_rows("labels", held, schemas.LABELS)
                held = []
        sink.write_rows("labels", held, schemas.LABELS)
        sink.facts["asked"] = self._sample.count_asked()

    def _label(
        self, row: Mapping[str, Any], baselines: Mapping[tuple[str, int], float], sink: Sink
    ) -> dict[str, Any] | None:
        """Return the label of a measurement, or None after an error row for a lost baseline."""
        baseline = baselines.get((row["block"], row["helped_index"]))
        if self._sample.needs_baseline and baseline is None:
            sink.error(
                "no_baseline",
                f"{row['block']} row {row['helped_index']}: the measurement without an example "
                "failed, so its pairs have no utility",
            )
            return None
        utility = self._teacher_class.utility(baseline, row["value"])
        if not np.isfinite(utility):
            teacher = self._teacher_class.__name__
            raise StageError(f"teacher {teacher}: utility {utility} is not finite: {dict(row)}")
        return {name: row[name] for name in PAIR_COLUMNS} | {"utility": utility}


def make_requests(
    rows: Iterable[Mapping[str, Any]],
    examples: Mapping[ExampleKey, Example],
    vectors: Mapping[ExampleKey, np.ndarray],
    reader: GradientReader | None,
) -> list[LabelRequest]:
    """Return the teacher's requests of some rows of REQUESTS, with what it reads of each."""
    keys = [example_keys(row) for row in rows]
    gradients: Mapping[GradientKey, np.ndarray] = {}
    if reader is not None:
        helped_keys = {GradientKey(HELPED, *helped) for helped, _ in keys}
        helper_keys = {GradientKey(HELPER, *helper) for _, helper in keys if helper}
        gradients = reader.vectors(helped_keys | helper_keys)
    return [
        LabelRequest(
            helped=examples[helped],
            helper=examples[helper] if helper else None,
            helped_embedding=vectors.get(helped),
            helper_embedding=vectors.get(helper) if helper else None,
            helped_gradients=gradients.get(GradientKey(HELPED, *helped)),
            helper_gradients=gradients.get(GradientKey(HELPER, *helper)) if helper else None,
        )
        for helped, helper in keys
    ]


def example_keys(row: Mapping[str, Any]) -> tuple[ExampleKey, ExampleKey | None]:
    """Return the helped and the helper example of a request."""
    helper = row["helper_index"]
    helped = (helped_role(row["block"]), row["helped_index"])
    return helped, None if helper is None else (CANDIDATE, helper)


def load_vectors(
    embeddings: StageOutput, examples: Mapping[ExampleKey, Example]
) -> dict[ExampleKey, np.ndarray]:
    """Read the embeddings of some examples, float32 [D] each."""
    vectors: dict[ExampleKey, np.ndarray] = {}
    for role in (CANDIDATE, TARGET):
        rows = np.array(sorted(row for kind, row in examples if kind == role), dtype=np.int64)
        if rows.size:
            table = embeddings.take_rows(f"{role}s", rows, ["embedding"])
            matrix = column_matrix(table["embedding"])
            vectors.update(((role, int(row)), matrix[at]) for at, row in enumerate(rows))
    return vectors


def _write_answers(
    rows: Mapping[int, Mapping[str, Any]],
    requests: Mapping[int, LabelRequest],
    answers: Mapping[int, Measurement | MeasurementFailure],
    sink: Sink,
) -> None:
    """Write measurements, and to the errors table the requests that have none."""
    measured: list[dict[str, Any]] = []
    for number, row in rows.items():
        answer, request = answers[number], requests[number]
        if isinstance(answer, MeasurementFailure):
            helper = request.helper.example_id if request.helper else "no example"
            sink.error(
                answer.reason,
                f"{answer.message} (with {helper} in context)",
                example_id=request.helped.example_id,
                excerpt=request.helped.prompt,
            )
        else:
            sink.count("tokens", answer.num_tokens)
            sink.count("cached_tokens", answer.num_cached_tokens)
            measured.append({name: row[name] for name in PAIR_COLUMNS} | asdict(answer))
    sink.write_rows("measurements", measured, schemas.MEASUREMENTS)
