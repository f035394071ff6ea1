"""Sample: draw what the teacher labels, and group it so that an engine can share work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.core.sampling import PairSample, SampleDesign, draw_block
from nncift_ray.errors import DataError
from nncift_ray.stages.stage import Shard, Stage, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.output import Sink, StageOutput
from nncift_ray.storage.schemas import CANDIDATE, TARGET, WITHIN

#: Requests of one group at most: what an engine is handed at a time, and no more.
MAX_GROUP_PAIRS = 512
BASELINE_GROUP_ROWS = 64
SAMPLE_COLUMNS = ["row_index", "example_id", "prompt", "response"]


class SampleStage(Stage):
    """Write ``pairs`` (groups of one helper each) and the texts of the ``sampled_examples``."""

    name: ClassVar[str] = "sample"
    unit: ClassVar[str] = "draws"

    def __init__(
        self,
        examples: StageOutput,
        designs: Mapping[str, SampleDesign],
        *,
        needs_baseline: bool,
    ) -> None:
        """Draw for each block ("within", "cross") by its design."""
        self._examples, self._designs = examples, dict(designs)
        self._needs_baseline = needs_baseline
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
        """The design of the sample."""
        return {
            "designs": {
                block: dataclasses.asdict(design) for block, design in self._designs.items()
            },
            "needs_baseline": self._needs_baseline,
            "max_group_pairs": MAX_GROUP_PAIRS,
            "baseline_group_rows": BASELINE_GROUP_ROWS,
        }

    def num_items(self) -> int:
        """One draw."""
        return 1

    def make_worker(self) -> Worker:
        """Return the draw."""

        def draw(shard: Shard, sink: Sink) -> None:
            samples = {block: self._draw_block(block) for block in self._designs}
            sink.write("pairs", group_pairs(samples, needs_baseline=self._needs_baseline))
            for role, rows in sampled_rows(samples).items():
                texts = self._examples.take_rows(f"{role}s", rows, SAMPLE_COLUMNS)
                column = pa.array([role] * texts.num_rows, pa.string())
                named = texts.add_column(0, schemas.SAMPLED_EXAMPLES.field("role"), column)
                sink.write("sampled_examples", named.cast(schemas.SAMPLED_EXAMPLES))

        return draw

    def _draw_block(self, block: str) -> PairSample:
        num_columns = self._examples.num_rows("candidates")
        num_rows = num_columns if block == WITHIN else self._examples.num_rows("targets")
        try:
            return draw_block(num_rows, num_columns, block == WITHIN, self._designs[block])
        except ValueError as error:
            raise DataError(
                f"no label sample of {num_rows} x {num_columns} examples ({block}): {error}"
            ) from error


def helped_role(block: str) -> str:
    """Return the role of the rows of a block."""
    return CANDIDATE if block == WITHIN else TARGET


def sampled_rows(samples: Mapping[str, PairSample]) -> dict[str, np.ndarray]:
    """Return, by role, the sorted row indices that any pair names."""
    named: dict[str, list[np.ndarray]] = {}
    for block, sample in samples.items():
        named.setdefault(helped_role(block), []).append(sample.helped)
        named.setdefault(CANDIDATE, []).append(sample.helper)
    return {role: np.unique(np.concatenate(rows)) for role, rows in sorted(named.items())}


def group_pairs(samples: Mapping[str, PairSample], *, needs_baseline: bool) -> pa.Table:
    """Lay the requests out in groups: baselines first, then each block's pairs by helper.

    A group is what an engine is given at once. All pairs of a group share their helper, so its text
    is computed once; a long run of one helper is cut so that no group grows without bound.
    """
    tables: list[pa.Table] = []
    next_group = 0
    if needs_baseline:
        for block, sample in samples.items():
            helped = np.unique(sample.helped)
            groups = next_group + np.arange(len(helped)) // BASELINE_GROUP_ROWS
            tables.append(_pair_table(groups, block, helped, None, None))
            next_group = int(groups[-1]) + 1
    for block, sample in samples.items():
        order = np.lexsort((sample.helped, sample.helper))
        helped, helper = sample.helped[order], sample.helper[order]
        groups = next_group + _group_numbers(helper)
        split = np.asarray(sample.split)[order]
        tables.append(_pair_table(groups, block, helped, helper, split))
        next_group = int(groups[-1]) + 1
    return pa.concat_tables(tables)


def _group_numbers(helper: np.ndarray) -> np.ndarray:
    """Number runs of equal helpers from 0, cutting runs longer than ``MAX_GROUP_PAIRS``."""
    starts = np.flatnonzero(np.r_[True, helper[1:] != helper[:-1]])
    run = np.repeat(starts, np.diff(np.r_[starts, len(helper)]))
    opens = (np.arange(len(helper)) - run) % MAX_GROUP_PAIRS == 0
    return np.cumsum(opens) - 1


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
