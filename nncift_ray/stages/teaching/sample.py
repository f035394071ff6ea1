"""Sample: draw what the teacher labels, and group it so that an engine can share work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.network.sampling import PairSample, SampleDesign, draw_block, draw_points
from nncift_ray.errors import DataError
from nncift_ray.stages.driving.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CANDIDATE, POINTS, WITHIN, helped_role

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
