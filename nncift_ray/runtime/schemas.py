"""The Arrow schema of every table the system writes.

Row = helped example, column = helper example, everywhere. ``row_index`` numbers the examples of one
role (candidates, targets or existing data) from 0 in the order of their sources; ``block`` says
which pairs a row speaks of: ``within`` (candidates x candidates), ``cross`` (targets x candidates),
or ``points`` (candidates on their own, of a pointwise teacher).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

# EXISTING: what the model already has; read by conditional objectives, never selected.
CANDIDATE, TARGET, EXISTING = "candidate", "target", "existing"
# What no candidate may hold words of: benchmarks and tests; they make no examples.
BENCHMARK = "benchmark"
#: The table that holds the examples of each role.
TABLE_OF_ROLE = {CANDIDATE: "candidates", TARGET: "targets", EXISTING: "existing"}
# POINTS: candidates on their own, for teachers that score examples instead of pairs.
WITHIN, CROSS, POINTS = "within", "cross", "points"

ERRORS = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("source", pa.string()),  # file, or None for rows past ingest
        pa.field("line", pa.int64()),  # 1-based line or record number in the file
        pa.field("example_id", pa.string()),
        pa.field("reason", pa.string(), nullable=False),  # short code, e.g. "no_response"
        pa.field("message", pa.string(), nullable=False),  # a sentence for a person
        pa.field("excerpt", pa.string()),  # at most 200 characters of the row
    ]
)

# Ingest reads each source file on its own; duplicates are still inside.
RECORDS = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),  # the original record as JSON
        pa.field("source", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("layout", pa.string(), nullable=False),
        # JSON text of a corpus.examples.Conversation; null: one user and one assistant turn
        pa.field("conversation", pa.string()),
    ]
)

# One table per role (TABLE_OF_ROLE), exact duplicates collapsed on the first one.
EXAMPLES = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("layout", pa.string(), nullable=False),
        # JSON text of a corpus.examples.Conversation; null: one user and one assistant turn
        pa.field("conversation", pa.string()),
        pa.field("num_duplicates", pa.int32(), nullable=False),  # further copies, now collapsed
    ]
)

# Of a run that goes on from another: the parent's examples of which new data hold further copies.
COPIES = pa.schema(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("num_duplicates", pa.int32(), nullable=False),  # further copies, all in new data
    ]
)

_LEFT_OUT_CANDIDATE = [
    pa.field("example_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("line", pa.int64(), nullable=False),
    pa.field("excerpt", pa.string(), nullable=False),  # of the prompt
]

# Candidates left out for an earlier one that is nearly the same.
NEAR_DUPLICATES = pa.schema(
    [
        *_LEFT_OUT_CANDIDATE,
        pa.field("twin_example_id", pa.string(), nullable=False),  # a candidate that stays
        pa.field("twin_source", pa.string(), nullable=False),
        pa.field("twin_line", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of prompts or responses: the lower
    ]
)

# Candidates that cannot be picked, since another asks the same in other words.
REPEATS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("repeats", pa.int64(), nullable=False),  # row_index of the one that can
        pa.field("repeats_example_id", pa.string(), nullable=False),
        # Of the two embeddings; null where many have the answer, and the words decided.
        pa.field("cosine", pa.float32()),
    ]
)

# Candidates left out for what they hold of a benchmark or a test set.
CONTAMINATED = pa.schema(
    [
        *_LEFT_OUT_CANDIDATE,
        pa.field("test_source", pa.string(), nullable=False),
        pa.field("test_line", pa.int64(), nullable=False),
        pa.field("words", pa.string()),  # the run of words they share; null: the whole prompt
    ]
)

MEASUREMENTS = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("helped_index", pa.int64(), nullable=False),
        # Null for the helped example alone: what utilities are taken against, or a pointwise label.
        pa.field("helper_index", pa.int64()),
        # train | validation | Q1 | Q2 | Q3 | Q4 (points: no Q1..Q3), null for baselines
        pa.field("split", pa.string()),
        pa.field("value", pa.float64(), nullable=False),  # teacher's unit, e.g. DELIFT distance
        pa.field("num_tokens", pa.int32(), nullable=False),  # prompt and response
        pa.field("num_cached_tokens", pa.int32(), nullable=False),  # of them read from a cache
        # What had to be computed at the least: a shared prefix once, then what no whole block of
        # the cache covers.
        pa.field("num_minimal_tokens", pa.int32(), nullable=False),
    ]
)

LABELS = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("helped_index", pa.int64(), nullable=False),
        pa.field("helper_index", pa.int64()),  # null for pointwise teachers
        pa.field("split", pa.string(), nullable=False),
        pa.field("utility", pa.float32(), nullable=False),  # raw and signed
    ]
)

TRAINING_HISTORY = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("train_loss", pa.float64(), nullable=False),
        pa.field("validation_loss", pa.float64(), nullable=False),
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("helped_index", pa.int64(), nullable=False),
        pa.field("helper_index", pa.int64()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("utility", pa.float32(), nullable=False),
        pa.field("influence", pa.float32(), nullable=False),
    ]
)

FIDELITY = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        # network | additive_ridge | cosine | row_column_mean | mean | zero | random
        pa.field("model", pa.string(), nullable=False),
        pa.field("num_pairs", pa.int64(), nullable=False),
        pa.field("mse", pa.float64()),  # label unit squared; null of a cosine, like the next two
        pa.field("scaled_mse", pa.float64()),  # labels min-max scaled to [0, 1]
        pa.field("r2", pa.float64()),  # null where the labels do not vary
        pa.field("spearman", pa.float64()),  # null where either side does not vary
        # Of pairs (network.fidelity says how each is defined): null in "points", and where not
        # defined. num_rows is how many were ranked; low and high are 95 % intervals.
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("row_spearman", pa.float64()),
        *(
            pa.field(f"{measure}{end}", pa.float64())
            for measure in ("interaction_correlation", "capture", "capture_1pct")
            for end in ("", "_low", "_high")
        ),
    ]
)

TOP_HELPERS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("helper_index", pa.list_(pa.int32()), nullable=False),  # best first
        pa.field("influence", pa.list_(pa.float32()), nullable=False),  # raw and signed
    ]
)

# Of every pair of a block that is scored exactly. Of a pruned one they cover the pairs of rows held
# out to measure recall, each scored against every column, and the extremes whatever was kept too.
SCORE_STATISTICS = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("num_scored", pa.int64(), nullable=False),  # pairs, for the lists or sums
        pa.field("num_pairs", pa.int64(), nullable=False),  # that the statistics cover
        pa.field("min", pa.float64(), nullable=False),
        pa.field("max", pa.float64(), nullable=False),
        pa.field("sum", pa.float64(), nullable=False),
        pa.field("sum_of_squares", pa.float64(), nullable=False),
    ]
)

# How many scores of a block lie in each bin; `core.pairs.score_histogram` has the bins' edges.
SCORE_HISTOGRAM = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("bin", pa.int32(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)

# How much of the true lists a search finds: every setting that the index stage tried.
RECALL = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("num_probes", pa.int32(), nullable=False),  # cells
        pa.field("num_candidates", pa.int32(), nullable=False),
        pa.field("num_rows", pa.int64(), nullable=False),  # held out
        pa.field("recall", pa.float64(), nullable=False),  # mean over those rows
        pa.field("standard_error", pa.float64(), nullable=False),  # of that mean
        pa.field("scored_fraction", pa.float64(), nullable=False),  # share of the pairs
        pa.field("seconds", pa.float64(), nullable=False),  # all those rows
        pa.field("chosen", pa.bool_(), nullable=False),
    ]
)

# Recall of the lists that the score stage made, one held-out row each; other rows than above.
ROW_RECALL = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("recall", pa.float64(), nullable=False),
        pa.field("scored_fraction", pa.float64(), nullable=False),
    ]
)

# Sums of s_ij over the rows i of a subtask, for every candidate j, as whole numbers of 2**-32: such
# a sum does not depend on where rows were cut. Of the block "points": the score itself. Where the
# scores are a teacher's labels, num_rows counts those that candidate j has a label for.
COLUMN_SUMS = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("subtask", pa.string()),  # null where there is only one
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("helper_index", pa.int64(), nullable=False),
        pa.field("sum", pa.int64(), nullable=False),
    ]
)

# Candidates that a teacher whose labels are the scores said nothing of: they are never picked.
UNRANKED = pa.schema([pa.field("row_index", pa.int64(), nullable=False)])

# What existing data do for the rows of a block: one row a row of the block, in row order.
EXISTING_INFLUENCE = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("max_influence", pa.float32(), nullable=False),  # raw and signed
        # Whole numbers of 2**-32, like COLUMN_SUMS: over all existing examples.
        pa.field("sum", pa.int64(), nullable=False),
    ]
)

# One row a checkpoint of the warm-up (LESS).
WARMUP_CHECKPOINTS = pa.schema(
    [
        pa.field("checkpoint", pa.int32(), nullable=False),  # from 0
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("num_steps", pa.int64(), nullable=False),  # optimiser steps so far
        pa.field("mean_learning_rate", pa.float64(), nullable=False),  # over the epoch's steps
        pa.field("train_loss", pa.float64(), nullable=False),  # nats a response token
    ]
)

COLUMN_MAX = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("helper_index", pa.int64(), nullable=False),
        pa.field("max_influence", pa.float32(), nullable=False),
    ]
)

RANKING = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),  # 1-based
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("gain", pa.float64(), nullable=False),  # of the scaled objective
        pa.field("objective", pa.float64(), nullable=False),  # value after this pick
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("num_covered", pa.int32(), nullable=False),  # rows whose best pick this is
        # objective | quality | distance | id | include | random
        pa.field("decided_by", pa.string(), nullable=False),
    ]
)

COVERAGE = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),  # a row of the objective's ground set
        pa.field("covered_by", pa.int64()),  # row_index of its best pick; null: no pick in its list
        pa.field("coverage", pa.float32(), nullable=False),  # scaled influence of that pick, 0..1
    ]
)

# What each part of a partitioned search picked by itself, best first.
PART_PICKS = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("gain", pa.float64(), nullable=False),
        pa.field("decided_by", pa.int8(), nullable=False),  # place in selection.ties.DECIDED_BY
    ]
)

# Candidates that are worth most alone and were not picked, best first.
SKIPPED = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("alone_gain", pa.float64(), nullable=False),  # its value as the only pick
        pa.field("final_gain", pa.float64(), nullable=False),  # on top of all picks
        pa.field("redundant_with", pa.int64()),  # pick that gives most of its value; null: none
        pa.field("redundant_with_rank", pa.int32()),
        pa.field("redundant_share", pa.float64(), nullable=False),  # of alone_gain, by that pick
        pa.field("cosine", pa.float64()),  # of the embeddings of the two
    ]
)


# Of a run that goes on from another: how far new examples, and for comparison unlabelled ones of
# the labelled corpus ("reference"), lie from the nearest labelled example.
DRIFT_DISTANCES = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),  # new | reference
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("distance", pa.float32(), nullable=False),  # cosine distance, 0 to 2
    ]
)

# One row a hidden unit and side: the range of the labelled examples, and the shares (0..1) of new
# and of reference examples below and above it.
DRIFT_RANGES = pa.schema(
    [
        pa.field("block", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),  # rows | columns
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("low", pa.float32(), nullable=False),
        pa.field("high", pa.float32(), nullable=False),
        pa.field("new_below", pa.float64(), nullable=False),
        pa.field("new_above", pa.float64(), nullable=False),
        pa.field("reference_below", pa.float64(), nullable=False),
        pa.field("reference_above", pa.float64(), nullable=False),
    ]
)


def ground_block(blocks: Sequence[str]) -> str:
    """Return the block whose rows an objective covers; of several that is ``within``."""
    return WITHIN if WITHIN in blocks else blocks[0]


def helped_role(block: str) -> str:
    """Return the role of a block's rows, the helped examples; its helpers are always candidates."""
    return TARGET if block == CROSS else CANDIDATE


