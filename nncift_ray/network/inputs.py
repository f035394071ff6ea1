"""What a network reads of an example: its embedding and, in the pair network, its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nncift_ray.profiles.blocks import SCALARS
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
