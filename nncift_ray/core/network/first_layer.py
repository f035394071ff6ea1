"""The first layer on pairs given by positions, with a gradient that is written once.

Left to automatic differentiation, each half of the layer makes a gradient of the whole layer's size
and the two are added, which costs more than the products saved. Suffixes: B pairs, U distinct
helped, V distinct helpers, D embedding, H hidden units, X inputs (2D + 1, or D).
"""

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


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


def first_layer(
    weight_HX: Tensor,
    bias_H: Tensor,
    helped_UD: Tensor,
    helped_pos_B: Tensor,
    helper_VD: Tensor | None,
    helper_pos_B: Tensor | None,
) -> Tensor:
    """Return the first layer's sums [B, H] of pairs; embeddings get no gradient."""
    return cast(
        "Tensor",
        FirstLayer.apply(weight_HX, bias_H, helped_UD, helped_pos_B, helper_VD, helper_pos_B),
    )
