"""Which token comes next: greedy, or drawn from the request's own stream after min-p.

Suffixes: B requests of a batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose_tokens(
    logits_BV: Tensor, temperature_B: Tensor, min_p_B: Tensor, uniform_B: Tensor
) -> Tensor:
    """Choose the next token of every request.

    At temperature 0 it is the likeliest token, the first of equals. Above, the probabilities are
    p = softmax(logits / temperature); tokens with p < min_p * max(p) are left out; and the token is
    the one in whose share of the rest, laid out in the order of token ids, the uniform number
    falls. A row depends on its own numbers alone.

    Args:
        logits_BV: Logits.
        temperature_B: Temperatures, float64.
        min_p_B: Shares of the likeliest token's probability, float64.
        uniform_B: One number in [0, 1) a request, float64.

    Returns:
        Token ids [B], int64.

    Memory: 24 * B * V bytes where the temperature is above 0.
    Source: min-p sampling, arXiv 2407.01082, section 3; the temperature comes first, as in vLLM.
    """
    token_B = logits_BV.argmax(dim=1)
    sampled = torch.nonzero(temperature_B > 0)[:, 0]
    if len(sampled):
        scores_SV = logits_BV[sampled].double()
        scores_SV -= scores_SV.amax(dim=1, keepdim=True)
        # Relative to the likeliest token, whose weight is 1.
        weight_SV = torch.exp(scores_SV / temperature_B[sampled, None])
        weight_SV[weight_SV < min_p_B[sampled, None]] = 0.0
        sum_SV = weight_SV.cumsum(dim=1)
        # In (0, total]: a token of weight 0 is never the first to reach it.
        wanted_S1 = (1.0 - uniform_B[sampled, None]) * sum_SV[:, -1:]
        token_B[sampled] = torch.searchsorted(sum_SV, wanted_S1)[:, 0]
    return token_B
