"""Planted worlds: pools whose subsets have a known value, and the scores that a run would see.

Every example belongs to a cluster (a skill). Clusters differ in size as 1/rank. Some examples are
wrong, some are near copies of another one, some belong nowhere. What is seen are scores
s_ij = row_i + hub_j + strength * cos(e_i, e_j) + noise, with hubs that say nothing of worth.
Suffixes: N examples, C clusters, S picks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLEAN, WRONG, COPY, NOWHERE = range(4)
SHARES = (0.65, 0.12, 0.15, 0.08)
NUM_CLUSTERS, WIDTH = 40, 48
ROWS = 0.84  # spread of row effects: of 9,504 DELIFT labels, rows 39 %, columns 6 %, pairs 55 %
HELP = 0.35  # of a helper in the middle of a row's cluster


@dataclass(frozen=True)
class World:
    """One pool.

    Attributes:
        cluster_N: Cluster of each example.
        kind_N: CLEAN, WRONG, COPY or NOWHERE.
        copy_of_N: The example that a copy repeats; of others themselves.
        help_NN: What a clean example j truly does for a clean row i, in [0, 1].
        vector_ND: Embeddings, as seen.
        score_NN: Scores, as seen.
        pair_NN: Their part that is of the pair: no row's and no hub's own effect.
    """

    cluster_N: np.ndarray
    kind_N: np.ndarray
    copy_of_N: np.ndarray
    help_NN: np.ndarray
    vector_ND: np.ndarray
    score_NN: np.ndarray
    pair_NN: np.ndarray

    def values(self, order_S: np.ndarray) -> tuple[float, float]:
        """Return what a subset is worth: by rows (noisy or), and by clusters (learning curves).

        A wrong pick undoes a tenth of what its cluster has; a copy of a pick adds nothing.
        """
        useful = order_S[np.isin(self.kind_N[order_S], (CLEAN, COPY))]
        distinct = np.unique(self.copy_of_N[useful])
        wrong = self.cluster_N[order_S[self.kind_N[order_S] == WRONG]]
        keep_C = 0.9 ** np.bincount(wrong, minlength=NUM_CLUSTERS)
        rows = np.isin(self.kind_N, (CLEAN, COPY))
        helped_N = 1 - np.prod(1 - self.help_NN[:, distinct], axis=1)
        by_rows = (helped_N * keep_C[self.cluster_N])[rows].sum() / rows.sum()
        count_C = np.bincount(self.cluster_N[distinct], minlength=NUM_CLUSTERS)
        size_C = np.bincount(self.cluster_N[rows], minlength=NUM_CLUSTERS)
        curve_C = (1 - (1 + count_C) ** -0.5) * keep_C
        return float(by_rows), float((np.sqrt(size_C) * curve_C).sum() / np.sqrt(size_C).sum())

    def num_covered(self, order_S: np.ndarray) -> int:
        """Return how many clusters have a clean pick or a copy of one."""
        useful = order_S[np.isin(self.kind_N[order_S], (CLEAN, COPY))]
        return len(np.unique(self.cluster_N[useful]))


def draw_world(seed: int, num: int, *, hubs: float, strength: float, noise: float) -> World:
    """Draw a pool of `num` examples; `hubs` and `noise` are spreads, beside that of the cosines."""
    rng = np.random.default_rng(seed)
    share_C = 1 / np.arange(1, NUM_CLUSTERS + 1)
    cluster_N = rng.choice(NUM_CLUSTERS, num, p=share_C / share_C.sum())
    kind_N = rng.choice(4, num, p=SHARES)
    middle_CD = rng.standard_normal((NUM_CLUSTERS, WIDTH))
    latent_ND = middle_CD[cluster_N] + 0.8 * rng.standard_normal((num, WIDTH))
    copy_of_N = np.arange(num)
    for j in np.flatnonzero(kind_N == COPY):
        others = np.flatnonzero((kind_N == CLEAN) & (cluster_N == cluster_N[j]))
        if len(others) == 0:
            kind_N[j] = CLEAN
            continue
        copy_of_N[j] = rng.choice(others)
        latent_ND[j] = latent_ND[copy_of_N[j]] + 0.1 * rng.standard_normal(WIDTH)
    nowhere = kind_N == NOWHERE
    latent_ND[nowhere] = 1.3 * rng.standard_normal((int(nowhere.sum()), WIDTH))
    true_NN = _cosines(latent_ND)
    same_NN = cluster_N[:, None] == cluster_N
    help_NN = np.where(same_NN, HELP * np.clip(true_NN, 0, 1), 0.0)
    help_NN[~np.isin(kind_N, (CLEAN, COPY))] = 0
    help_NN[:, ~np.isin(kind_N, (CLEAN, COPY))] = 0
    seen_ND = latent_ND + 0.5 * rng.standard_normal((num, WIDTH))
    cosine_NN = _cosines(seen_ND)
    spread = cosine_NN.std()
    hub_N = hubs * spread * (rng.standard_gamma(1.0, num) - 1)
    row_N = ROWS * spread * rng.standard_normal(num)
    noise_NN = noise * spread * rng.standard_normal((num, num))
    pair_NN = strength * cosine_NN + noise_NN
    score_NN = row_N[:, None] + hub_N + pair_NN
    vector_ND = seen_ND / np.linalg.norm(seen_ND, axis=1, keepdims=True)
    vector_ND = vector_ND.astype(np.float32)
    return World(cluster_N, kind_N, copy_of_N, help_NN, vector_ND, score_NN, pair_NN)


def _cosines(vector_ND: np.ndarray) -> np.ndarray:
    unit_ND = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return unit_ND @ unit_ND.T


def best_known(world: World, count: int) -> np.ndarray:
    """Return the picks of greedy on the true value by rows, which sees what no method sees."""
    usable = np.flatnonzero(world.kind_N == CLEAN)
    left_N, order = np.ones(len(world.kind_N)), []
    rows = world.help_NN.any(axis=1)
    for _ in range(min(count, len(usable))):
        gain = (left_N * rows) @ world.help_NN[:, usable]
        gain[np.isin(usable, order)] = -1
        order.append(int(usable[gain.argmax()]))
        left_N *= 1 - world.help_NN[:, order[-1]]
    return np.array(order)
