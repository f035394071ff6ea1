"""What a network reads of an example: its embedding, and what its profile keeps of it.

Suffixes: N examples, D numbers an example, F those of its feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.runtime.output import StageOutput, column_matrix


@dataclass(frozen=True)
class ExampleInputs:
    """The finished steps that hold the inputs; without profiles the embedding alone is read."""

    embeddings: StageOutput
    profiles: StageOutput | None = None

    @property
    def steps(self) -> Mapping[str, StageOutput]:
        """The steps, by the name of what they hold."""
        steps = {"embeddings": self.embeddings}
        return steps if self.profiles is None else steps | {"profiles": self.profiles}

    def block_widths(self) -> tuple[int, ...]:
        """Return the widths of the blocks that a profile's feature is made of."""
        return (
            ()
            if self.profiles is None
            else tuple(self.profiles.manifest.facts()["blocks"].values())
        )

    def take(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Return the inputs of some rows of a table [N, D]; NaN where a profile failed."""
        found = [self.embeddings.take_rows(table, rows, ["embedding"])]
        if self.profiles is not None:
            found.append(self.profiles.take_rows(table, rows, ["feature", *SCALARS]))
        return _join(*found)

    def read(self, table: str, start: int, stop: int) -> np.ndarray:
        """Return the inputs of a range of rows of a table [N, D]."""
        found = [self.embeddings.read_range(table, start, stop, ["embedding"])]
        if self.profiles is not None:
            columns = ["feature", *SCALARS]
            found.append(self.profiles.read_range(table, start, stop, columns))
        return _join(*found)


def _join(embeddings: pa.Table, profiles: pa.Table | None = None) -> np.ndarray:
    vectors = column_matrix(embeddings["embedding"])
    if profiles is None:
        return vectors
    features = profiles["feature"]
    known = features.is_valid().to_numpy()
    feature_NF = np.full((len(known), features.type.list_size), np.nan, np.float32)
    if known.any():
        feature_NF[known] = column_matrix(features.drop_null())
    scalars: list[np.ndarray] = []
    for name in SCALARS:
        values = pc.cast(profiles[name], pa.float32()).to_numpy()
        scalars.append(np.log1p(values) if name.startswith("num_") else values)
    return np.concatenate(
        [vectors, feature_NF, np.stack(scalars, axis=1)], axis=1, dtype=np.float32
    )


SEED = 0  # of the random projections
SKETCH_SIDE = 32
TAIL_SHARE = 0.1  # of the response tokens, the most surprising, that ``tail_surprise`` averages

#: "answer" is the mean over response tokens, "last_prompt" the token before them, "sketch" the sum
#: over response tokens of R1 W^T (p - onehot(y)) outer R2 h, W the token embeddings: the gradient
#: at the output, seen from a layer below.
Pooling = Literal["answer", "last_prompt", "sketch"]


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """A unit-length vector of an example: the states of one layer, pooled over some tokens."""

    name: str
    layer: float  # share of the model's depth; 1 is the state that the output layer reads
    pooling: Pooling
    width: int = 256

    def layer_of(self, num_layers: int) -> int:
        """Return which of the model's ``num_layers + 1`` hidden states it reads."""
        return round(self.layer * num_layers)


#: The blocks that are stored, in this order: what pairs are told by (benchmarks/influence_cpu.md).
FEATURE_BLOCKS = (
    FeatureBlock("answer_60", 0.6, "answer"),
    FeatureBlock("last_prompt_73", 0.73, "last_prompt"),
    FeatureBlock("sketch_50", 0.5, "sketch"),
)


#: Of a profile, one number each.
SCALARS = (
    "nll",
    "nll_alone",
    "distance",
    "num_prompt_tokens",
    "num_response_tokens",
    "max_surprise",
    "tail_surprise",
)
