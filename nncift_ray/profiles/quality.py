"""The quality of a candidate: a gate against wrong answers, not a prize for easy ones.

Suffixes: N candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

#: Quality falls from 1 to 0 between these suspicions; decided on planted faults
#: (docs/decisions.md). A normal row passes the first with chance 0.07, the middle with
#: 0.01.
FLAT_TO, ZERO_FROM = 1.5, 3.0
#: Suspicion from which a row is listed: its quality is below a half.
SUSPECT = (FLAT_TO + ZERO_FROM) / 2
LEFT_QUANTILE = 0.15866  # one standard deviation below the median of a normal distribution
MIN_ROWS = 20  # fewer say nothing about what is usual


def deviations(values_N: F64) -> F64:
    """Return by how many spreads each value lies above the median [N]; NaN stays NaN.

    The spread is that of the *lower* side: wrong answers lie on the upper one, and must not widen
    what counts as usual.
    """
    known = values_N[np.isfinite(values_N)]
    if len(known) < MIN_ROWS:
        return np.where(np.isfinite(values_N), 0.0, np.nan)
    middle = np.median(known)
    spread = middle - np.quantile(known, LEFT_QUANTILE)
    if spread <= 0:
        return np.where(np.isfinite(values_N), 0.0, np.nan)
    return (values_N - middle) / spread


def suspicion(nll: F64, nll_alone: F64, nll_shown: F64, cosine: F64) -> F64:
    """Return how much speaks against each answer [N], about 0 +- 1 for the usual row.

    It is the sum of two deviations over the square root of 2: of the consistency (loss of the
    answer behind near examples over its loss alone; IFD, the loss behind its prompt over its loss
    alone, where there are no near examples) and of the negative cosine of prompt and answer. A
    row that a measure is missing of is judged by the other one; NaN where both are.

    Args:
        nll: Of the response behind its prompt, nats a token.
        nll_alone: Of the response alone.
        nll_shown: Behind near examples and its prompt; NaN where unknown.
        cosine: Of prompt and answer, by the embedder.
    """
    consistency, ifd = nll_shown / nll_alone, nll / nll_alone
    unexplained = np.where(np.isfinite(consistency), deviations(consistency), deviations(ifd))
    parts = np.stack([unexplained, deviations(-cosine)])
    known = np.isfinite(parts)
    total = np.where(known, parts, 0.0).sum(axis=0) / np.sqrt(np.maximum(known.sum(axis=0), 1))
    return np.where(known.any(axis=0), total, np.nan)


def beside_neighbours(suspicion_N: F64, near_NK: npt.NDArray[np.int64]) -> F64:
    """Return suspicions [N], each less half of the median of its neighbours'.

    Where all answers of a kind look odd to the model, as words spelt backwards do, it is the kind
    and not the answer. Half, because neighbours may be wrong together.

    Args:
        suspicion_N: Of every row; NaN where unknown.
        near_NK: Rows near each one, -1 where there are fewer.
    """
    near = np.ma.masked_invalid(np.where(near_NK < 0, np.nan, suspicion_N[near_NK]))
    usual_N = np.ma.median(near, axis=1) if near.shape[1] else np.ma.masked_all(len(near))
    return suspicion_N - np.ma.filled(usual_N, 0.0) / 2


def quality_of(suspicion_N: F64) -> F32:
    """Return the quality [N]: 1 up to FLAT_TO, 0 from ZERO_FROM, linear between; NaN stays."""
    fall = (suspicion_N - FLAT_TO) / (ZERO_FROM - FLAT_TO)
    return (1.0 - np.clip(fall, 0.0, 1.0)).astype(np.float32)
