"""What stages read of the sampled examples: their texts, and the gradients taken of them.

Suffixes: C checkpoints of the warm-up, N rows, P projected dimensions.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from nncift_ray.corpus.examples import Example
from nncift_ray.errors import DataError, StorageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import StageManifest, StageOutput, column_matrix

# pyarrow's stubs leave many type arguments open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false


HELPED, HELPER = "helped", "helper"
#: Rows that are written, and so can be read, together.
GRADIENT_BLOCK_ROWS = 32
DEFAULT_CACHE_BYTES = 512 * 1024**2
_TABLE_PREFIX = "checkpoint_"

ExampleKey = tuple[str, int]  # role and row index


class GradientKey(NamedTuple):
    """Names a gradient: the example, and the side of a pair it stands on."""

    side: str  # HELPED (the plain gradient) or HELPER (Adam's next step)
    role: str
    row_index: int

    @property
    def example(self) -> ExampleKey:
        """Whose gradient it is."""
        return self.role, self.row_index


def load_sampled_examples(sample: StageOutput) -> dict[ExampleKey, Example]:
    """Read the texts of the sample stage's examples."""
    table = sample.read("sampled_examples", schema=schemas.SAMPLED_EXAMPLES)
    return {
        (row["role"], row["row_index"]): Example(row["example_id"], row["prompt"], row["response"])
        for row in table.to_pylist()
    }


def gradient_table(checkpoint: int) -> str:
    """Name the table of a checkpoint's gradients."""
    return f"{_TABLE_PREFIX}{checkpoint}"


def checkpoint_of_table(table: str) -> int:
    """Return the checkpoint whose gradients a table holds."""
    return int(table.removeprefix(_TABLE_PREFIX))


