"""Reworded repeats: candidates that ask what another asks and have its answer; one may be picked.

A second wording of a question shares few runs of words with the first, and two questions of one
template share nearly all: no threshold on words tells them apart. An equal answer does. Where many
candidates have it ("yes", a class), the prompts must agree in all words but those that many of
these prompts hold, which are their templates.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nncift_ray.corpus.examples import split_words
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.step import Shard, Stage, Worker, present
from nncift_ray.selection.names import REPEATS
from nncift_ray.selection.tables import has_quality, read_quality

I64 = npt.NDArray[np.int64]
#: An answer that more candidates have says little about what was asked.
MAX_SHARERS = 10
#: Share of the prompts with a common answer from which a word is one of templates.
TEMPLATE_SHARE = 0.2
ROWS_AT_ONCE = 200_000  # whose vectors are in memory
_NUMBER = re.compile(r"\d+")


def answer_key(response: str) -> int:
    """Return what equal answers have in common, whatever their case, spaces and last point."""
    words = " ".join(response.casefold().split()).rstrip(".")
    digest = hashlib.blake2b(words.encode("utf-8", errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def prompt_numbers(prompt: str) -> tuple[str, ...]:
    """Return the numbers of a prompt, sorted: problems that differ in them are not the same."""
    return tuple(sorted(_NUMBER.findall(prompt)))


def group_sharers(key_J: npt.NDArray[np.uint64]) -> list[I64]:
    """Return the rows of each answer that several candidates have."""
    order = np.argsort(key_J, kind="stable")
    starts = np.flatnonzero(np.diff(key_J[order], prepend=key_J[order][:1] + np.uint64(1)))
    sizes = np.diff(starts, append=len(order))
    several = sizes > 1
    spans = zip(starts[several].tolist(), sizes[several].tolist(), strict=True)
    return [order[start : start + size] for start, size in spans]


def find_repeats(
    vector_MD: npt.NDArray[np.float32], numbers: list[tuple[str, ...]], min_cosine: float
) -> list[tuple[int, int, float]]:
    """Return (row, the row it repeats, cosine) among rows of one answer, the best row first.

    Each row stays unless one that stays has the same numbers and at least this cosine: no chains.
    """
    cosine_MM = vector_MD @ vector_MD.T
    kept: list[int] = []
    repeats: list[tuple[int, int, float]] = []
    for row in range(len(numbers)):
        same = [other for other in kept if numbers[other] == numbers[row]]
        nearest = max(same, key=lambda other: cosine_MM[row, other], default=None)
        if nearest is not None and cosine_MM[row, nearest] >= min_cosine:
            repeats.append((row, nearest, float(cosine_MM[row, nearest])))
        else:
            kept.append(row)
    return repeats


def rare_words(prompt: str, holders: Mapping[str, int], num_prompts: int) -> tuple[str, ...]:
    """Return the words of a prompt that few prompts of its answer hold, and all its numbers."""
    rare = {w for w in split_words(prompt) if holders[w] <= TEMPLATE_SHARE * num_prompts}
    return tuple(sorted(rare | set(prompt_numbers(prompt))))


class RepeatsStage(Stage):
    """Writes ``repeats``: candidates that may not be picked, and the one that may in their place.

    That is the one of highest quality where quality is known, else the first.

    Memory: 30 bytes a candidate, the vectors of ``ROWS_AT_ONCE``, and a count of each word of the
    prompts of common answers.
    """

    name: ClassVar[str] = REPEATS
    title: ClassVar[str] = "find reworded repeats"
    produces = {REPEATS: schemas.REPEATS}

    def __init__(
        self,
        examples: StageOutput,
        embeddings: StageOutput,
        min_cosine: float,
        profiles: StageOutput | None = None,
    ) -> None:
        """Compare the candidates' embeddings; ``profiles`` hold their quality."""
        self._examples, self._embeddings, self._min_cosine = examples, embeddings, min_cosine
        self._profiles = profiles if profiles is not None and has_quality(profiles) else None
        self.inputs = present(examples=examples, embeddings=embeddings, profiles=self._profiles)

    def settings(self) -> dict[str, Any]:
        """The least cosine."""
        return {"min_cosine": self._min_cosine}

    def notices(self, output: StageOutput) -> list[str]:
        """How many there are."""
        count = output.num_rows(REPEATS)
        if not count:
            return []
        return [
            f"{count:,} candidates repeat another in other words (the same answer, and a cosine "
            f"from {self._min_cosine:g}: selection.repeats) and cannot be picked beside it: "
            f"{output.folder / REPEATS}"
        ]

    def make_worker(self) -> Worker:
        """Return what finds the repeats."""
        return self._write

    def _write(self, shard: Shard, sink: Sink) -> None:
        groups = group_sharers(np.fromiter(self._column("response", answer_key), np.uint64))
        order_J = np.arange(self._examples.num_rows("candidates"))
        if self._profiles is not None:
            quality_J = read_quality(self._profiles, len(order_J))
            order_J[np.lexsort((order_J, -quality_J))] = np.arange(len(order_J))
        groups = [group[np.argsort(order_J[group])] for group in groups]
        self._write_common([group for group in groups if len(group) > MAX_SHARERS], sink)
        groups = [group for group in groups if len(group) <= MAX_SHARERS]
        at_once = ROWS_AT_ONCE // MAX_SHARERS
        for first in range(0, len(groups), at_once):
            self._write_groups(groups[first : first + at_once], sink)

    def _column(self, name: str, read: Callable[[str], Any]) -> Iterator[Any]:
        for batch in self._examples.iter_batches("candidates", [name]):
            yield from map(read, map(str, batch.column(0).to_pylist()))

    def _write_common(self, groups: list[I64], sink: Sink) -> None:
        """Write the repeats among candidates whose answers many have."""
        group_J = np.full(self._examples.num_rows("candidates"), -1)
        for number, group in enumerate(groups):
            group_J[group] = number
        holders: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for row, words in enumerate(self._column("prompt", split_words) if groups else ()):
            if group_J[row] >= 0:
                holders[int(group_J[row])].update(set(words))
        keys: dict[int, int] = {}
        for row, prompt in enumerate(self._column("prompt", str) if groups else ()):
            if (number := int(group_J[row])) >= 0:
                words = rare_words(prompt, holders[number], len(groups[number]))
                keys[row] = answer_key(" ".join(words)) if words else 0
        found: list[tuple[int, int]] = []
        for group in groups:
            first: dict[int, int] = {}
            for row in group.tolist():
                if keys[row] and first.setdefault(keys[row], row) != row:
                    found.append((row, first[keys[row]]))
        if found:
            rows_N2 = np.array(found)
            ids = [
                self._examples.take_rows("candidates", rows, ["example_id"])["example_id"]
                for rows in rows_N2.T
            ]
            columns = [rows_N2[:, 0], ids[0], rows_N2[:, 1], ids[1], pa.nulls(len(found))]
            table = pa.table(columns, names=schemas.REPEATS.names)
            sink.write(REPEATS, table.cast(schemas.REPEATS))

    def _write_groups(self, groups: list[I64], sink: Sink) -> None:
        rows_M = np.concatenate(groups)
        prompts = self._examples.take_rows("candidates", rows_M, ["example_id", "prompt"])
        ids, texts = (column.to_pylist() for column in prompts.columns)
        numbers = [prompt_numbers(str(text)) for text in texts]
        vectors = self._embeddings.take_rows("candidates", rows_M, ["embedding"])["embedding"]
        vector_MD, found, first = column_matrix(vectors), [], 0
        for group in groups:
            span = slice(first, first + len(group))
            for row, twin, cosine in find_repeats(vector_MD[span], numbers[span], self._min_cosine):
                found.append(
                    {
                        "row_index": int(group[row]),
                        "example_id": ids[first + row],
                        "repeats": int(group[twin]),
                        "repeats_example_id": ids[first + twin],
                        "cosine": cosine,
                    }
                )
            first += len(group)
        if found:
            sink.write_rows(REPEATS, found, schemas.REPEATS)


def read_repeats(output: StageOutput) -> dict[int, int]:
    """Return the candidates that may not be picked, each with the one it repeats."""
    table = output.read(REPEATS, schema=schemas.REPEATS)
    rows, twins = (table[name].to_numpy().tolist() for name in ("row_index", "repeats"))
    return dict(zip(rows, twins, strict=True))