def embeddings_schema(dimension: int, dtype: str) -> pa.Schema:
    """Return the schema of embeddings: unit-norm vectors of ``dimension`` float32 or float16."""
    value = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    return pa.schema(
        [
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("num_tokens", pa.int32(), nullable=False),  # of the embedder's tokenizer
            pa.field("embedding", pa.list_(value, dimension), nullable=False),
        ]
    )


def dense_schema(num_columns: int) -> pa.Schema:
    """Return the schema of all scores of a block: a list of ``num_columns`` a row."""
    return pa.schema(
        [
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("influence", pa.list_(pa.float32(), num_columns), nullable=False),  # raw
        ]
    )


def activations_schema(num_hidden: int) -> pa.Schema:
    """Return the schema of projected activations of one role and block, ``num_hidden`` each."""
    return pa.schema(
        [
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("activation", pa.list_(pa.float32(), num_hidden), nullable=False),
        ]
    )


def gradients_schema(projection_dim: int, storage: str = "float32") -> pa.Schema:
    """Return the schema of one checkpoint's features: projected, unit-norm gradients.

    As ``int8`` a feature is a multiple of it in bytes, as ``bit`` the signs, eight a byte.

    ``side`` is "helper" (preconditioned by Adam's state, as a training step would be) or "helped"
    (the plain gradient). A row whose gradient could not be taken is not done and has no feature.
    """
    feature = {
        "float32": pa.list_(pa.float32(), projection_dim),
        "int8": pa.list_(pa.int8(), projection_dim),
        "bit": pa.list_(pa.uint8(), -(-projection_dim // 8)),
    }[storage]
    return pa.schema(
        [
            pa.field("side", pa.string(), nullable=False),
            pa.field("role", pa.string(), nullable=False),
            pa.field("row_index", pa.int64(), nullable=False),
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("done", pa.bool_(), nullable=False),
            pa.field("feature", feature),
        ]
    )


# One row a network of a sweep, split and model: the cell, how it went, and its fidelity.
_SWEEP_CELL = pa.schema(
    [
        pa.field("base", pa.string(), nullable=False),  # fingerprint of labels and training
        pa.field("block", pa.string(), nullable=False),
        pa.field("fraction", pa.float64(), nullable=False),  # of the rows and of the columns
        pa.field("num_hidden", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("num_train_rows", pa.int64(), nullable=False),
        pa.field("num_train_columns", pa.int64(), nullable=False),
        pa.field("num_train_pairs", pa.int64(), nullable=False),
        pa.field("num_epochs", pa.int32(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
SWEEP_CELLS = pa.unify_schemas([_SWEEP_CELL, FIDELITY])


# The Arrow schema of every table of an evaluation.

# pyright: reportUnknownMemberType=false


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
