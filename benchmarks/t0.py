"""Real rows for benchmarks: distinct T0 examples, embedded once and kept on disk."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncift_ray.corpus.examples import Example, embedding_text, make_example_id
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.models import EMBEDDED_EMBEDDER, cache_dir, resolve_embedder

DATA = Path(__file__).parents[1].parent / "shared" / "data"
FILE = "t0_train.jsonl.gz"
CACHE = cache_dir() / "benchmarks"
ROWS_AT_ONCE = 1000  # embedded and written together: what a stopped run loses


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings of the first distinct rows of the corpus, as many as there are by now."""

    folder: Path  # one .npy a chunk of ROWS_AT_ONCE rows; named after the model

    @classmethod
    def of_packaged_model(cls, root: Path = CACHE) -> EmbeddingCache:
        """Return the cache of the packaged MiniLM's vectors."""
        revision = resolve_embedder(EMBEDDED_EMBEDDER).revision
        return cls(root / f"t0-{revision.replace('==', '-')}")

    def read(self, num_rows: int) -> np.ndarray:
        """Return the vectors [N, D] that are there, at most so many."""
        chunks = [np.load(path) for path in self._chunks()[: -(-num_rows // ROWS_AT_ONCE)]]
        return np.concatenate(chunks)[:num_rows] if chunks else np.empty((0, 0), np.float32)

    def fill(self, rows: Sequence[Example], say: Callable[[str], None]) -> float:
        """Embed the rows that are missing, on all cores; return the seconds it took.

        Only whole chunks are kept: a short one would be in the way of longer runs.
        """
        started = time.perf_counter()
        embedder: SentenceTransformerEmbedder | None = None
        for start in range(len(self._chunks()) * ROWS_AT_ONCE, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            if len(part) < ROWS_AT_ONCE:
                break
            embedder = embedder or _packaged_embedder()
            self._write(start // ROWS_AT_ONCE, embedder.embed(_texts(part)))
            say(f"embedded {start + len(part):,} of {len(rows):,} rows")
        return time.perf_counter() - started

    def _chunks(self) -> list[Path]:
        paths = sorted(self.folder.glob("*.npy"))
        return [path for n, path in enumerate(paths) if path.stem == f"{n:05d}"]

    def _write(self, number: int, vector_ND: np.ndarray) -> None:
        part = self.folder / f"{number:05d}.part"
        with part.open("wb") as file:
            np.save(file, vector_ND)
        part.rename(self.folder / f"{number:05d}.npy")


def embed_few(rows: Sequence[Example]) -> np.ndarray:
    """Return the vectors [N, D] of some rows, and keep nothing."""
    return _packaged_embedder().embed(_texts(rows))


def read_examples(data: Path, num_rows: int) -> list[Example]:
    """Return the first distinct examples of the corpus, as many as there are and are wanted."""
    path = data / FILE
    if not path.is_file():
        raise SystemExit(f"{path} is not there; give the folder of {FILE} with --data")
    found: dict[str, Example] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            name = make_example_id(record["prompt"], record["completion"])
            found.setdefault(name, Example(name, record["prompt"], record["completion"]))
            if len(found) == num_rows:
                break
    return list(found.values())


def _packaged_embedder() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(resolve_embedder(EMBEDDED_EMBEDDER).path)


def _texts(rows: Sequence[Example]) -> list[str]:
    return [embedding_text(row.prompt, row.response) for row in rows]
