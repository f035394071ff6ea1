"""The steps ``profiles`` and ``states``: every example goes once through the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from nncift_ray.corpus.examples import EXAMPLE_COLUMNS, Example
from nncift_ray.embedders import EmbedStage
from nncift_ray.engines.base import ScoringFailure
from nncift_ray.engines.models import EngineFactory, actor_threads, locate_model
from nncift_ray.profiles.blocks import FEATURE_BLOCKS, SCALARS, SEED
from nncift_ray.recipe.sections import EmbedderConfig
from nncift_ray.runtime.output import Sink, StageOutput
from nncift_ray.runtime.schemas import TABLE_OF_ROLE
from nncift_ray.runtime.step import KILLED_WORKER, RowAtoms, RowStage, Shard, Worker, present

#: Examples that are sorted by length and padded together.
ATOM_ROWS = 128
DEFAULT_SHARD_ROWS = 512


#: One row an example; null where it could not be measured.
SCHEMA = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        *(
            pa.field(name, pa.int32() if name.startswith("num_") else pa.float32())
            for name in SCALARS
        ),
        pa.field("feature", pa.list_(pa.float16(), sum(block.width for block in FEATURE_BLOCKS))),
    ]
)


@dataclass(frozen=True)
class ProfilerFactory:
    """Loads the model that profiles; on transformers always, for vLLM returns no states."""

    engine: EngineFactory

    def __call__(self) -> Any:
        """Return the profiling engine."""
        from nncift_ray.profiles.reader import ProfilingEngine

        path = locate_model(self.engine.model, "language model").path
        return ProfilingEngine(path, self.engine.options, num_threads=actor_threads())

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
        return self.engine.settings()


class ModelRowStage(RowStage):
    """Examples that a language model reads; one that kills its worker can be left out."""

    can_use_gpu = True
    single_threaded = False
    divisible: ClassVar[bool] = True
    max_failed_key: ClassVar[str] = "teacher.max_failed_fraction"
    memory_advice: ClassVar[str] = "lower teacher.batch_tokens, or give its actors more memory"

    def row_numbers(self, start: int, stop: int) -> range:
        """Number the examples over all ranges."""
        return range(self._atoms.num_rows(0, start), self._atoms.num_rows(0, stop))


class ProfileStage(ModelRowStage):
    """Write ``candidates``, ``targets`` and ``existing``: a profile of every example, in order."""

    name: ClassVar[str] = "profiles"
    title: ClassVar[str] = "profile the examples"
    produces = dict.fromkeys(TABLE_OF_ROLE.values(), SCHEMA)

    def __init__(
        self,
        examples: StageOutput,
        make_profiler: ProfilerFactory,
        *,
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
    ) -> None:
        """Profile the deduplicated examples; with a parent's profiles, only what is behind them."""
        self._examples, self._make_profiler, self._parent = examples, make_profiler, parent
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        rows = {table: examples.num_rows(table) for table in TABLE_OF_ROLE.values()}
        done = {table: parent.num_rows(table) if parent else 0 for table in rows}
        ranges = tuple((table, rows[table] - done[table]) for table in rows)
        self._atoms = RowAtoms(ranges, ATOM_ROWS, first_rows=done)
        self.inputs = present(examples=examples, parent=parent)

    def settings(self) -> dict[str, Any]:
        """The model, and what is stored of it."""
        return {
            "engine": self._make_profiler.settings(),
            "blocks": [asdict(block) for block in FEATURE_BLOCKS],
            "projection_seed": SEED,
            "atom_rows": ATOM_ROWS,
        }

    def make_worker(self) -> Worker:
        """Load the model."""
        profiler = self._make_profiler()

        def profile_shard(shard: Shard, sink: Sink) -> None:
            sink.facts["blocks"] = {block.name: block.width for block in FEATURE_BLOCKS}
            for item in range(shard.start, shard.stop):
                (span,) = self._atoms.spans(item, item + 1)
                first = self.row_numbers(item, item + 1).start
                wanted = shard.wanted(self.row_numbers(item, item + 1))
                low, high = (span.start + number - first for number in (wanted.start, wanted.stop))
                if high <= low:
                    continue
                skipped = {low + n - wanted.start: why for n, why in shard.skip.items()}
                columns = ["row_index", *EXAMPLE_COLUMNS]
                rows = self._examples.read_range(span.name, low, high, columns).to_pylist()
                sink.write(span.name, profile_rows(profiler, rows, skipped, sink))

        return profile_shard


def profile_rows(
    profiler: Any, rows: Sequence[Mapping[str, Any]], skipped: Mapping[int, str], sink: Sink
) -> pa.Table:
    """Return the profiles of some examples in one call; what has none goes to the errors table."""
    from nncift_ray.profiles.reader import profile_request

    examples = [Example(*(row[name] for name in EXAMPLE_COLUMNS)) for row in rows]
    asked = [at for at, row in enumerate(rows) if row["row_index"] not in skipped]
    found: dict[int, Any] = {
        at: ScoringFailure(KILLED_WORKER, skipped[row["row_index"]])
        for at, row in enumerate(rows)
        if row["row_index"] in skipped
    }
    requests = [profile_request(profiler, examples[at]) for at in asked]
    found |= zip(asked, profiler.profile(requests), strict=True)
    written: list[dict[str, Any]] = []
    for at, row in enumerate(rows):
        profile = found[at]
        record: dict[str, Any] = {"row_index": row["row_index"]}
        if isinstance(profile, ScoringFailure):
            example_id, excerpt = row["example_id"], row["prompt"]
            sink.error(profile.reason, profile.message, example_id=example_id, excerpt=excerpt)
            record |= dict.fromkeys([*SCALARS, "feature"])
        else:
            record |= {name: getattr(profile, name) for name in SCALARS}
            record["feature"] = profile.feature.astype(np.float16)
            sink.count("tokens", profile.num_prompt_tokens + 2 * profile.num_response_tokens)
        written.append(record)
    return pa.Table.from_pylist(written, schema=SCHEMA)


# RDS+: the last hidden states, averaged, later tokens weighing more.


@dataclass(frozen=True)
class StatesFactory:
    """Loads the language model that embeds."""

    engine: EngineFactory

    def __call__(self) -> Any:
        """Return the embedder."""
        from nncift_ray.profiles.reader import StatesEmbedder

        path = locate_model(self.engine.model, "language model").path
        return StatesEmbedder(path, self.engine.options, num_threads=actor_threads())


class StatesStage(EmbedStage):
    """Write ``candidates``, ``targets`` and ``existing``: what the model holds of each example."""

    version: ClassVar[int] = 2
    name: ClassVar[str] = "states"
    title: ClassVar[str] = "read the model's states"
    memory_advice: ClassVar[str] = "lower teacher.batch_tokens, or give its actors more memory"
    columns: ClassVar[tuple[str, ...]] = EXAMPLE_COLUMNS

    def __init__(
        self, examples: StageOutput, make_embedder: StatesFactory, config: EmbedderConfig
    ) -> None:
        """Embed the deduplicated examples by the language model that the factory loads."""
        super().__init__(examples, make_embedder.engine.model, config, make_embedder=make_embedder)
        self._engine_settings = make_embedder.engine.settings()

    def settings(self) -> dict[str, Any]:
        """The model and what its numbers depend on."""
        return super().settings() | {"engine": self._engine_settings}

    def texts_of(self, rows: pa.Table) -> list[Any]:
        """Return the examples, whole."""
        return [Example(**row) for row in rows.select(EXAMPLE_COLUMNS).to_pylist()]
