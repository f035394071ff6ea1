"""The examples that held-out questions are shown with: what the retrieve stage found, as texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nncift_ray.core.examples import Example
from nncift_ray.storage.output import StageOutput

EXAMPLE_COLUMNS = ["example_id", "prompt", "response"]


@dataclass(frozen=True)
class ShownExamples:
    """Where the examples of every question are."""

    contexts: StageOutput  # of the retrieve stage
    candidates: StageOutput  # of the deduplicate stage

    def load(self, rows: NDArray[np.int64]) -> dict[int, list[Example]]:
        """Read the examples of some rows of the test set, nearest first.

        Rows that the retrieve stage has no examples for are left out.

        Memory: the texts that are shown with these rows, each once.
        """
        wanted = set(rows.tolist())
        columns = ["row_index", "example_index"]
        found: dict[int, list[int]] = {
            row["row_index"]: row["example_index"]
            for batch in self.contexts.iter_batches("contexts", columns)
            for row in batch.to_pylist()
            if row["row_index"] in wanted
        }
        shown = np.unique([index for indices in found.values() for index in indices])
        examples: dict[int, Example] = {}
        if shown.size:
            table = self.candidates.take_rows("candidates", shown, EXAMPLE_COLUMNS)
            for index, row in zip(shown.tolist(), table.to_pylist(), strict=True):
                examples[index] = Example(**row)
        return {row: [examples[index] for index in indices] for row, indices in found.items()}
