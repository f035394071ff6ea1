"""The test sets: read as a corpus is, and held out from what models are taught with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nncift_ray.config import PoolConfig
from nncift_ray.core.evaluation.drawing import draw_test_rows
from nncift_ray.errors import NnciftError
from nncift_ray.pipeline.blueprint import PoolUse
from nncift_ray.pipeline.evaluation.workbench import Workbench
from nncift_ray.stages.corpus.hold_out import HoldOutStage
from nncift_ray.stages.corpus.ingest import DeduplicateStage, IngestStage, find_sources
from nncift_ray.storage.output import StageOutput
from nncift_ray.storage.rows import ReadLimits


@dataclass(frozen=True)
class TestSet:
    """Rows that models are tested on."""

    __test__ = False  # pytest collects no class that is named like this

    name: str
    output: StageOutput  # of the hold_out stage: tables targets and left_out

    @property
    def num_rows(self) -> int:
        """Rows that models are tested on."""
        return self.output.num_rows("targets")

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The rows' ids."""
        column = self.output.read("targets", ["example_id"])["example_id"]
        return np.asarray(column.to_pylist(), dtype=np.str_)

    def rows(self, max_rows: int | None, seed: int) -> NDArray[np.int64]:
        """Return the rows that are asked where at most ``max_rows`` are."""
        return draw_test_rows(self.num_rows, max_rows, seed)

    def notices(self) -> list[str]:
        """Say what of the test set is also in the corpus, and what was done about it."""
        facts = self.output.manifest.facts()
        same, alike = facts["num_same_example"], facts["num_same_prompt"]
        lines: list[str] = []
        if same or alike:
            lines.append(
                f"test set '{self.name}': {same + alike:,} of its {self.num_rows + same + alike:,} "
                f"rows are left out: {same:,} are candidates, {alike:,} more have a candidate's "
                "prompt (evaluation/left_out.csv)"
            )
        if facts["num_among_targets"]:
            lines.append(
                f"test set '{self.name}': {facts['num_among_targets']:,} of its "
                f"{self.num_rows:,} rows are also targets, or have a target's prompt. They stay, "
                "but methods that use targets have seen them: better test on others"
            )
        return lines


def prepare_test(
    bench: Workbench, name: str, patterns: Sequence[str], examples: StageOutput
) -> TestSet:
    """Read a test set and leave out what is among the candidates.

    Args:
        bench: Where it is done.
        name: Of the test set.
        patterns: Its files.
        examples: The deduplicated corpus.

    Raises:
        NnciftError: If it cannot be read, or no row is left; naming the test set.
    """
    data, alone = bench.config.data, PoolUse(PoolConfig())
    try:
        ingest = IngestStage(
            find_sources((), patterns),
            layout=None if data.layout == "auto" else data.layout,
            columns=data.columns,
            limits=ReadLimits(max_chars=data.max_chars),
            max_failed_fraction=data.max_failed_fraction,
        )
        rows = bench.bring(DeduplicateStage(bench.bring(ingest, alone)), alone)
        output = bench.bring(HoldOutStage(rows, examples, name), alone)
    except NnciftError as error:
        raise type(error)(f"evaluation.tests.{name}: {error}") from error
    return TestSet(name, output)
