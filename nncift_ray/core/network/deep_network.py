"""A deeper InfluenceNetwork: to see whether depth would pay, not to score a corpus with.

The score of one hidden layer splits into a row part and a column part that are computed once an
example. Of a deeper network only the first layer does: every pair has to go through the others,
which is H times the work a pair (H hidden units). So scoring takes networks of one hidden layer.
Suffixes: B pairs, H hidden units.
"""

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nncift_ray.core.network.factored import FactoredNetwork
from nncift_ray.core.network.influence_network import InfluenceNetwork


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
