"""A deeper InfluenceNetwork: to see whether depth would pay, not to score a corpus with.

The score of one hidden layer splits into a row part and a column part that are computed once an
example. Of a deeper network only the first layer does: every pair has to go through the others,
which is H times the work a pair (H hidden units). So scoring takes networks of one hidden layer.
Suffixes: B pairs, E examples, D embedding, H hidden units.
"""

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.network.influence_network import InfluenceNetwork

PAIRS_AT_ONCE = 65_536  # pairs scored at once: 26 MB at 100 hidden units


class DeepInfluenceNetwork(InfluenceNetwork):
    """An InfluenceNetwork with further hidden layers of the same width behind the first.

    Its first and its output layer start from the same weights as those of an `InfluenceNetwork` of
    the same seed, so that depth alone tells them apart.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_hidden: int = 100,
        pointwise: bool = False,
        *,
        depth: int = 2,
        seed: int | None = None,
    ) -> None:
        """Make an untrained network; arguments as of `InfluenceNetwork`.

        Args:
            embedding_dim: Length D of one embedding.
            num_hidden: Hidden units of every hidden layer.
            pointwise: Read one embedding in place of a pair.
            depth: Hidden layers, 1 or more.
            seed: Draw the weights from a generator of their own.

        Raises:
            ValueError: If ``depth`` is less than 1.
        """
        if depth < 1:
            msg = f"depth must be at least 1, got {depth}"
            raise ValueError(msg)
        super().__init__(embedding_dim, num_hidden, pointwise, seed=seed)
        self.depth = depth
        self.further = nn.ModuleList(nn.Linear(num_hidden, num_hidden) for _ in range(depth - 1))
        if seed is not None:
            generator = torch.Generator().manual_seed(seed + 1)
            bound = 1.0 / math.sqrt(num_hidden)
            for parameter in self.further.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def read_out(self, hidden_BH: Tensor) -> Tensor:
        """Return the influence [B] from the first layer's sums [B, H]."""
        for layer in self.further:
            hidden_BH = layer(torch.relu(hidden_BH))
        return super().read_out(hidden_BH)

    def factored(self) -> FactoredNetwork:
        """Return the weights for scoring, of a network of one hidden layer.

        Raises:
            ValueError: If there are more: such a score does not split into row and column parts.
        """
        if self.depth > 1:
            msg = f"a network of {self.depth} hidden layers does not factor: score with depth 1"
            raise ValueError(msg)
        return super().factored()

    @torch.no_grad()
    def predict(
        self,
        helped_ED: NDArray[np.floating],
        helper_ED: NDArray[np.floating] | None,
        helped_pos: NDArray[np.integer],
        helper_pos: NDArray[np.integer] | None,
    ) -> NDArray[np.float32]:
        """Return the influence [P] of pairs given by positions, a bounded number at a time."""
        row_EH = self.project_rows(_tensor(helped_ED))
        column_EH = None if helper_ED is None else self.project_columns(_tensor(helper_ED))
        parts: list[Tensor] = []
        for start in range(0, len(helped_pos), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            hidden_BH = row_EH[helped_pos[part].astype(np.int64)]
            if column_EH is not None and helper_pos is not None:
                hidden_BH = hidden_BH + column_EH[helper_pos[part].astype(np.int64)]
            parts.append(self.read_out(hidden_BH))
        return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)


def _tensor(embeddings: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(embeddings, dtype=np.float32, order="C"))
