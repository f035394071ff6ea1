"""The steps ``neighbours`` and ``quality``: every candidate is asked again behind near examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import Example, load_examples
from nncift_ray.embedders import Embedder, load_embedder
from nncift_ray.engines.base import Engine, ScoringFailure, ScoringRequest
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.profiles.quality import (
    SUSPECT,
    beside_neighbours,
    fitting_prefix,
    group_rows,
    nearest_rows,
    quality_of,
    suspicion,
)
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.schemas import CANDIDATE
from nncift_ray.runtime.step import Shard, Stage, Worker, present

ITEM_ROWS = 128  # candidates of an engine's call
DEFAULT_SHARD_ROWS = 512

NEAREST = 32  # rows looked at for the groups
WRITE_ROWS = 50_000  # written at once

#: In the order in which candidates are asked.
ASKS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("shown", pa.list_(pa.int64()), nullable=False),
    ]
)
MEASURED = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("nll_shown", pa.float32()),  # behind near examples, nats a response token
        pa.field("answer_cosine", pa.float32(), nullable=False),  # of prompt and answer
        pa.field("neighbours", pa.list_(pa.int64())),  # that were shown
    ]
)
#: One row a candidate, in order; null where it could not be measured.
QUALITY = pa.schema(
    [
        *MEASURED,
        pa.field("consistency", pa.float32()),  # nll_shown over the loss without prompt
        pa.field("suspicion", pa.float32()),
        pa.field("quality", pa.float32()),
    ]
)


class Ask(NamedTuple):
    """A candidate and the examples shown before it."""

    row_index: int
    shown: tuple[int, ...]


class NeighboursStage(Stage):
    """Write ``asks``: every candidate with the examples it is shown, those of one context together.

    One search over all candidates, so that the workers of ``quality`` need not repeat it.
    """

    name: ClassVar[str] = "neighbours"
    title: ClassVar[str] = "find near examples"
    produces = {"asks": ASKS}
    unit: ClassVar[str] = "searches"
    single_threaded = False

    def __init__(
        self, embeddings: StageOutput, num_neighbours: int, parent: StageOutput | None = None
    ) -> None:
        """Search for all candidates, or for those that a parent's quality step has not measured."""
        self._embeddings, self._num_neighbours, self._parent = embeddings, num_neighbours, parent
        self.inputs = present(embeddings=embeddings, parent=parent)

    def settings(self) -> dict[str, Any]:
        """How many are shown."""
        return {"num_neighbours": self._num_neighbours}

    def make_worker(self) -> Worker:
        """Search on all threads of the process."""

        def find(shard: Shard, sink: Sink) -> None:
            first = self._parent.num_rows("candidates") if self._parent else 0
            asks = self._find(np.arange(first, self._embeddings.num_rows("candidates")))
            for start in range(0, len(asks), WRITE_ROWS):
                part = [ask._asdict() for ask in asks[start : start + WRITE_ROWS]]
                sink.write_rows("asks", part, ASKS)

        return find

    def _find(self, rows: npt.NDArray[np.int64]) -> list[Ask]:
        if not self._num_neighbours or self._embeddings.num_rows("candidates") < 2:
            return [Ask(int(row), ()) for row in rows]
        vectors = column_matrix(self._embeddings.read("candidates", ["embedding"])["embedding"])
        groups = group_rows(nearest_rows(vectors, NEAREST), self._num_neighbours, rows)
        asks = [
            Ask(int(row), tuple(context.tolist()))
            for group in range(len(groups.members))
            for context, members in groups.contexts(group)
            for row in members
        ]
        alone = set(rows.tolist()).difference(ask.row_index for ask in asks)
        return asks + [Ask(row, ()) for row in sorted(alone)]


