"""From texts to unit vectors: a Protocol, sentence-transformers, and a hash for tests."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nncift_ray.errors import ModelError
from nncift_ray.models.tokenization import well_formed

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
