"""A matrix of labels with its texts, as an .npz file, and its texts' embeddings.

Keys: helped_prompt, helped_response [I]; helper_prompt, helper_response [J]; utility [I, J], NaN
where a pair is not labelled. Suffixes: I rows, J columns, D embedding.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncift_ray.corpus.examples import embedding_text
from nncift_ray.embedders import SentenceTransformerEmbedder
from nncift_ray.engines.models import EMBEDDED_EMBEDDER, resolve_embedder
from nncift_ray.labels.sample import TRAIN, VALIDATION
from nncift_ray.network.step import BlockLabels

VALIDATION_SHARE = 0.1  # as the default of labels.validation_fraction


@dataclass(frozen=True)
class LabelMatrix:
    """All labels of some rows and columns, with unit vectors and lengths of their examples."""

    utility_IJ: np.ndarray
    helped_ID: np.ndarray
    helper_JD: np.ndarray
    helped_length_I2: np.ndarray  # log characters of prompt and response
    helper_length_J2: np.ndarray

    def with_cosines(self) -> LabelMatrix:
        """Return the same examples labelled by DELIFT (SE): a function of the embeddings alone."""
        cosine_IJ = self.helped_ID @ self.helper_JD.T
        return LabelMatrix(
            np.where(np.isfinite(self.utility_IJ), cosine_IJ, np.nan),
            self.helped_ID, self.helper_JD, self.helped_length_I2, self.helper_length_J2,
        )  # fmt: skip

    def with_lengths(self) -> LabelMatrix:
        """Return the same labels with lengths appended to the vectors, a tenth of a unit each."""
        helped, helper = (
            np.hstack([e, 0.1 * (size - size.mean(axis=0)) / size.std(axis=0)]).astype(np.float32)
            for e, size in (
                (self.helped_ID, self.helped_length_I2),
                (self.helper_JD, self.helper_length_J2),
            )
        )
        return LabelMatrix(
            self.utility_IJ, helped, helper, self.helped_length_I2, self.helper_length_J2
        )

    def draw(self, num_rows: int, num_columns: int, seed: int) -> BlockLabels:
        """Draw seen rows and columns; the quadrants are all other pairs (Q1 is not held out)."""
        generator = np.random.default_rng(seed)
        labelled_IJ = np.isfinite(self.utility_IJ)
        columns = np.flatnonzero(labelled_IJ.any(axis=0))
        seen_I = np.zeros(len(labelled_IJ), bool)
        seen_I[generator.permutation(len(labelled_IJ))[:num_rows]] = True
        seen_J = np.zeros(labelled_IJ.shape[1], bool)
        seen_J[generator.permutation(columns)[:num_columns]] = True
        helped, helper = np.nonzero(labelled_IJ)
        row, column = seen_I[helped], seen_J[helper]
        split = np.where(row, np.where(column, TRAIN, "Q2"), np.where(column, "Q3", "Q4"))
        split = split.astype(object)
        block = np.flatnonzero(row & column)
        split[generator.permutation(block)[: round(VALIDATION_SHARE * len(block))]] = VALIDATION
        return BlockLabels(
            helped_ED=self.helped_ID,
            helper_ED=self.helper_JD,
            helped_pos=helped,
            helper_pos=helper,
            helped_index=helped,
            helper_index=helper,
            split=split,
            utility=self.utility_IJ[helped, helper].astype(np.float32),
        )


def read_matrix(path: Path) -> LabelMatrix:
    """Read a matrix of labels and embed its texts (kept in the folder of temporary files)."""
    with np.load(path, allow_pickle=False) as arrays:
        texts = {
            side: list(zip(arrays[f"{side}_prompt"], arrays[f"{side}_response"], strict=True))
            for side in ("helped", "helper")
        }
        utility_IJ = arrays["utility"].astype(np.float64)
    vectors = _embed([embedding_text(str(x), str(y)) for side in texts.values() for x, y in side])
    lengths = {
        side: np.log1p([[len(str(x)), len(str(y))] for x, y in pairs])
        for side, pairs in texts.items()
    }
    num_rows = len(utility_IJ)
    return LabelMatrix(
        utility_IJ, vectors[:num_rows], vectors[num_rows:], lengths["helped"], lengths["helper"]
    )


def _embed(texts: list[str]) -> np.ndarray:
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"nncift-training-options-{digest}.npy"
    if not kept.exists():
        model = resolve_embedder(EMBEDDED_EMBEDDER)
        np.save(kept, SentenceTransformerEmbedder(model.path, num_threads=1).embed(texts))
    return np.load(kept, allow_pickle=False)
