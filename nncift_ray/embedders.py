"""Embed: texts to unit vectors, on GPU actors where there are any.

Suffixes: N texts, D dimensions of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import embedding_text
from nncift_ray.engines.models import ResolvedModel, locate_model
from nncift_ray.engines.tokens import well_formed
from nncift_ray.errors import ModelError, StageError
from nncift_ray.recipe.sections import EmbedderConfig
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, Sink, StageOutput, vectors_to_arrow
from nncift_ray.runtime.schemas import TABLE_OF_ROLE
from nncift_ray.runtime.step import RowAtoms, RowStage, Shard, Worker, present

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

BATCH_TEXTS, GPU_BATCH_TEXTS = 64, 256  # texts of one forward pass
#: Texts that are sorted by length and padded together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024
DEFAULT_MAX_LENGTH = 512  # tokens, of a model that names no limit


class Embedder(Protocol):
    """A model that turns texts into unit vectors."""

    dimension: int

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors [N, D], in the order of the texts."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> I32:
        """Return the tokens of each text [N], uncut and without special tokens."""
        ...


class SentenceTransformerEmbedder:
    """A model in the sentence-transformers layout, pooled as its own files say.

    For BGE that is the normalised CLS vector; the encoder's ``pooler_output`` is something else.
    """

    def __init__(self, model_path: str | Path, device: str = "auto") -> None:
        """Load the model of a local folder, or of an id on the hub.

        Args:
            model_path: The folder or id.
            device: "auto" (CUDA if there is one), "cpu", "cuda", ...

        Raises:
            ModelError: If the model cannot be loaded, or a local folder does not say how to pool.
        """
        import torch
        from sentence_transformers import SentenceTransformer

        local = Path(model_path).is_dir()
        if local and not (Path(model_path) / "modules.json").is_file():
            raise ModelError(
                f"{model_path} has no modules.json, so its pooling is unknown; save the model with "
                "sentence-transformers' save_pretrained"
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model: Any = SentenceTransformer(
                str(model_path),
                device=device,
                trust_remote_code=False,
                local_files_only=local,
                model_kwargs={"use_safetensors": True},  # never a pickle
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no embedder can be loaded from {model_path}: {error}") from error
        self._batch_texts = BATCH_TEXTS
        if device.startswith("cuda"):
            # Products of 19 bits: several times as fast, with vectors that differ by some 1e-4.
            torch.set_float32_matmul_precision("high")
            self._batch_texts = GPU_BATCH_TEXTS
        longest = self._model.max_seq_length or DEFAULT_MAX_LENGTH
        if not math.isinf(longest):  # a model of word vectors reads any length, and cannot cut
            self._model.max_seq_length = int(longest)
        self._has_bare_tokenizer = not callable(self._model.tokenizer)  # of word vectors
        self.dimension = int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors [N, D], in the order of the texts.

        Texts of similar length are computed together, so that little of a batch is padding: fewer
        from then on where memory does not suffice.

        Raises:
            ModelError: If it does not suffice for one text.
        """
        import torch

        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        clean = [well_formed(texts[i]) for i in order]
        while True:
            try:
                vectors_ND: F32 = self._model.encode(
                    clean,
                    batch_size=self._batch_texts,
                    normalize_embeddings=True,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
                break
            except torch.OutOfMemoryError as error:
                if self._batch_texts == 1:
                    raise ModelError(f"the GPU has no memory to embed a text: {error}") from error
            # Outside the handler, whose traceback holds what the failed batch held.
            self._batch_texts //= 2
            torch.cuda.empty_cache()
        result_ND = np.empty((len(texts), self.dimension), dtype=np.float32)
        result_ND[order] = vectors_ND
        return result_ND

    def count_tokens(self, texts: Sequence[str]) -> I32:
        """Return the tokens of each text [N], uncut and without special tokens."""
        if not texts:
            return np.empty(0, dtype=np.int32)
        clean = [well_formed(text) for text in texts]
        tokenizer: Any = self._model.tokenizer
        if self._has_bare_tokenizer:
            encoded = tokenizer.encode_batch(clean, add_special_tokens=False)
        else:
            options = {"truncation": False, "padding": False, "verbose": False}
            encoded = tokenizer(clean, add_special_tokens=False, **options)["input_ids"]
        return np.fromiter(map(len, encoded), dtype=np.int32, count=len(texts))


def load_embedder(model: ResolvedModel) -> Embedder:
    """Return the embedder of a recipe, loaded where this is called: inside an actor."""
    return SentenceTransformerEmbedder(locate_model(model, "embedder").path)


class EmbedStage(RowStage):
    """Write ``candidates``, ``targets`` and ``existing``: one vector an example, in row order."""

    name: ClassVar[str] = "embed"
    title: ClassVar[str] = "embed the examples"
    can_use_gpu = True
    single_threaded = False
    columns: ClassVar[tuple[str, ...]] = ("example_id", "prompt", "response")  # what it reads

    def __init__(
        self,
        examples: StageOutput,
        model: ResolvedModel,
        config: EmbedderConfig | None = None,
        *,
        make_embedder: Callable[[], Embedder] | None = None,
        parent: StageOutput | None = None,
        tables: Collection[str] = tuple(TABLE_OF_ROLE.values()),
    ) -> None:
        """Embed the deduplicated examples.

        Args:
            examples: Of the deduplicate step.
            model: Named in the fingerprint, and loaded.
            config: How vectors are stored; rows of a shard.
            make_embedder: Called in place of loading the model.
            parent: The embeddings of the first rows, where a run goes on with further data.
            tables: Which tables of the examples to embed.
        """
        self._examples, self._model, self._parent = examples, model, parent
        self._config = config or EmbedderConfig()
        self._make_embedder, self._tables = make_embedder, tuple(tables)
        self._shard_rows = self._config.pool.shard_rows or DEFAULT_SHARD_ROWS
        rows = {role: examples.num_rows(role) for role in self._tables}
        done = {role: parent.num_rows(role) if parent else 0 for role in rows}
        ranges = tuple((role, rows[role] - done[role]) for role in rows)
        self._atoms = RowAtoms(ranges, ATOM_ROWS, first_rows=done)
        self.inputs = present(examples=examples, parent=parent)
        #: Only the model knows their dimension; see ``check_schema``.
        self.produces = dict.fromkeys(self._tables, pa.schema([]))

    def settings(self) -> dict[str, Any]:
        """Model, revision and storage type."""
        return {
            "model": self._model.name,
            "revision": self._model.revision,
            "dtype": self._config.dtype,
            "atom_rows": ATOM_ROWS,
        }

    def check_schema(self, table: str, schema: pa.Schema) -> None:
        """Refuse any schema but that of embeddings of one dimension."""
        if table == ERRORS_TABLE:
            super().check_schema(table, schema)
            return
        dimension = schema.field("embedding").type.list_size
        if not schema.equals(schemas.embeddings_schema(dimension, self._config.dtype)):
            raise StageError(
                f"stage '{self.name}', table '{table}': not a table of embeddings:\n{schema}"
            )

    def make_worker(self) -> Worker:
        """Load the embedder."""
        embedder = self._make_embedder() if self._make_embedder else load_embedder(self._model)

        def embed_shard(shard: Shard, sink: Sink) -> None:
            for span in self._atoms.spans(shard.start, shard.stop):
                columns = ["row_index", *self.columns]
                rows = self._examples.read_range(span.name, span.start, span.stop, columns)
                embedded = self._embed(rows, embedder)
                sink.write(span.name, embedded)
                sink.count("tokens", pc.sum(embedded["num_tokens"]).as_py() or 0)

        return embed_shard

    def texts_of(self, rows: pa.Table) -> list[str]:
        """Return what is embedded of some examples."""
        prompts = cast("list[str]", rows["prompt"].to_pylist())
        responses = cast("list[str]", rows["response"].to_pylist())
        return list(map(embedding_text, prompts, responses))

    def _embed(self, rows: pa.Table, embedder: Embedder) -> pa.Table:
        """Embed some examples in one call.

        Raises:
            StageError: If a vector is not finite, naming the example.
        """
        texts = self.texts_of(rows)
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
                "embedding": vectors_to_arrow(vectors, self._config.dtype),
            },
            schema=schemas.embeddings_schema(embedder.dimension, self._config.dtype),
        )


class EmbedPromptsStage(EmbedStage):
    """Write the vectors of the prompts alone, of one table: what questions are compared by."""

    name: ClassVar[str] = "embed_prompts"
    title: ClassVar[str] = "embed the prompts"

    def settings(self) -> dict[str, Any]:
        """Model, revision, and whose prompts."""
        return super().settings() | {"tables": list(self._tables)}

    def texts_of(self, rows: pa.Table) -> list[str]:
        """Return the prompts: no answer is looked at."""
        return cast("list[str]", rows["prompt"].to_pylist())
