"""The Arrow schema of every table the system writes.

Row = helped example, column = helper example, everywhere. ``row_index`` numbers the examples of one
role (candidates, targets or existing data) from 0 in the order of their sources; ``block`` says
which pairs a row speaks of: ``within`` (candidates x candidates), ``cross`` (targets x candidates),
or ``points`` (candidates on their own, of a pointwise teacher).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

# EXISTING: what the model already has; read by conditional objectives, never selected.
CANDIDATE, TARGET, EXISTING = "candidate", "target", "existing"
# What no candidate may hold words of: benchmarks and tests; they make no examples.
BENCHMARK = "benchmark"
#: The table that holds the examples of each role.
TABLE_OF_ROLE = {CANDIDATE: "candidates", TARGET: "targets", EXISTING: "existing"}
# POINTS: candidates on their own, for teachers that score examples instead of pairs.
WITHIN, CROSS, POINTS = "within", "cross", "points"

TEXT, FLAG = pa.string(), pa.bool_()
BYTE, INT, LONG = pa.int8(), pa.int32(), pa.int64()
FLOAT, DOUBLE = pa.float32(), pa.float64()


def maybe(kind: pa.DataType) -> pa.Field[Any]:
    """Return the type of a column that may hold nulls."""
    return pa.field("", kind)


def _schema(**columns: pa.DataType | pa.Field[Any]) -> pa.Schema:
    return pa.schema(
        kind.with_name(name) if isinstance(kind, pa.Field) else pa.field(name, kind, nullable=False)
        for name, kind in columns.items()
    )


ERRORS = _schema(
    stage=TEXT,
    source=maybe(TEXT),  # file, or None for rows past ingest
    line=maybe(LONG),  # 1-based line or record number in the file
    example_id=maybe(TEXT),
    reason=TEXT,  # short code, e.g. "no_response"
    message=TEXT,  # a sentence for a person
    excerpt=maybe(TEXT),  # at most 200 characters of the row
)

_EXAMPLE: dict[str, Any] = dict(
    example_id=TEXT,
    prompt=TEXT,
    response=TEXT,
    record=TEXT,  # the original record as JSON
    source=TEXT,
    line=LONG,
    layout=TEXT,
    # JSON text of a corpus.examples.Conversation; null: one user and one assistant turn
    conversation=maybe(TEXT),
)

# Ingest reads each source file on its own; duplicates are still inside.
RECORDS = _schema(role=TEXT, **_EXAMPLE)

# One table per role (TABLE_OF_ROLE), exact duplicates collapsed on the first one.
EXAMPLES = _schema(
    row_index=LONG,
    **_EXAMPLE,
    num_duplicates=INT,  # further copies, now collapsed
)

# Of a run that goes on from another: the parent's examples of which new data hold further copies.
COPIES = _schema(
    role=TEXT,
    row_index=LONG,
    num_duplicates=INT,  # further copies, all in new data
)

_LEFT_OUT: dict[str, Any] = dict(
    example_id=TEXT,
    source=TEXT,
    line=LONG,
    excerpt=TEXT,  # of the prompt
)

# Candidates left out for an earlier one that is nearly the same.
NEAR_DUPLICATES = _schema(
    **_LEFT_OUT,
    twin_example_id=TEXT,  # a candidate that stays
    twin_source=TEXT,
    twin_line=LONG,
    similarity=FLOAT,  # of prompts or responses: the lower
)

# Candidates that cannot be picked, since another asks the same in other words.
REPEATS = _schema(
    row_index=LONG,
    example_id=TEXT,
    repeats=LONG,  # row_index of the one that can
    repeats_example_id=TEXT,
    # Of the two embeddings; null where many have the answer, and the words decided.
    cosine=maybe(FLOAT),
)

# Candidates left out for what they hold of a benchmark or a test set.
CONTAMINATED = _schema(
    **_LEFT_OUT,
    test_source=TEXT,
    test_line=LONG,
    words=maybe(TEXT),  # the run of words they share; null: the whole prompt
)

MEASUREMENTS = _schema(
    block=TEXT,
    helped_index=LONG,
    # Null for the helped example alone: what utilities are taken against, or a pointwise label.
    helper_index=maybe(LONG),
    # train | validation | Q1 | Q2 | Q3 | Q4 (points: no Q1..Q3), null for baselines
    split=maybe(TEXT),
    value=DOUBLE,  # teacher's unit, e.g. DELIFT distance
    num_tokens=INT,  # prompt and response
    num_cached_tokens=INT,  # of them read from a cache
    # What had to be computed at the least: a shared prefix once, then what no whole block of
    # the cache covers.
    num_minimal_tokens=INT,
)

LABELS = _schema(
    block=TEXT,
    helped_index=LONG,
    helper_index=maybe(LONG),  # null for pointwise teachers
    split=TEXT,
    utility=FLOAT,  # raw and signed
)

TRAINING_HISTORY = _schema(block=TEXT, epoch=INT, train_loss=DOUBLE, validation_loss=DOUBLE)

PREDICTIONS = _schema(
    block=TEXT,
    helped_index=LONG,
    helper_index=maybe(LONG),
    split=TEXT,
    utility=FLOAT,
    influence=FLOAT,
)

FIDELITY = _schema(
    block=TEXT,
    split=TEXT,
    # network | additive_ridge | cosine | row_column_mean | mean | zero | random
    model=TEXT,
    num_pairs=LONG,
    mse=maybe(DOUBLE),  # label unit squared; null of a cosine, like the next two
    scaled_mse=maybe(DOUBLE),  # labels min-max scaled to [0, 1]
    r2=maybe(DOUBLE),  # null where the labels do not vary
    spearman=maybe(DOUBLE),  # null where either side does not vary
    # Of pairs (network.fidelity says how each is defined): null in "points", and where not
    # defined. num_rows is how many were ranked; low and high are 95 % intervals.
    num_rows=LONG,
    row_spearman=maybe(DOUBLE),
    **{
        f"{measure}{end}": maybe(DOUBLE)
        for measure in ("interaction_correlation", "capture", "capture_1pct")
        for end in ("", "_low", "_high")
    },
)

TOP_HELPERS = _schema(
    row_index=LONG,
    helper_index=pa.list_(INT),  # best first
    influence=pa.list_(FLOAT),  # raw and signed
)

# Of every pair of a block that is scored exactly. Of a pruned one they cover the pairs of rows held
# out to measure recall, each scored against every column, and the extremes whatever was kept too.
SCORE_STATISTICS = _schema(
    block=TEXT,
    num_scored=LONG,  # pairs, for the lists or sums
    num_pairs=LONG,  # that the statistics cover
    min=DOUBLE,
    max=DOUBLE,
    sum=DOUBLE,
    sum_of_squares=DOUBLE,
)

# How much of the true lists a search finds: every setting that the index stage tried.
RECALL = _schema(
    block=TEXT,
    num_probes=INT,  # cells
    num_candidates=INT,
    num_rows=LONG,  # held out
    recall=DOUBLE,  # mean over those rows
    standard_error=DOUBLE,  # of that mean
    scored_fraction=DOUBLE,  # share of the pairs
    seconds=DOUBLE,  # all those rows
    chosen=FLAG,
)

# Recall of the lists that the score stage made, one held-out row each; other rows than above.
ROW_RECALL = _schema(block=TEXT, row_index=LONG, recall=DOUBLE, scored_fraction=DOUBLE)

# Sums of s_ij over the rows i of a subtask, for every candidate j, as whole numbers of 2**-32: such
# a sum does not depend on where rows were cut. Of the block "points": the score itself. Where the
# scores are a teacher's labels, num_rows counts those that candidate j has a label for.
COLUMN_SUMS = _schema(
    block=TEXT,
    subtask=maybe(TEXT),  # null where there is only one
    num_rows=LONG,
    helper_index=LONG,
    sum=LONG,
)

# Candidates that a teacher whose labels are the scores said nothing of: they are never picked.
UNRANKED = _schema(row_index=LONG)

# What existing data do for the rows of a block: one row a row of the block, in row order.
EXISTING_INFLUENCE = _schema(
    row_index=LONG,
    max_influence=FLOAT,  # raw and signed
    # Whole numbers of 2**-32, like COLUMN_SUMS: over all existing examples.
    sum=LONG,
)

# One row a checkpoint of the warm-up (LESS).
WARMUP_CHECKPOINTS = _schema(
    checkpoint=INT,  # from 0
    epoch=INT,
    num_steps=LONG,  # optimiser steps so far
    mean_learning_rate=DOUBLE,  # over the epoch's steps
    train_loss=DOUBLE,  # nats a response token
)

COLUMN_MAX = _schema(block=TEXT, helper_index=LONG, max_influence=FLOAT)

RANKING = _schema(
    rank=INT,  # 1-based
    row_index=LONG,
    example_id=TEXT,
    gain=DOUBLE,  # of the scaled objective
    objective=DOUBLE,  # value after this pick
    num_tokens=LONG,
    num_covered=INT,  # rows whose best pick this is
    # objective | quality | distance | id | include | random
    decided_by=TEXT,
)

COVERAGE = _schema(
    row_index=LONG,  # a row of the objective's ground set
    covered_by=maybe(LONG),  # row_index of its best pick; null: no pick in its list
    coverage=FLOAT,  # scaled influence of that pick, 0..1
)

# What each part of a partitioned search picked by itself, best first.
PART_PICKS = _schema(
    part=INT,
    row_index=LONG,
    gain=DOUBLE,
    decided_by=BYTE,  # place in selection.ties.DECIDED_BY
)

# Candidates that are worth most alone and were not picked, best first.
SKIPPED = _schema(
    row_index=LONG,
    example_id=TEXT,
    alone_gain=DOUBLE,  # its value as the only pick
    final_gain=DOUBLE,  # on top of all picks
    redundant_with=maybe(LONG),  # pick that gives most of its value; null: none
    redundant_with_rank=maybe(INT),
    redundant_share=DOUBLE,  # of alone_gain, by that pick
    cosine=maybe(DOUBLE),  # of the embeddings of the two
)


# Of a run that goes on from another: how far new examples, and for comparison unlabelled ones of
# the labelled corpus ("reference"), lie from the nearest labelled example.
DRIFT_DISTANCES = _schema(
    group=TEXT,  # new | reference
    row_index=LONG,
    distance=FLOAT,  # cosine distance, 0 to 2
)


def ground_block(blocks: Sequence[str]) -> str:
    """Return the block whose rows an objective covers; of several that is ``within``."""
    return WITHIN if WITHIN in blocks else blocks[0]


def helped_role(block: str) -> str:
    """Return the role of a block's rows, the helped examples; its helpers are always candidates."""
    return TARGET if block == CROSS else CANDIDATE


