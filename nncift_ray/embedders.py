"""Embed: texts to unit vectors, on GPU actors where there are any."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.corpus.examples import embedding_text
from nncift_ray.engines.models import ResolvedModel
from nncift_ray.engines.tokens import well_formed
from nncift_ray.errors import ModelError, StageError
from nncift_ray.runtime import schemas
from nncift_ray.runtime.output import ERRORS_TABLE, Sink, StageOutput, vectors_to_arrow
from nncift_ray.runtime.schemas import TABLE_OF_ROLE
from nncift_ray.runtime.step import RowAtoms, RowStage, Shard, Worker

UNLIMITED = 1 << 20  # tokens

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@runtime_checkable
class Embedder(Protocol):
    """A model that turns texts into unit vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read; the rest is cut off."""
        ...

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

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 64,
        max_length: int | None = None,
        revision: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_path: A local folder, or the id of a model on the hub.
            device: "auto" (CUDA if there is one), "cpu", "cuda", ...
            batch_size: Texts computed at once.
            max_length: Tokens read of a text; None is the model's own limit, more than that is cut
                to it.
            revision: Commit on the hub.
            num_threads: CPU threads of torch; None leaves them alone.

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
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model: Any = SentenceTransformer(
                str(model_path),
                device=device,
                revision=revision,
                trust_remote_code=False,
                local_files_only=local,
                model_kwargs={"use_safetensors": True},  # never a pickle
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no embedder can be loaded from {model_path}: {error}") from error
        own_limit = self._model.max_seq_length or 512
        if math.isinf(own_limit):  # a model of word vectors reads any length, and cannot cut
            self.max_length = UNLIMITED
        else:
            self.max_length = min(max_length or int(own_limit), int(own_limit))
            self._model.max_seq_length = self.max_length
        self._has_bare_tokenizer = not callable(self._model.tokenizer)  # of word vectors
        self._batch_size = batch_size
        self.dimension = int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors [N, D], in the order of the texts.

        Texts of similar length are computed together, so that little of a batch is padding.
        """
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors_ND: F32 = self._model.encode(
            [well_formed(texts[i]) for i in order],
            batch_size=self._batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
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
            bare = tokenizer.encode_batch(clean, add_special_tokens=False)
            return np.fromiter((len(each) for each in bare), dtype=np.int32, count=len(texts))
        encoded = tokenizer(
            clean,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        return np.fromiter(map(len, encoded), dtype=np.int32, count=len(texts))


class HashEmbedder:
    """Unit vectors that sum a pseudo-random vector per word: shared words make texts similar."""

    def __init__(self, dimension: int = 16) -> None:
        """Make an embedder of ``dimension`` numbers a text."""
        self.dimension = dimension
        self.max_length = UNLIMITED

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors [N, D], in the order of the texts."""
        vectors_ND = np.zeros((len(texts), self.dimension))
        for n, text in enumerate(texts):
            for word in text.split() or [""]:
                seed = zlib.crc32(word.encode("utf-8", errors="surrogatepass"))
                vectors_ND[n] += np.random.default_rng(seed).standard_normal(self.dimension)
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return (vectors_ND / norms_N1).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> I32:
        """Return the words of each text [N]."""
        return np.fromiter((len(t.split()) for t in texts), dtype=np.int32, count=len(texts))


# Embed: texts to unit vectors, on GPU actors where there are any.

#: Texts that are sorted by length and padded together.
ATOM_ROWS = 256
DEFAULT_SHARD_ROWS = 1024

EmbedderFactory = Callable[[], Embedder]


class EmbedStage(RowStage):
    """Write ``candidates``, ``targets`` and ``existing``: one vector an example, in row order."""

    name: ClassVar[str] = "embed"
    isolated: ClassVar[bool] = True

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