class QualityStage(Stage):
    """Write ``candidates``: consistency with near examples, suspicion and quality, in row order."""

    name: ClassVar[str] = "quality"
    title: ClassVar[str] = "compare answers with near examples"
    produces = {"measured": MEASURED, "candidates": QUALITY}
    version: ClassVar[int] = 2
    unit: ClassVar[str] = "rows"
    can_use_gpu = True
    single_threaded = False
    isolated: ClassVar[bool] = True

    def __init__(
        self,
        examples: StageOutput,
        profiles: StageOutput,
        neighbours: StageOutput,
        make_engine: Callable[[], Engine],
        engine_settings: Mapping[str, Any],
        embedder: ResolvedModel,
        *,
        make_embedder: Callable[[], Embedder] | None = None,
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
    ) -> None:
        """Measure the candidates; those of a parent's table keep what was measured of them."""
        self._examples, self._profiles, self._neighbours = examples, profiles, neighbours
        self._make_engine, self._engine_settings = make_engine, dict(engine_settings)
        self._embedder, self._make_embedder = embedder, make_embedder
        self._shard_rows, self._parent = shard_rows or DEFAULT_SHARD_ROWS, parent
        self._num_asks = neighbours.num_rows("asks")
        self.inputs = present(
            examples=examples, profiles=profiles, neighbours=neighbours, parent=parent
        )

    def settings(self) -> dict[str, Any]:
        """The models."""
        return {
            "engine": self._engine_settings,
            "embedder": [self._embedder.name, self._embedder.revision],
            "item_rows": ITEM_ROWS,
        }

    def num_items(self) -> int:
        """Slices of the candidates, near ones side by side."""
        return -(-self._num_asks // ITEM_ROWS)

    @property
    def shard_items(self) -> int:
        """Slices of a shard."""
        return max(1, self._shard_rows // ITEM_ROWS)

    def item_weight(self, start: int, stop: int) -> int:
        """Candidates of some slices."""
        return min(stop * ITEM_ROWS, self._num_asks) - min(start * ITEM_ROWS, self._num_asks)

    def make_worker(self) -> Worker:
        """Load both models; the language model only where something is shown."""
        asks_anything = self._neighbours.manifest.settings["num_neighbours"] > 0
        engine = self._make_engine() if asks_anything else None
        embedder = self._make_embedder() if self._make_embedder else load_embedder(self._embedder)

        def measure_shard(shard: Shard, sink: Sink) -> None:
            for item in range(shard.start, shard.stop):
                span = item * ITEM_ROWS, (item + 1) * ITEM_ROWS
                asks = self._neighbours.read_range("asks", *span).to_pylist()
                part = [Ask(ask["row_index"], tuple(ask["shown"])) for ask in asks]
                texts = self._read_examples(part)
                losses = (
                    [np.nan] * len(part) if engine is None else ask_all(engine, part, texts, sink)
                )
                prompts = embedder.embed([texts[ask.row_index].prompt for ask in part])
                answers = embedder.embed([texts[ask.row_index].response for ask in part])
                cosines = (prompts * answers).sum(axis=1)
                rows = [
                    {
                        "row_index": ask.row_index,
                        "nll_shown": None if np.isnan(loss) else loss,
                        "answer_cosine": cosine,
                        "neighbours": None if np.isnan(loss) else list(ask.shown),
                    }
                    for ask, loss, cosine in zip(part, losses, cosines.tolist(), strict=True)
                ]
                sink.write_rows("measured", rows, MEASURED)

        return measure_shard

    def _read_examples(self, part: Sequence[Ask]) -> dict[int, Example]:
        rows = sorted({row for ask in part for row in (ask.row_index, *ask.shown)})
        found = load_examples(self._examples, [(CANDIDATE, row) for row in rows])
        return {row: found[CANDIDATE, row] for row in rows}

    def finish(self, output: StageOutput, sink: Sink) -> None:
        """Write the table of all candidates; what is usual is judged over all of them."""
        tables = [output.read("measured", schema=MEASURED)]
        if self._parent is not None:
            tables.insert(0, self._parent.read("candidates").select(MEASURED.names))
        measured = pa.concat_tables(table.cast(MEASURED) for table in tables)
        measured = measured.sort_by("row_index")
        profiles = self._profiles.read("candidates", ["nll", "nll_alone"])
        rows = measured["row_index"].to_numpy()
        nll, alone = (_numbers(profiles[name])[rows] for name in ("nll", "nll_alone"))
        shown, cosine = (_numbers(measured[name]) for name in ("nll_shown", "answer_cosine"))
        doubt = suspicion(nll, alone, shown, cosine)
        place = np.full(int(rows.max(initial=-1)) + 2, -1, np.int64)  # the last one: of no row
        place[rows] = np.arange(len(rows))
        doubt = beside_neighbours(doubt, place[_padded(measured["neighbours"])])
        quality = quality_of(doubt)
        for name, values in (
            ("consistency", shown / alone),
            ("suspicion", doubt),
            ("quality", quality),
        ):
            column = pa.array(values.astype(np.float32), from_pandas=True)
            measured = measured.append_column(QUALITY.field(name), column)
        sink.write("candidates", measured)
        sink.facts["num_suspects"] = int((doubt > SUSPECT).sum())
        sink.facts["mean_quality"] = float(np.nanmean(quality)) if len(quality) else 1.0

    def notices(self, output: StageOutput) -> list[str]:
        """Say how many answers look wrong, and where they are listed."""
        count, total = output.manifest.facts()["num_suspects"], output.num_rows("candidates")
        if not count:
            return []
        return [
            f"{count:,} of {total:,} answers look wrong: near examples or their own prompts speak "
            f"against them (table candidates of {output.folder}, suspicion above {SUSPECT:g})"
        ]


def _numbers(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.float64]:
    """Return a column as float64 [N], NaN where it is null."""
    return np.array(column.to_numpy(), np.float64)


def _padded(lists: pa.ChunkedArray[Any]) -> npt.NDArray[np.int64]:
    """Return lists of row numbers as one array [N, K], -1 behind the shorter ones."""
    length_N = np.array(pc.list_value_length(lists).fill_null(0), np.int64)
    row_NK = np.full((len(length_N), int(length_N.max(initial=0))), -1, np.int64)
    row_NK[np.arange(row_NK.shape[1]) < length_N[:, None]] = pc.list_flatten(lists).to_numpy()
    return row_NK


def ask_all(
    engine: Engine, part: Sequence[Ask], texts: Mapping[int, Example], sink: Sink
) -> list[float]:
    """Return the loss of each answer behind what is shown, NaN where there is none."""
    asked = [
        (place, request)
        for _, run in groupby(enumerate(part), key=lambda pair: pair[1].shown)
        for place, request in context_requests(engine, list(run), texts)
    ]
    losses = [float("nan")] * len(part)
    answers = engine.score([request for _, request in asked])
    for (place, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, ScoringFailure):  # the profiles' errors table has the row already
            sink.count("unscored", 1)
            continue
        losses[place] = -float(answer.log_probs.mean())
        sink.count("tokens", answer.num_tokens)
        sink.count("cached_tokens", answer.num_cached_tokens)
    return losses


def context_requests(
    engine: Engine, run: Sequence[tuple[int, Ask]], texts: Mapping[int, Example]
) -> list[tuple[int, ScoringRequest]]:
    """Return the requests of candidates that are shown the same examples, by their place.

    Examples stand one after the other, the nearest last; what does not fit into the model's window
    behind the longest candidate is left out whole, the farthest first, so that all share a prefix.
    (In a chat template they are earlier turns, and what does not fit is cut from the left.) A
    candidate that is shown nothing has no request.
    """
    shown = run[0][1].shown
    if not shown:
        return []
    if (chat := engine.chat) is not None:
        before = [texts[row] for row in reversed(shown)]
        made = [chat.request(texts[ask.row_index], engine.max_length, before) for _, ask in run]
        return [
            (place, one)
            for (place, _), one in zip(run, made, strict=True)
            if not isinstance(one, ScoringFailure)
        ]
    bodies: list[tuple[int, list[int], list[int]]] = []
    for place, ask in run:
        example = texts[ask.row_index]
        ids = [*engine.encode(example.response), engine.eos_id]
        bodies.append((place, engine.encode(f"{example.prompt}\n"), ids))
    start = engine.start_ids or [engine.eos_id]
    fitting = [len(query) + len(answer) for _, query, answer in bodies]
    room = engine.max_length - len(start)
    longest = max((length for length in fitting if length <= room), default=0)
    nearest_first = (
        engine.encode(f"{texts[row].prompt}\n{texts[row].response}\n\n") for row in shown
    )
    prefix = fitting_prefix(nearest_first, room - longest)
    if not prefix:
        return []
    head = [*start, *prefix]
    return [
        (place, ScoringRequest([*head, *query], answer, len(head)))
        for place, query, answer in bodies
    ]
