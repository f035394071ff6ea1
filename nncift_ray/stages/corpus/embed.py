"""Embed: texts to unit vectors, on GPU actors where there are any."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.core.examples import embedding_text
from nncift_ray.errors import StageError
from nncift_ray.models.embedded import ResolvedModel
from nncift_ray.models.embedder import Embedder
from nncift_ray.stages.driving.atoms import RowAtoms, RowStage
from nncift_ray.stages.driving.stage import Shard, Worker
from nncift_ray.storage import schemas
from nncift_ray.storage.arrays import vectors_to_arrow
from nncift_ray.storage.output import ERRORS_TABLE, Sink, StageOutput
from nncift_ray.storage.schemas import TABLE_OF_ROLE

#: Texts that are sorted by length and padded together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024

EmbedderFactory = Callable[[], Embedder]


class EmbedStage(RowStage):
    """Write ``candidates``, ``targets`` and ``existing``: one vector an example, in row order."""

    name: ClassVar[str] = "embed"

    def __init__(
        self,
        examples: StageOutput,
        model: ResolvedModel,
        make_embedder: EmbedderFactory,
        *,
        dtype: str = "float32",
        shard_rows: int | None = None,
        parent: StageOutput | None = None,
        tables: Collection[str] = tuple(TABLE_OF_ROLE.values()),
    ) -> None:
        """Embed the examples of the deduplicate stage with the embedder that a factory builds.

        ``parent`` holds the embeddings of the first rows, where a run goes on with further data.
        ``tables`` are those of the deduplicate stage to embed.
        """
        self._examples, self._model, self._make_embedder = examples, model, make_embedder
        self._dtype = dtype
        self._shard_rows = shard_rows or DEFAULT_SHARD_ROWS
        self._parent = parent
        self._tables = tuple(tables)
        rows = {role: examples.num_rows(role) for role in self._tables}
        done = {role: parent.num_rows(role) if parent else 0 for role in rows}
        ranges = tuple((role, rows[role] - done[role]) for role in rows)
        self._atoms = RowAtoms(ranges, ATOM_ROWS, first_rows=done)

    @property
    def produces(self) -> Mapping[str, pa.Schema]:
        """Tables whose dimension only the model knows; see ``check_schema``."""
        return dict.fromkeys(self._tables, pa.schema([]))

    @property
    def inputs(self) -> Mapping[str, StageOutput]:
        """The deduplicated examples."""
        return {"examples": self._examples} | ({"parent": self._parent} if self._parent else {})

    def settings(self) -> dict[str, Any]:
        """Model, revision and storage type."""
        return {
            "model": self._model.name,
            "revision": self._model.revision,
            "dtype": self._dtype,
            "atom_rows": ATOM_ROWS,
        }

    def check_schema(self, table: str, schema: pa.Schema) -> None:
        """Refuse any schema but that of embeddings of one dimension."""
        if table == ERRORS_TABLE:
            super().check_schema(table, schema)
            return
        dimension = schema.field("embedding").type.list_size
        if not schema.equals(schemas.embeddings_schema(dimension, self._dtype)):
            raise StageError(
                f"stage '{self.name}', table '{table}': not a table of embeddings:\n{schema}"
            )

    def make_worker(self) -> Worker:
        """Load the embedder."""
        embedder = self._make_embedder()

        def embed_shard(shard: Shard, sink: Sink) -> None:
            sink.facts["dimension"] = embedder.dimension
            for span in self._atoms.spans(shard.start, shard.stop):
                columns = ["row_index", "example_id", "prompt", "response"]
                rows = self._examples.read_range(span.name, span.start, span.stop, columns)
                embedded = embed_rows(rows, self.texts_of(rows), embedder, self._dtype)
                sink.write(span.name, embedded)
                sink.count("tokens", pc.sum(embedded["num_tokens"]).as_py() or 0)

        return embed_shard

    def texts_of(self, rows: pa.Table) -> list[str]:
        """Return what is embedded of some examples."""
        prompts = cast("list[str]", rows["prompt"].to_pylist())
        responses = cast("list[str]", rows["response"].to_pylist())
        return [
            embedding_text(prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]


class EmbedPromptsStage(EmbedStage):
    """Write the vectors of the prompts alone, of one table: what questions are compared by."""

    name: ClassVar[str] = "embed_prompts"

    def __init__(
        self,
        examples: StageOutput,
        model: ResolvedModel,
        make_embedder: EmbedderFactory,
        *,
        table: str,
        shard_rows: int | None = None,
    ) -> None:
        """Embed the prompts of a table of the deduplicate stage."""
        super().__init__(examples, model, make_embedder, shard_rows=shard_rows, tables=(table,))

    def settings(self) -> dict[str, Any]:
        """Model, revision, and whose prompts."""
        return super().settings() | {"tables": list(self._tables)}

    def texts_of(self, rows: pa.Table) -> list[str]:
        """Return the prompts: no answer is looked at."""
        return cast("list[str]", rows["prompt"].to_pylist())


def embed_rows(rows: pa.Table, texts: Sequence[str], embedder: Embedder, dtype: str) -> pa.Table:
    """Embed the texts of some examples in one call.

    Raises:
        StageError: If a vector is not finite, naming the example.
    """
    vectors = embedder.embed(texts)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        example_id = rows["example_id"][int(broken[0])].as_py()
        raise StageError(f"the embedding of example {example_id} is not finite")
    return pa.Table.from_pydict(
        {
            "row_index": rows["row_index"],
            "example_id": rows["example_id"],
            "num_tokens": pa.array(embedder.count_tokens(texts), pa.int32()),
            "embedding": vectors_to_arrow(vectors, dtype),
        },
        schema=schemas.embeddings_schema(embedder.dimension, dtype),
    )
