"""The Arrow schema of every table of an evaluation.

``row_index`` numbers the rows of one test set from 0. A cell is one method, budget, seed and mode;
its tables lie in stages of its own, so a cell that is there already costs nothing.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import pyarrow as pa

from nncift_ray.storage.schemas import FIDELITY

BETTER, WORSE, NOISE = "better", "worse", "noise"
#: The step of COSTS that is a method's whole way.
ALL_STEPS = "all"

# Rows of a test set that no model is tested on, since they are among the candidates.
LEFT_OUT = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # same_example | same_prompt
    ]
)

# One row: how a model was fine-tuned on a subset.
TUNING = pa.schema(
    [
        pa.field("num_examples", pa.int64(), nullable=False),  # trained on, misfits left out
        pa.field("num_tokens", pa.int64(), nullable=False),  # of one epoch, prompts included
        pa.field("num_steps", pa.int64(), nullable=False),  # optimiser steps, all epochs
        pa.field("train_loss", pa.list_(pa.float64()), nullable=False),  # by epoch, nats a token
        pa.field("seconds", pa.float64(), nullable=False),  # training alone
    ]
)

# The examples that a held-out question is shown with, nearest first.
CONTEXTS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_index", pa.list_(pa.int32()), nullable=False),  # candidates' row numbers
        pa.field("cosine", pa.list_(pa.float32()), nullable=False),
    ]
)

# How likely the model finds the reference answers, teacher-forced.
LIKELIHOODS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),  # nats a token, end of text included
        pa.field("num_tokens", pa.int32(), nullable=False),  # of the reference, end included
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
    ]
)

RESPONSES = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),  # written
        pa.field("finish_reason", pa.string(), nullable=False),  # stop | length
    ]
)

VERDICTS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.int32()),  # 1..5; null: the verdict could not be read
        pa.field("verdict", pa.string(), nullable=False),  # as the judge wrote it
    ]
)

GRADES = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),  # rouge1 | rougeL | bge | exact_match
        pa.field("value", pa.float64()),  # null: the metric does not apply to the row
    ]
)

_CELL = [
    pa.field("method", pa.string(), nullable=False),
    pa.field("budget", pa.float64(), nullable=False),  # of the candidates; 0 initial, 1 full
    pa.field("num_examples", pa.int64(), nullable=False),  # in the subset
    pa.field("mode", pa.string(), nullable=False),  # icl | tuned | none (initial)
    pa.field("test", pa.string(), nullable=False),
    pa.field("metric", pa.string(), nullable=False),
]

# Every value there is; `seed` tells random subsets apart, 0 elsewhere. A row that a metric does not
# apply to (an exact match of a free text) is none of its rows.
SCORES = pa.schema(
    [
        *_CELL[:3],
        pa.field("seed", pa.int32(), nullable=False),
        *_CELL[3:],
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("value", pa.float64()),  # null: failed or unreadable; counted, never dropped
    ]
)

# One row a method, budget, mode, test set and metric; random's seeds are one row.
SUMMARY = pa.schema(
    [
        *_CELL,
        pa.field("num_seeds", pa.int32(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),  # with a value, of one seed
        pa.field("num_missing", pa.int64(), nullable=False),  # without one, over all seeds
        pa.field("mean", pa.float64()),
        pa.field("low", pa.float64()),  # bootstrap interval of the mean, over rows
        pa.field("high", pa.float64()),
        pa.field("seed_deviation", pa.float64()),  # of the means of random's seeds
        # Against random of the same budget, mode, test and metric, row by row; null for random
        # itself and where there is none.
        pa.field("difference", pa.float64()),
        pa.field("difference_low", pa.float64()),
        pa.field("difference_high", pa.float64()),
        pa.field("p_value", pa.float64()),  # of this comparison alone
        pa.field("adjusted_p_value", pa.float64()),  # over the methods of one such comparison
        # better | worse | noise, by the adjusted one; null where random is one subset only, of
        # which nobody knows how far others lie from it.
        pa.field("verdict", pa.string()),
    ]
)

# What each step cost, measured; of a corpus that was not run, extrapolated and marked so.
COSTS = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),  # a stage's name, or "all"
        pa.field("num_candidates", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("accelerator_seconds", pa.float64(), nullable=False),  # GPU, over all actors
        pa.field("cpu_seconds", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int64()),  # computed by a language model; null: it asks none
        pa.field("price", pa.float64(), nullable=False),  # US dollars
        pa.field("extrapolated", pa.bool_(), nullable=False),
        # Whether another method rests on the same work. Each method is charged for it in full, as
        # if it were the only one, so methods do not add up.
        pa.field("shared", pa.bool_(), nullable=False),
        # Of the pairs (or examples) there are, the share that the teacher was asked about; null of
        # a step that asks no teacher.
        pa.field("labelled_fraction", pa.float64()),
    ]
)

# How near a network's subset and influence come to its teacher's.
AGREEMENT = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),  # the method it is held against
        pa.field("budget", pa.float64(), nullable=False),
        pa.field("overlap", pa.float64(), nullable=False),  # shared picks / picks
        pa.field("chance_overlap", pa.float64(), nullable=False),  # of two random subsets
        pa.field("objective", pa.float64()),  # of the method's picks, by the teacher's labels
        pa.field("teacher_objective", pa.float64()),  # of the teacher's picks, by the same
        pa.field("random_objective", pa.float64()),  # of random picks, by the same: the mean
    ]
)

# FIDELITY of every network that a method of the evaluation fitted.
NETWORK_FIDELITY = FIDELITY.insert(0, pa.field("method", pa.string(), nullable=False))

# The picks of every subset but the whole corpus, in the order of its rows.
SUBSETS = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("budget", pa.float64(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),  # as in SCORES
        pa.field("example_id", pa.string(), nullable=False),
    ]
)

# Some held-out rows with what was answered: for people to look at.
ANSWERS = pa.schema(
    [
        pa.field("test", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("budget", pa.float64(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),  # as in SCORES
        pa.field("response", pa.string()),  # null: none was written
        pa.field("verdict", pa.int32()),  # the judge's, 1..5; null: none, or unreadable
    ]
)