class GradientReader:
    """Finds gradients in the gradients stage's output, with a bounded part of them in memory.

    A label group names the same helped examples over and over, so the blocks read last are kept.
    """

    def __init__(
        self, gradients: StageOutput, *, max_cached_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        """Read which gradients there are; the vectors are read when they are asked for.

        Raises:
            StorageError: If the checkpoints' tables do not name the same examples.
        """
        self._gradients, self._max_cached_bytes = gradients, max_cached_bytes
        self._tables = _gradient_tables(gradients.manifest)
        self._blocks: OrderedDict[int, npt.NDArray[np.float32]] = OrderedDict()
        self._position_of = self._find_done()

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints that every gradient was taken at."""
        return len(self._tables)

    def vectors(self, keys: Iterable[GradientKey]) -> dict[GradientKey, npt.NDArray[np.float32]]:
        """Return the projected gradients [C, P] of those keys that are done at all checkpoints.

        Memory: 4 * C * P bytes a key, and blocks of at most ``max_cached_bytes`` in all (or one).
        """
        wanted = {key: self._position_of[key] for key in keys if key in self._position_of}
        found: dict[GradientKey, npt.NDArray[np.float32]] = {}
        for key, position in sorted(wanted.items(), key=lambda item: item[1]):
            block, row = divmod(position, GRADIENT_BLOCK_ROWS)
            # A copy: a view would keep its whole block in memory.
            found[key] = self._load_block(block)[:, row].copy()
        return found

    def _find_done(self) -> dict[GradientKey, int]:
        """Return, for each gradient done at all checkpoints, its place in their tables."""
        keys: list[GradientKey] = []
        done_N: npt.NDArray[np.bool_] | None = None
        for name in self._tables:
            table = self._gradients.read(name, ["side", "role", "row_index", "done"])
            columns = [table[column].to_pylist() for column in GradientKey._fields]
            named = [GradientKey(*row) for row in zip(*columns, strict=True)]
            done_here_N = np.array(table["done"].to_pylist(), dtype=bool)
            if done_N is not None and named != keys:
                raise StorageError(
                    f"{self._gradients.folder}: '{name}' and '{self._tables[0]}' do not name the "
                    "same examples. Delete the folder and run again."
                )
            keys, done_N = named, done_here_N if done_N is None else done_N & done_here_N
        return {} if done_N is None else {keys[at]: at for at in np.flatnonzero(done_N).tolist()}

    def _load_block(self, block: int) -> npt.NDArray[np.float32]:
        """Return a block of rows [C, N, P], zeros where one is not done; from memory if there."""
        if block in self._blocks:
            self._blocks.move_to_end(block)
            return self._blocks[block]
        loaded_CNP = self._read_block(block)
        room = max(1, self._max_cached_bytes // loaded_CNP.nbytes)
        while len(self._blocks) >= room:
            self._blocks.popitem(last=False)
        self._blocks[block] = loaded_CNP
        return loaded_CNP

    def _read_block(self, block: int) -> npt.NDArray[np.float32]:
        start = block * GRADIENT_BLOCK_ROWS
        matrices: list[npt.NDArray[np.float32]] = []
        for name in self._tables:
            stop = min(start + GRADIENT_BLOCK_ROWS, self._gradients.num_rows(name))
            table = self._gradients.read_range(name, start, stop, ["done", "feature"])
            done_N = np.array(table["done"].to_pylist(), dtype=bool)
            features = column_matrix(table.filter(table["done"])["feature"])
            matrix_NP = np.zeros((len(done_N), features.shape[1]), np.float32)
            matrix_NP[done_N] = features
            matrices.append(matrix_NP)
        return np.stack(matrices)


def _gradient_tables(manifest: StageManifest) -> list[str]:
    """Return the tables of gradients, in the order of their checkpoints."""
    tables = {part.table for shard in manifest.shards for part in shard.parts}
    return sorted(
        (name for name in tables if name.startswith(_TABLE_PREFIX)), key=checkpoint_of_table
    )


# Which group each candidate is of: its source file, or the value of a field of its record.

NO_GROUP = "(none)"  # of a record that has no such field


def iter_groups(examples: StageOutput, field: str | None) -> Iterator[str]:
    """Yield the group of every candidate in row order.

    Args:
        examples: Of the deduplicate stage.
        field: Field of the original record; None: the name of the source file.
    """
    column = "source" if field is None else "record"
    for batch in examples.iter_batches("candidates", [column]):
        for value in cast("list[str]", batch.column(0).to_pylist()):
            yield value.rsplit("/", 1)[-1] if field is None else _field_of(value, field)


def _field_of(record: str, field: str) -> str:
    parsed: object = json.loads(record)
    found = cast("dict[str, Any]", parsed).get(field) if isinstance(parsed, dict) else None
    return NO_GROUP if found is None else str(found)


# Which subtask each target belongs to: the value of a field of its original record.

MAX_SUBTASKS = 1000  # each costs a sum for every candidate and shard; an id as key would have all
FIELDS_NAMED = 10  # of a record, in a message


@dataclass(frozen=True, slots=True, eq=False)
class Subtasks:
    """Names of the subtasks, sorted, and which of them each target is of [I]."""

    names: tuple[str | None, ...]  # (None,) where all targets are one
    group_I: npt.NDArray[np.int64]

    @classmethod
    def one(cls, num_rows: int) -> Subtasks:
        """Return one subtask without a name, for all rows."""
        return cls((None,), np.zeros(num_rows, np.int64))


def read_subtasks(examples: StageOutput, key: str) -> Subtasks:
    """Read the subtask of every target from the field ``key`` of its original record.

    Raises:
        DataError: If a target has no such field, or there are too many subtasks to be any.
    """
    values = list(_values(examples, key))
    names = sorted(set(values))
    if len(names) > MAX_SUBTASKS:
        raise DataError(
            f"data.subtask_by: the field '{key}' has {len(names):,} values in {len(values):,} "
            f"targets, more than {MAX_SUBTASKS:,}: name a field that says which part of the target "
            "a row belongs to"
        )
    place = {name: at for at, name in enumerate(names)}
    return Subtasks(tuple(names), np.array([place[value] for value in values], np.int64))


def _values(examples: StageOutput, key: str) -> Iterator[str]:
    row = 0
    for batch in examples.iter_batches("targets", ["record", "source", "line"]):
        for target in batch.to_pylist():
            record = json.loads(target["record"])
            fields = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
            value = fields.get(key)
            if value is None:
                known = ", ".join(list(fields)[:FIELDS_NAMED]) or "none"
                raise DataError(
                    f"data.subtask_by: target {row} ({target['source']}:{target['line']}) has no "
                    f"field '{key}'; its fields are {known}. Name a field that every target has, "
                    "or leave data.subtask_by out."
                )
            yield value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            row += 1
