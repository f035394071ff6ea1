"""Test sets: read as a corpus is, and held out from the candidates that models are taught with.

A model taught with a question, or with its answer, would be tested on what it was shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nncift_ray.corpus.examples import normalise_text
from nncift_ray.errors import DataError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.step import Shard, Stage, Worker

LEFT_OUT, TEST_ROWS = "left_out", "targets"
SAME_EXAMPLE, SAME_PROMPT = "same_example", "same_prompt"
BATCH_ROWS = 4_096
TEST_STREAM = 32  # random stream of the draw of test rows, apart from those of training samples


def draw_test_rows(num_rows: int, max_rows: int | None, seed: int) -> NDArray[np.int64]:
    """Return sorted row numbers [min(num_rows, max_rows)], the same for whoever asks with a seed.

    Draws are nested: fewer rows are a subset of more, so that a larger study contains a smaller one
    and differences between methods stay paired.
    """
    if max_rows is None or max_rows >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    sequence = np.random.SeedSequence([seed, TEST_STREAM])
    order = np.random.Generator(np.random.PCG64(sequence)).permutation(num_rows)
    return np.sort(order[:max_rows]).astype(np.int64)


@dataclass(frozen=True)
class TestSet:
    """Rows that models are tested on."""

    __test__ = False  # pytest collects no class that is named like this

    name: str
    output: StageOutput  # of the hold_out stage: tables targets and left_out

    @cached_property
    def ids(self) -> NDArray[np.str_]:
        """The rows' ids."""
        column = self.output.read(TEST_ROWS, ["example_id"])["example_id"]
        return np.asarray(column.to_pylist(), dtype=np.str_)

    def notices(self) -> list[str]:
        """Say what of the test set is also in the corpus, and what was done about it."""
        facts, num_rows = self.output.manifest.facts(), self.output.num_rows(TEST_ROWS)
        same, alike = facts["num_same_example"], facts["num_same_prompt"]
        lines: list[str] = []
        if same or alike:
            lines.append(
                f"test set '{self.name}': {same + alike:,} of its {num_rows + same + alike:,} "
                f"rows are left out: {same:,} are candidates, {alike:,} more have a candidate's "
                "prompt (evaluation/left_out.csv)"
            )
        if facts["num_among_targets"]:
            lines.append(
                f"test set '{self.name}': {facts['num_among_targets']:,} of its {num_rows:,} rows "
                "are also targets, or have a target's prompt. They stay, but methods that use "
                "targets have seen them: better test on others"
            )
        return lines


class HoldOutStage(Stage):
    """Write the rows that a model is tested on (``targets``) and those that it is not.

    Left out is a row that is a candidate, and one whose prompt is a candidate's: the same words,
    whatever their case and the white space between them. Rows that also are targets, which steer a
    selection but teach no model, stay and are counted.

    Memory: 16 bytes a test row; candidates are streamed.
    """

    name: ClassVar[str] = "hold_out"
    title: ClassVar[str] = "leave out test rows that are candidates"

    def __init__(self, tests: StageOutput, examples: StageOutput, test_name: str) -> None:
        """Hold out the ``targets`` of a test set from the ``candidates`` of the corpus.

        Both are deduplicated; the name is for messages.
        """
        self._tests, self._examples, self._test_name = tests, examples, test_name

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """``targets``, numbered from 0, and ``left_out``."""
        return {TEST_ROWS: schemas.EXAMPLES, LEFT_OUT: schemas.LEFT_OUT}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The test set and the corpus."""
        return {"tests": self._tests, "examples": self._examples}

    def settings(self) -> dict[str, Any]:
        """Nothing can be set."""
        return {}

    def num_items(self) -> int:
        """One: numbering is sequential."""
        return 1

    def item_weight(self, start: int, stop: int) -> int:
        """All test rows."""
        return self._tests.num_rows(TEST_ROWS) if stop > start else 0

    def make_worker(self) -> Worker:
        """Return what compares the two."""
        return self._hold_out

    def _hold_out(self, shard: Shard, sink: Sink) -> None:
        rows = list(_rows(self._tests, TEST_ROWS, schemas.EXAMPLES.names))
        seen_ids, seen_prompts = self._find(rows, "candidates")
        kept: list[dict[str, Any]] = []
        left_out: list[dict[str, Any]] = []
        for row in rows:
            reason = SAME_EXAMPLE if row["example_id"] in seen_ids else SAME_PROMPT
            if row["example_id"] in seen_ids or prompt_key(row["prompt"]) in seen_prompts:
                names = ("example_id", "source", "line")
                left_out.append({name: row[name] for name in names} | {"reason": reason})
            else:
                kept.append(row | {"row_index": len(kept)})
        if not kept:
            raise DataError(
                f"evaluation.tests.{self._test_name}: each of its {len(rows):,} rows is among the "
                "candidates, or has a candidate's prompt; give rows that were held out"
            )
        sink.write_rows(TEST_ROWS, kept, schemas.EXAMPLES)
        sink.write_rows(LEFT_OUT, left_out, schemas.LEFT_OUT)
        target_ids, target_prompts = self._find(kept, "targets")
        sink.facts.update(
            num_same_example=sum(row["reason"] == SAME_EXAMPLE for row in left_out),
            num_same_prompt=sum(row["reason"] == SAME_PROMPT for row in left_out),
            num_among_targets=sum(
                row["example_id"] in target_ids or prompt_key(row["prompt"]) in target_prompts
                for row in kept
            ),
        )

    def _find(self, rows: list[dict[str, Any]], table: str) -> tuple[set[str], set[bytes]]:
        """Return which ids and which prompts of some rows a table of the corpus has."""
        ids = {row["example_id"] for row in rows}
        prompts = {prompt_key(row["prompt"]) for row in rows}
        found_ids: set[str] = set()
        found_prompts: set[bytes] = set()
        for row in _rows(self._examples, table, ["example_id", "prompt"]):
            if row["example_id"] in ids:
                found_ids.add(row["example_id"])
            if (key := prompt_key(row["prompt"])) in prompts:
                found_prompts.add(key)
        return found_ids, found_prompts


def prompt_key(prompt: str) -> bytes:
    """Return what two prompts of the same words have in common: 16 bytes."""
    words = " ".join(normalise_text(prompt).casefold().split())
    return hashlib.sha256(words.encode("utf-8", errors="surrogatepass")).digest()[:16]


def _rows(output: StageOutput, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in output.iter_batches(table, columns, batch_rows=BATCH_ROWS):
        yield from cast("list[dict[str, Any]]", batch.to_pylist())
