"""What training minimises: the squared error, or with it the order of helpers within rows.

Suffixes: B pairs of a batch, P all training pairs.
"""

# torch ships partial type information: what its functions return is annotated where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["squared_error", "row_order"]

CHUNK_PAIRS = 8  # pairs of a row that stay together in a batch, to be compared


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Pairs of one optimiser step, over all workers, or one worker's part of them."""

    at_B: Tensor  # positions among the training pairs
    group_B: Tensor  # pairs of a group go to one worker, and only they are compared

    def of_worker(self, shard: tuple[int, int]) -> Batch:
        """Return the part of worker (rank, number of workers)."""
        rank, world = shard
        if world == 1:
            return self
        mine_B = self.group_B % world == rank
        return Batch(self.at_B[mine_B], self.group_B[mine_B])


def shuffled_batches(
    loss: Loss, row_P: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Cut all pairs, given by their rows, into batches in a new random order."""
    order_P = torch.randperm(len(row_P), generator=generator)
    if loss == "squared_error":
        for at_B in order_P.split(batch_size):
            yield Batch(at_B, torch.arange(len(at_B)))
        return
    by_row_P = order_P[torch.sort(row_P[order_P], stable=True).indices]
    _, sizes = torch.unique_consecutive(row_P[by_row_P], return_counts=True)
    chunks = [c for row in by_row_P.split(sizes.tolist()) for c in row.split(CHUNK_PAIRS)]
    shuffled = torch.randperm(len(chunks), generator=generator).tolist()
    per_batch = max(1, batch_size // CHUNK_PAIRS)
    for start in range(0, len(chunks), per_batch):
        parts = [chunks[n] for n in shuffled[start : start + per_batch]]
        group = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p) for p in parts]))
        yield Batch(torch.cat(parts), group)


def loss_part(
    loss: Loss, predicted_B: Tensor, label_P: Tensor, mine: Batch, whole: Batch
) -> Tensor:
    """Return one worker's part of the loss of a batch; over the workers they sum to the whole.

    Squared error: the mean over the batch's pairs. Row order adds, over any two pairs of one row,
    log(1 + exp(-(s_p - s_q))) where the teacher puts p above q, weighted by how far: two helpers
    that differ by less than the labels' noise say nothing about their order.
    """
    label_B = label_P[mine.at_B]
    squared = (predicted_B - label_B).square().sum() / len(whole.at_B)
    if loss == "squared_error":
        return squared
    weight_BB = _margins(label_B, mine.group_B)
    total = _margins(label_P[whole.at_B], whole.group_B).sum().clamp(min=1e-12)
    wrong_BB = functional.softplus(predicted_B[None, :] - predicted_B[:, None])
    return squared + (weight_BB * wrong_BB).sum() / total


def _margins(label_B: Tensor, group_B: Tensor) -> Tensor:
    """Return by how much the row's pair p is above the column's pair q [B, B], of one group."""
    margin_BB = (label_B[:, None] - label_B[None, :]).clamp(min=0)
    return margin_BB * (group_B[:, None] == group_B[None, :])
