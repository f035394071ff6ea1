"""The step ``quality``: near examples are shown before every candidate, and what follows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nncift_ray.embedders import Embedder, load_embedder
from nncift_ray.engines.base import Engine, ScoringFailure, ScoringRequest
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.profiles.neighbours import group_rows, nearest_rows
from nncift_ray.profiles.quality import SUSPECT, beside_neighbours, quality_of, suspicion
from nncift_ray.runtime.output import Sink, StageOutput, column_matrix
from nncift_ray.runtime.step import Shard, Stage, Worker

ITEM_ROWS = 128  # candidates of an engine's call
DEFAULT_SHARD_ROWS = 512

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

    row: int
    shown: tuple[int, ...]


class QualityStage(Stage):
    """Write ``candidates``: consistency with near examples, suspicion and quality, in row order."""

    name: ClassVar[str] = "quality"
    title: ClassVar[str] = "compare answers with near examples"
    version: ClassVar[int] = 2
    unit: ClassVar[str] = "rows"
    can_use_gpu = True
    single_threaded = False
    isolated: ClassVar[bool] = True

    def __init__(
        self,
        examples: StageOutput,
        embeddings: StageOutput,
        profiles: StageOutput,
        make_engine: Callable[[], Engine],
        engine_settings: Mapping[str, Any],
        embedder: ResolvedModel,
        num_neighbours: int,
        *,
        make_embedder: Callable[[], Embedder] | None = None,
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
    ) -> None:
        """Measure the candidates; those of a parent's table keep what was measured of them."""
        self._examples, self._embeddings, self._profiles = examples, embeddings, profiles
        self._make_engine, self._engine_settings = make_engine, dict(engine_settings)
        self._embedder, self._make_embedder = embedder, make_embedder
        self._num_neighbours, self._parent = num_neighbours, parent
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._num_rows = examples.num_rows("candidates")
        self._first = parent.num_rows("candidates") if parent else 0

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """What was measured, and what follows."""
        return {"measured": MEASURED, "candidates": QUALITY}

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """Examples, vectors and profiles."""
        inputs = {
            "examples": self._examples,
            "embeddings": self._embeddings,
            "profiles": self._profiles,
        }
        return inputs | ({"parent": self._parent} if self._parent else {})

    def settings(self) -> dict[str, Any]:
        """The models, and how many examples are shown."""
        return {
            "engine": self._engine_settings,
            "embedder": [self._embedder.name, self._embedder.revision],
            "num_neighbours": self._num_neighbours,
            "item_rows": ITEM_ROWS,
        }

    def num_items(self) -> int:
        """Slices of the candidates, near ones side by side."""
        return -(-(self._num_rows - self._first) // ITEM_ROWS)

    @property
    def shard_items(self) -> int:
        """Slices of a shard."""
        return max(1, self._shard_rows // ITEM_ROWS)

    def item_weight(self, start: int, stop: int) -> int:
        """Candidates of some slices."""
        last = self._num_rows - self._first
        return min(stop * ITEM_ROWS, last) - min(start * ITEM_ROWS, last)

    @cached_property
    def _asks(self) -> list[Ask]:
        """Every candidate with what it is shown, those of one context side by side."""
        rows = np.arange(self._first, self._num_rows)
        if not self._num_neighbours or self._num_rows < 2:
            return [Ask(int(row), ()) for row in rows]
        vectors = column_matrix(self._embeddings.read("candidates", ["embedding"])["embedding"])
        groups = group_rows(nearest_rows(vectors, 32), self._num_neighbours, rows)
        asks = [
            Ask(int(row), tuple(context.tolist()))
            for group in range(len(groups.members))
            for context, members in groups.contexts(group)
            for row in members
        ]
        alone = set(rows.tolist()).difference(ask.row for ask in asks)
        return asks + [Ask(row, ()) for row in sorted(alone)]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the neighbours: every worker looks for them."""
        return {key: value for key, value in self.__dict__.items() if key != "_asks"}

    def make_worker(self) -> Worker:
        """Load both models and find the neighbours."""
        asks = self._asks
        engine = self._make_engine() if self._num_neighbours else None
        embedder = self._make_embedder() if self._make_embedder else load_embedder(self._embedder)

        def measure_shard(shard: Shard, sink: Sink) -> None:
            for item in range(shard.start, shard.stop):
                part = asks[item * ITEM_ROWS : (item + 1) * ITEM_ROWS]
                texts = self._texts(part)
                losses = (
                    [np.nan] * len(part) if engine is None else ask_all(engine, part, texts, sink)
                )
                prompts = embedder.embed([texts[ask.row][0] for ask in part])
                answers = embedder.embed([texts[ask.row][1] for ask in part])
                cosines = (prompts * answers).sum(axis=1)
                rows = [
                    {
                        "row_index": ask.row,
                        "nll_shown": None if np.isnan(loss) else loss,
                        "answer_cosine": cosine,
                        "neighbours": None if np.isnan(loss) else list(ask.shown),
                    }
                    for ask, loss, cosine in zip(part, losses, cosines.tolist(), strict=True)
                ]
                sink.write_rows("measured", rows, MEASURED)

        return measure_shard

    def _texts(self, part: Sequence[Ask]) -> dict[int, tuple[str, str]]:
        rows = np.array(sorted({row for ask in part for row in (ask.row, *ask.shown)}))
        table = self._examples.take_rows("candidates", rows, ["prompt", "response"]).to_pylist()
        return {
            row: (text["prompt"], text["response"])
            for row, text in zip(rows.tolist(), table, strict=True)
        }

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
        place = np.zeros(int(rows.max(initial=-1)) + 1, np.int64)
        place[rows] = np.arange(len(rows))
        listed = measured["neighbours"].to_pylist()
        near = [[] if each is None else place[each].tolist() for each in listed]
        doubt = beside_neighbours(doubt, near)
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
        count, total = output.manifest.facts()["num_suspects"], self._num_rows
        if not count:
            return []
        return [
            f"{count:,} of {total:,} answers look wrong: near examples or their own prompts speak "
            f"against them (table candidates of {output.folder}, suspicion above {SUSPECT:g})"
        ]


def _numbers(column: pa.ChunkedArray[Any]) -> npt.NDArray[np.float64]:
    """Return a column as float64 [N], NaN where it is null."""
    return np.array(column.to_numpy(), np.float64)


def ask_all(
    engine: Engine, part: Sequence[Ask], texts: Mapping[int, tuple[str, str]], sink: Sink
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
    engine: Engine, run: Sequence[tuple[int, Ask]], texts: Mapping[int, tuple[str, str]]
) -> list[tuple[int, ScoringRequest]]:
    """Return the requests of candidates that are shown the same examples, by their place.

    Examples stand one after the other, the nearest last; what does not fit into the model's window
    behind the longest candidate is left out whole, the farthest first, so that all share a prefix.
    A candidate that is shown nothing has no request.
    """
    shown = run[0][1].shown
    if not shown:
        return []
    bodies: list[tuple[int, list[int], list[int]]] = []
    for place, ask in run:
        prompt, response = texts[ask.row]
        ids = [*engine.encode(response), engine.eos_id]
        bodies.append((place, engine.encode(f"{prompt}\n"), ids))
    start = engine.start_ids or [engine.eos_id]
    fitting = [len(query) + len(answer) for _, query, answer in bodies]
    room = engine.max_length - len(start)
    longest = max((length for length in fitting if length <= room), default=0)
    prefix: list[int] = []
    for row in shown:
        ids = engine.encode("{}\n{}\n\n".format(*texts[row]))
        if longest + len(prefix) + len(ids) > room:
            break
        prefix = [*ids, *prefix]
    if not prefix:
        return []
    head = [*start, *prefix]
    return [
        (place, ScoringRequest([*head, *query], answer, len(head)))
        for place, query, answer in bodies
    ]
