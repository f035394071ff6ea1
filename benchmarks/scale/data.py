"""Embeddings in clusters, drawn a tile at a time, and a network that was trained on some of them.

Suffixes: N examples, D embedding, C clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.pruning.networks import HIDDEN, train_on_cosines
from nncift_ray.network.factored import FactoredNetwork, Inputs, cosine_network
from nncift_ray.network.pair import fit_pair

DIM = 384
TILE = 10_000  # rows drawn at once, each tile from a stream of its own
TRAINED_ON = 10_000
BLOCK = 120  # rows and columns that the pair network is fitted to


@dataclass(frozen=True)
class Clusters:
    """Unit vectors about unit centres; sizes of clusters fall as 1 / rank.

    Attributes:
        num_clusters: Clusters.
        noise: Length of what is added to a centre. The cosine of two rows of one cluster is
            1 / (1 + noise^2) on average, of two others about that of their centres.
        rank: Directions that centres and noise lie in mostly, as embeddings of text do: the
            spread of direction d falls as (1 + d / rank)^-1.
    """

    name: str
    num_clusters: int
    noise: float
    rank: int = 48

    def describe(self) -> str:
        """Return the setting in words."""
        return (
            f"{self.num_clusters:,} clusters, sizes as 1 / rank; noise {self.noise} times as long"
            f" as a centre, so two rows of a cluster have cosine {1 / (1 + self.noise**2):.2f} on"
            f" average; spread of direction d as 1 / (1 + d / {self.rank})"
        )

    def tiles(self, num_rows: int, seed: int = 0) -> Iterator[np.ndarray]:
        """Yield the rows [TILE, D]; a longer run begins with the rows of a shorter one."""
        centre_CD = self._directions(self.num_clusters, np.random.default_rng([seed, 0]))
        weight_C = 1 / np.arange(1, self.num_clusters + 1)
        weight_C /= weight_C.sum()
        for number, start in enumerate(range(0, num_rows, TILE)):
            random = np.random.default_rng([seed, 1 + number])
            cluster_N = random.choice(self.num_clusters, size=TILE, p=weight_C)
            vector_ND = centre_CD[cluster_N] + self.noise * self._directions(TILE, random)
            vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
            yield vector_ND[: num_rows - start].astype(np.float32)

    def _directions(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw unit vectors."""
        spread_D = (1 / (1 + np.arange(DIM) / self.rank)).astype(np.float32)
        vector_ND = random.standard_normal((count, DIM), np.float32) * spread_D
        return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


CLUSTERED = Clusters("clustered", 2000, 0.8)
HARDER = Clusters("harder", 50, 2.0)
SETTINGS = {one.name: one for one in (CLUSTERED, HARDER)}


def train_network(clusters: Clusters, kind: str) -> FactoredNetwork:
    """Train a network on cosines of the first rows, the paper's or the pair network; or compare."""
    if kind == "cosine":
        return cosine_network(DIM)
    vector_ND = np.concatenate(list(clusters.tiles(TRAINED_ON)))
    return fit_on_cosines(vector_ND) if kind == "pair" else train_on_cosines(vector_ND)


def fit_on_cosines(vector_ND: np.ndarray, seed: int = 0) -> FactoredNetwork:
    """Fit the pair network to the cosines of a block of rows and columns, with noise as large."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(vector_ND))[: 2 * BLOCK]
    helped, helper = vector_ND[rows[:BLOCK]], vector_ND[rows[BLOCK:]]
    label_IJ = helped @ helper.T
    label_IJ += label_IJ.std() * random.standard_normal(label_IJ.shape)
    row_P, column_P = np.divmod(np.arange(label_IJ.size), BLOCK)
    inputs = Inputs.fit(vector_ND, (DIM,))
    helped, helper, sample_ND = map(inputs.prepare, (helped, helper, vector_ND))
    utility_P = label_IJ.ravel().astype(np.float64)
    network, _ = fit_pair(inputs, helped, helper, row_P, column_P, utility_P, sample_ND, HIDDEN)
    return network


def write_network(network: FactoredNetwork, path: Path) -> None:
    """Write a network for other processes."""
    np.savez(path, **network.to_state())


def read_network(path: Path) -> FactoredNetwork:
    """Read what `write_network` wrote."""
    with np.load(path) as arrays:
        return FactoredNetwork.from_state(dict(arrays))
