"""Recipe sections ``network`` and ``pair_scores``: what learns from labels, what scores pairs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from nncift_ray.config.sections import PoolConfig, Section, parse_count

#: A number of bytes, or one such as "4G" (decimal).
ByteCount = Annotated[int, BeforeValidator(parse_count)]


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
        standardise: Learn labels of mean 0 and deviation 1; the paper's network learns them raw.
        loss: "squared_error" (the paper's), or "row_order", which adds a penalty for helpers of a
            row in another order than the teacher's.
        centre_rows: Learn what each row's mean label leaves; a linear model of the helped example
            predicts the mean and is added to the score.
        ensemble_size: Networks whose mean is the score; their spread is kept for labelled pairs.
            Scoring costs that many times as much.
    """

    num_hidden: int = Field(default=100, ge=1)
    num_epochs: int = Field(default=20, ge=1)
    min_steps: int = Field(default=20_000, ge=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    patience: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=1, ge=1)
    standardise: bool = True
    loss: Literal["squared_error", "row_order"] = "squared_error"
    centre_rows: bool = False
    ensemble_size: int = Field(default=1, ge=1)

    @property
    def num_units(self) -> int:
        """Hidden units that scoring sees: those of all members, and two that carry a row's mean."""
        return self.ensemble_size * (self.num_hidden + (2 if self.centre_rows else 0))


class PairScoresConfig(Section):
    """The all-pairs stage.

    Attributes:
        by: "network" predicts the influence of every pair from a sample of labels. "teacher" takes
            the teacher's own labels for it: of every pair, or of whole rows (all candidates as
            helpers) up to ``labels.label_pairs``; no network is trained.
        mode: "exact" scores every pair. "pruned" scores the pairs that an index of the network's
            own features proposes. "auto" measures both on this machine and takes the faster.
        top_k: Helpers kept of every row.
        generator: What the index is built on: how columns help sampled rows ("anchor"), parabolas
            in place of the hidden units ("quadratic"), or the embeddings ("cosine", a baseline).
        index: How columns are listed: "ivf" looks through some cells of them, "hnsw" walks a graph,
            "flat" looks at all; "auto" is "ivf".
        min_recall: Share of the true top K that a pruned run must find, on average over rows.
        recall_rows: Rows the search is tuned on, and as many others that it is checked on.
        on_low_recall: What to do where even the widest search finds too little: stop, or go exact.
        seed: Of the samples that the index is built, tuned and checked on.
        activation_dtype: How projected activations are stored; "float16" halves them, and the
            report says what that does to scores.
        half: Score in half precision, on GPUs only.
        dense: Also write all scores, as a table of one list a row; exact mode only.
        max_dense_bytes: Largest such table.
        max_worker_bytes: Memory that one worker may take, estimated before the stage starts. More
            lets it keep more columns in memory. Never changes a result.
        column_tile: Columns scored at a time. Never changes a result.
        pool: Actors; each scores with as many threads as it has CPUs.
    """

    by: Literal["network", "teacher"] = "network"
    mode: Literal["exact", "pruned", "auto"] = "exact"
    top_k: int = Field(default=64, ge=1)
    generator: Literal["anchor", "quadratic", "cosine"] = "anchor"
    index: Literal["auto", "ivf", "hnsw", "flat"] = "auto"
    min_recall: float = Field(default=0.98, gt=0, le=1)
    recall_rows: int = Field(default=256, ge=1)
    on_low_recall: Literal["stop", "exact"] = "stop"
    seed: int = Field(default=0, ge=0)
    activation_dtype: Literal["float32", "float16"] = "float32"
    half: bool = False
    dense: bool = False
    max_dense_bytes: ByteCount = 2 * 10**9
    max_worker_bytes: ByteCount = 4 * 10**9
    column_tile: int = Field(default=65_536, ge=16)
    pool: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _dense_needs_every_pair(self) -> Self:
        if self.dense and self.mode != "exact":
            raise ValueError(f"dense writes every pair, so mode must be exact (given: {self.mode})")
        if self.dense and self.by == "teacher":
            raise ValueError(
                "dense writes the network's scores, and by is teacher: the labels are in the table "
                "labels of the stage utility; leave dense out"
            )
        return self