def embeddings_schema(dimension: int, dtype: str) -> pa.Schema:
    """Return the schema of embeddings: unit-norm vectors of ``dimension`` float32 or float16."""
    value = {"float32": FLOAT, "float16": pa.float16()}[dtype]
    return _schema(
        row_index=LONG,
        example_id=TEXT,
        num_tokens=INT,  # of the embedder's tokenizer
        embedding=pa.list_(value, dimension),
    )


def activations_schema(num_hidden: int) -> pa.Schema:
    """Return the schema of projected activations of one role and block, ``num_hidden`` each."""
    return _schema(row_index=LONG, activation=pa.list_(FLOAT, num_hidden))


def gradients_schema(projection_dim: int, storage: str = "float32") -> pa.Schema:
    """Return the schema of one checkpoint's features: projected, unit-norm gradients.

    As ``int8`` a feature is a multiple of it in bytes, as ``bit`` the signs, eight a byte.

    ``side`` is "helper" (preconditioned by Adam's state, as a training step would be) or "helped"
    (the plain gradient). A row whose gradient could not be taken is not done and has no feature.
    """
    feature = {
        "float32": pa.list_(FLOAT, projection_dim),
        "int8": pa.list_(BYTE, projection_dim),
        "bit": pa.list_(pa.uint8(), -(-projection_dim // 8)),
    }[storage]
    return _schema(
        side=TEXT,
        role=TEXT,
        row_index=LONG,
        example_id=TEXT,
        done=FLAG,
        feature=maybe(feature),
    )


# One row a network of a sweep, split and model: the cell, how it went, and its fidelity.
_SWEEP_CELL = _schema(
    base=TEXT,  # fingerprint of labels and training
    block=TEXT,
    fraction=DOUBLE,  # of the rows and of the columns
    num_hidden=INT,
    seed=LONG,
    num_train_rows=LONG,
    num_train_columns=LONG,
    num_train_pairs=LONG,
    num_epochs=INT,
    seconds=DOUBLE,
)
SWEEP_CELLS = pa.unify_schemas([_SWEEP_CELL, FIDELITY])

# Tables of an evaluation.

BETTER, WORSE, NOISE = "better", "worse", "noise"
#: The step of COSTS that is a method's whole way.
ALL_STEPS = "all"

# One row: how a model was fine-tuned on a subset.
TUNING = _schema(
    num_examples=LONG,  # trained on, misfits left out
    num_tokens=LONG,  # of one epoch, prompts included
    num_steps=LONG,  # optimiser steps, all epochs
    train_loss=pa.list_(DOUBLE),  # by epoch, nats a token
    seconds=DOUBLE,  # training alone
)

# The examples that a held-out question is shown with, nearest first.
CONTEXTS = _schema(
    row_index=LONG,
    example_index=pa.list_(INT),  # candidates' row numbers
    cosine=pa.list_(FLOAT),
)

# How likely the model finds the reference answers, teacher-forced.
LIKELIHOODS = _schema(
    row_index=LONG,
    example_id=TEXT,
    nll=DOUBLE,  # nats a token, end of text included
    num_tokens=INT,  # of the reference, end included
    num_prompt_tokens=INT,
)

RESPONSES = _schema(
    row_index=LONG,
    example_id=TEXT,
    response=TEXT,
    num_prompt_tokens=INT,
    num_tokens=INT,  # written
    finish_reason=TEXT,  # stop | length
)

VERDICTS = _schema(
    row_index=LONG,
    example_id=TEXT,
    score=maybe(INT),  # 1..5; null: the verdict could not be read
    verdict=TEXT,  # as the judge wrote it
)

GRADES = _schema(
    row_index=LONG,
    example_id=TEXT,
    metric=TEXT,  # rouge1 | rougeL | bge | exact_match
    value=maybe(DOUBLE),  # null: the metric does not apply to the row
)

_SUBSET: dict[str, Any] = dict(
    method=TEXT,
    budget=DOUBLE,  # of the candidates; 0 initial, 1 full
    num_examples=LONG,  # in the subset
)
_MEASURED: dict[str, Any] = dict(
    mode=TEXT,  # icl | tuned | none (initial)
    test=TEXT,
    metric=TEXT,
)

# Every value there is; `seed` tells random subsets apart, 0 elsewhere. A row that a metric does not
# apply to (an exact match of a free text) is none of its rows.
SCORES = _schema(
    **_SUBSET,
    seed=INT,
    **_MEASURED,
    row_index=LONG,
    example_id=TEXT,
    value=maybe(DOUBLE),  # null: failed or unreadable; counted, never dropped
)

# One row a method, budget, mode, test set and metric; random's seeds are one row.
SUMMARY = _schema(
    **_SUBSET,
    **_MEASURED,
    num_seeds=INT,
    num_rows=LONG,  # with a value, of one seed
    num_missing=LONG,  # without one, over all seeds
    mean=maybe(DOUBLE),
    low=maybe(DOUBLE),  # bootstrap interval of the mean, over rows
    high=maybe(DOUBLE),
    seed_deviation=maybe(DOUBLE),  # of the means of random's seeds
    # Against random of the same budget, mode, test and metric, row by row; null for random
    # itself and where there is none.
    difference=maybe(DOUBLE),
    difference_low=maybe(DOUBLE),
    difference_high=maybe(DOUBLE),
    p_value=maybe(DOUBLE),  # of this comparison alone
    adjusted_p_value=maybe(DOUBLE),  # over the methods of one such comparison
    # better | worse | noise, by the adjusted one; null where random is one subset only, of
    # which nobody knows how far others lie from it.
    verdict=maybe(TEXT),
)

# What each step cost, measured; of a corpus that was not run, extrapolated and marked so.
COSTS = _schema(
    method=TEXT,
    step=TEXT,  # a stage's name, or "all"
    num_candidates=LONG,
    seconds=DOUBLE,
    accelerator_seconds=DOUBLE,  # GPU, over all actors
    cpu_seconds=DOUBLE,
    num_tokens=maybe(LONG),  # computed by a language model; null: it asks none
    price=DOUBLE,  # US dollars
    extrapolated=FLAG,
    # Whether another method rests on the same work. Each method is charged for it in full, as
    # if it were the only one, so methods do not add up.
    shared=FLAG,
    # Of the pairs (or examples) there are, the share that the teacher was asked about; null of
    # a step that asks no teacher.
    labelled_fraction=maybe(DOUBLE),
)

# How near a network's subset and influence come to its teacher's.
AGREEMENT = _schema(
    method=TEXT,
    teacher=TEXT,  # the method it is held against
    budget=DOUBLE,
    overlap=DOUBLE,  # shared picks / picks
    chance_overlap=DOUBLE,  # of two random subsets
    objective=maybe(DOUBLE),  # of the method's picks, by the teacher's labels
    teacher_objective=maybe(DOUBLE),  # of the teacher's picks, by the same
    random_objective=maybe(DOUBLE),  # of random picks, by the same: the mean
)

# FIDELITY of every network that a method of the evaluation fitted.
NETWORK_FIDELITY = pa.unify_schemas([_schema(method=TEXT), FIDELITY])

# The picks of every subset but the whole corpus, in the order of its rows.
SUBSETS = _schema(
    method=TEXT,
    budget=DOUBLE,
    seed=INT,  # as in SCORES
    example_id=TEXT,
)

# Some held-out rows with what was answered: for people to look at.
ANSWERS = _schema(
    test=TEXT,
    row_index=LONG,
    prompt=TEXT,
    reference=TEXT,
    method=TEXT,
    budget=DOUBLE,
    seed=INT,
    mode=TEXT,  # as in SCORES
    response=maybe(TEXT),  # null: none was written
    verdict=maybe(INT),  # the judge's, 1..5; null: none, or unreadable
)
