"""The InfluenceNetwork: two embeddings in, the influence of one example on the other out.

Suffixes: B pairs, U distinct helped, V distinct helpers, N examples, D embedding, H hidden units.
Source: NN-CIFT, arXiv 2502.09969, section 3.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nncift_ray.errors import ShapeError
from nncift_ray.network.factored import FactoredNetwork

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false


class FirstLayer(torch.autograd.Function):
    """W_row e_i + W_col e_j + bias of pairs, each distinct example projected once."""

    @staticmethod
    def forward(
        ctx: Any,
        weight_HX: Tensor,
        bias_H: Tensor,
        helped_UD: Tensor,
        helped_pos_B: Tensor,
        helper_VD: Tensor | None,
        helper_pos_B: Tensor | None,
    ) -> Tensor:
        """Return the sums [B, H]."""
        dim = helped_UD.shape[1]
        row_UH = torch.addmm(bias_H, helped_UD, weight_HX[:, :dim].t())
        sum_BH = row_UH.index_select(0, helped_pos_B)
        if helper_VD is not None and helper_pos_B is not None:
            sum_BH += (helper_VD @ weight_HX[:, dim + 1 :].t()).index_select(0, helper_pos_B)
        ctx.save_for_backward(helped_UD, helped_pos_B, helper_VD, helper_pos_B)
        ctx.inputs = weight_HX.shape[1]
        return sum_BH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight and bias; the separator's weights, which never act, 0."""
        (grad_BH,) = grads
        helped_UD, helped_pos_B, helper_VD, helper_pos_B = ctx.saved_tensors
        dim = helped_UD.shape[1]
        grad_HX = grad_BH.new_zeros(grad_BH.shape[1], ctx.inputs)
        sides = [(helped_UD, helped_pos_B, grad_HX[:, :dim])]
        if helper_VD is not None:
            sides.append((helper_VD, helper_pos_B, grad_HX[:, dim + 1 :]))
        for e_ND, pos_B, out_HD in sides:
            grad_NH = grad_BH.new_zeros(len(e_ND), grad_BH.shape[1])
            grad_NH.index_add_(0, pos_B, grad_BH)
            torch.mm(grad_NH.t(), e_ND, out=out_HD)
        return grad_HX, grad_BH.sum(dim=0), None, None, None, None


class InfluenceNetwork(nn.Module):
    """A network of one hidden layer over [e_i ; 0 ; e_j] (pairwise) or [e_i] (pointwise).

    Pairwise: 2D + 1 inputs, H ReLU units, one output: 205,101 parameters at D = 1024, H = 100.
    The output is in the unit of the labels it was trained on.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_hidden: int = 100,
        pointwise: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        """Make an untrained network over embeddings of length D, with H hidden units.

        With ``seed`` the weights come from a generator of their own, so that every worker starts
        the same; None takes torch's global generator.
        """
        super().__init__()
        self.embedding_dim, self.num_hidden, self.pointwise = embedding_dim, num_hidden, pointwise
        num_inputs = embedding_dim if pointwise else 2 * embedding_dim + 1
        self.hidden = nn.Linear(num_inputs, num_hidden)
        self.output = nn.Linear(num_hidden, 1)
        if seed is not None:
            # As torch's own Linear draws: uniform within 1 / sqrt(inputs), biases too.
            generator = torch.Generator().manual_seed(seed)
            for layer in (self.hidden, self.output):
                bound = 1.0 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, helped_BD: Tensor, helper_BD: Tensor | None = None) -> Tensor:
        """Return the influence [B] of each helper on its helped example, as the paper writes it.

        Raises:
            ShapeError: If a pairwise network gets no helpers, or a pointwise one gets some.
        """
        self._check_sides(helper_BD is not None)
        inputs = helped_BD
        if helper_BD is not None:
            separator_B1 = helped_BD.new_zeros(len(helped_BD), 1)
            inputs = torch.cat([helped_BD, separator_B1, helper_BD], dim=1)
        return self._output(self.hidden(inputs))

    def forward_pairs(
        self,
        helped_UD: Tensor,
        helped_pos_B: Tensor,
        helper_VD: Tensor | None = None,
        helper_pos_B: Tensor | None = None,
    ) -> Tensor:
        """Return the influence [B] of pairs given by positions: each distinct example goes once.

        Equal to `forward` on the gathered embeddings, up to rounding, at a fraction of the work
        where pairs share examples. Embeddings get no gradient.

        Raises:
            ShapeError: If a pairwise network gets no helpers, or a pointwise one gets some.
        """
        self._check_sides(helper_VD is not None and helper_pos_B is not None)
        layer = self.hidden
        hidden_BH: Tensor = FirstLayer.apply(
            layer.weight, layer.bias, helped_UD, helped_pos_B, helper_VD, helper_pos_B
        )
        return self._output(hidden_BH)

    def _check_sides(self, has_helpers: bool) -> None:
        if has_helpers == self.pointwise:
            raise ShapeError("a pointwise network reads one embedding, a pairwise network two")

    def _output(self, hidden_BH: Tensor) -> Tensor:
        return self.output(torch.relu(hidden_BH)).squeeze(1)

    @torch.no_grad()
    def rescale(self, mean: float, scale: float) -> None:
        """Make the network answer mean + scale times what it answers now."""
        self.output.weight.mul_(scale)
        self.output.bias.mul_(scale).add_(mean)

    def factored(self) -> FactoredNetwork:
        """Return a copy of the weights cut into row, column and output parts, for scoring."""
        weight, dim = _numpy(self.hidden.weight), self.embedding_dim
        return FactoredNetwork(
            w_row_HD=weight[:, :dim].copy(),
            b_row_H=_numpy(self.hidden.bias),
            w_col_HD=(weight[:, :0] if self.pointwise else weight[:, dim + 1 :]).copy(),
            w_H=_numpy(self.output.weight)[0],
            bias=float(self.output.bias.detach()[0]),
        )


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy."""
    return cast("NDArray[np.float32]", tensor.detach().cpu().numpy().copy())
