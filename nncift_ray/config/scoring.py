"""Recipe sections ``network`` and ``pair_scores``: what learns from labels, what scores pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nncift_ray.config.sections import PoolConfig, Section


class NetworkConfig(Section):
    """The InfluenceNetwork and its training (defaults: NN-CIFT, arXiv 2502.09969).

    Attributes:
        num_hidden: Hidden units.
        num_epochs: Most epochs, where they make ``min_steps`` optimiser steps or more.
        min_steps: A small sample gets more epochs (and patience) until they would make this many
            steps; 0 keeps to the paper's epochs.
        batch_size: Pairs a step, over all workers together.
        learning_rate: Adam's.
        patience: Epochs without a better held-out loss before training stops.
        seed: Seed of initial weights and batch order.
        num_workers: Ray Train workers (CPU); another number changes the last bits of the weights.
    """

    num_hidden: int = Field(default=100, ge=1)
    num_epochs: int = Field(default=20, ge=1)
    min_steps: int = Field(default=20_000, ge=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    patience: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=1, ge=1)


class PairScoresConfig(Section):
    """The all-pairs stage.

    Attributes:
        mode: "exact" scores every pair.
        top_k: Helpers kept of every row.
        column_tile: Columns scored at a time: the bound of a worker's memory. Never changes a
            result.
        pool: Actors.
    """

    mode: Literal["exact"] = "exact"
    top_k: int = Field(default=64, ge=1)
    column_tile: int = Field(default=65_536, ge=16)
    pool: PoolConfig = PoolConfig()
