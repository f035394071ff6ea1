"""Random draws behind intervals and tests: resampled means, flipped signs, unseen subsets.

All draws are of deviations from a mean, seeded, made a slab at a time. Suffixes: N rows, S seeds
(random subsets), G groups of rows, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

F64 = NDArray[np.float64]

#: Rows beyond this number are averaged in so many random groups first.
MAX_GROUPS = 4096
#: Values drawn at once: 32 MiB of float64, and as much for the places they are drawn from.
SLAB_VALUES = 1 << 22
#: With so few rows all patterns of signs are tried.
MAX_EXACT_ROWS = 16
#: Sums that differ by less than this share of what is summed are the same sum, rounded otherwise.
ROUNDING = 1e-12


def group_rows(values_N: F64, rng: np.random.Generator) -> F64:
    """Return at most ``MAX_GROUPS`` values [G] that resample like all rows, in bounded time.

    Rows are dealt to groups at random. What is returned of a group is the sum of its deviations,
    scaled so that mean, variance and skewness of resampled *means* are those of the rows in
    expectation; with up to ``MAX_GROUPS`` rows it is the rows themselves.
    """
    num_rows = len(values_N)
    if num_rows <= MAX_GROUPS:
        return values_N
    mean = values_N.mean()
    return mean + _group_sums(values_N - mean, rng) * (MAX_GROUPS / num_rows)


def draw_row_deviations(
    values_N: F64, num_samples: int, confidence: float, rng: np.random.Generator
) -> F64:
    """Draw how far the mean over other rows of the same kind lies from the mean over these [B].

    Rows are resampled with replacement. The deviations are widened by sqrt(N / (N - 1)), which the
    resampled variance lacks, and by Student's quantile over the normal one, which repairs what is
    left for few rows at the level ``confidence`` (the "expanded" interval of Hesterberg, What
    Teachers Should Know about the Bootstrap, 2015). For 100 rows that is 2 %, for 5 rows 58 %.

    Memory: two slabs of ``SLAB_VALUES`` whatever N; 8 B more for the result.
    """
    values_G = group_rows(values_N, rng)
    num = len(values_G)
    means_B = np.empty(num_samples)
    for start, stop in _slabs(num_samples, num):
        places = rng.integers(num, size=(stop - start, num), dtype=np.int32)
        means_B[start:stop] = values_G[places].mean(axis=1)
    tail = (1 + confidence) / 2
    student = float(stats.t.ppf(tail, num - 1)) / float(stats.norm.ppf(tail))
    return (means_B - values_N.mean()) * (np.sqrt(num / (num - 1)) * student)


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """How random subsets differ among themselves, estimated from the rows they share.

    With r_is the value of row i under subset s, r_is = row_i + subset_s + rest_is:
    ``means_variance`` is the variance (S - 1 below) of the subsets' means over rows, which holds
    subset_s and, over N, rest_is; ``rest_variance`` is that share of rest_is, which comes back
    with other rows and is no property of the subsets.
    """

    num_seeds: int
    means_variance: float
    rest_variance: float  # of rest_is, divided by the rows: part of means_variance

    def draw_deviations(
        self, num_samples: int, rng: np.random.Generator, *, unseen_subset: bool
    ) -> F64:
        """Draw how far the mean of these subsets lies from that of all random subsets [B].

        Three subsets cannot be resampled honestly: the variance of what is drawn from S values is
        short of a factor (S - 1) / S, and its tails end at the worst of three. So subsets are
        taken as normal around their mean, with a variance that is itself drawn from what S values
        leave open (the generalised interval of Weerahandi, 1993: S - 1 over a chi-squared number);
        without ``rest_variance`` this is Student's t with S - 1 degrees of freedom. With 3
        subsets the 97.5 % point is 4.3 standard errors, with 5 it is 2.8.

        Args:
            num_samples: B.
            rng: The draws.
            unseen_subset: Add the deviation of one more subset of the same kind.
        """
        if self.num_seeds < 2:  # nothing is known of the spread
            return np.zeros(num_samples)
        freedom = self.num_seeds - 1
        drawn_B = self.means_variance * freedom / rng.chisquare(freedom, num_samples)
        variance_B = np.maximum(drawn_B - self.rest_variance, 0.0)
        share = 1 / self.num_seeds + (1.0 if unseen_subset else 0.0)
        return rng.standard_normal(num_samples) * np.sqrt(variance_B * share)


def measure_seed_spread(values_NS: F64) -> SeedSpread:
    """Estimate the spread of subsets from a table [N, S] of which each column has some value.

    NaN is a missing value. Rows are centred first, so that a subset that lacks the hard rows is
    not taken for a good one; with no value missing this is the two-way analysis of variance.
    """
    num_rows, num_seeds = values_NS.shape
    if num_seeds < 2:
        return SeedSpread(num_seeds, 0.0, 0.0)
    centred_NS = values_NS - np.nanmean(values_NS, axis=1, keepdims=True)
    means_S = np.nanmean(centred_NS, axis=0)
    freedom = np.count_nonzero(~np.isnan(values_NS)) - num_rows - num_seeds + 1
    rest = float(np.nansum(np.square(centred_NS - means_S)))
    rest_variance = rest / freedom / num_rows if freedom > 0 else 0.0
    return SeedSpread(num_seeds, float(means_S.var(ddof=1)), rest_variance)


def sign_flip_p_value(differences_N: F64, num_samples: int, rng: np.random.Generator) -> float:
    """Test whether the mean of paired differences is 0, by flipping signs (two-sided).

    If neither side is better, a row's difference is as likely d as -d. The p-value is the share of
    sign patterns whose mean is at least as far from 0 as the observed one: of all patterns for up
    to ``MAX_EXACT_ROWS`` differences other than 0 (exact), else of drawn ones and the observed
    one. Beyond ``MAX_GROUPS`` rows the signs of random groups are flipped, which is as valid.

    Source: Fisher's randomisation test; Edgington and Onghena, Randomization Tests, 4th ed.
    """
    differences_N = differences_N[differences_N != 0]  # flips of a 0 change nothing
    if not len(differences_N):
        return 1.0
    if len(differences_N) <= MAX_EXACT_ROWS:
        sums = _all_signed_sums(differences_N)
        return float(np.mean(_as_far(sums, differences_N)))
    values_G = _group_sums(differences_N, rng)
    as_far = 1  # the observed pattern
    for start, stop in _slabs(num_samples, len(values_G)):
        signs = 1 - 2 * rng.integers(2, size=(stop - start, len(values_G)), dtype=np.int8)
        as_far += int(_as_far(signs @ values_G, values_G).sum())
    return as_far / (num_samples + 1)


def _group_sums(values_N: F64, rng: np.random.Generator) -> F64:
    """Deal values to ``MAX_GROUPS`` groups at random and add each up [G]; few stay themselves."""
    if len(values_N) <= MAX_GROUPS:
        return values_N
    starts_G = np.arange(MAX_GROUPS) * len(values_N) // MAX_GROUPS
    return np.add.reduceat(rng.permutation(values_N), starts_G)


def _all_signed_sums(differences_N: F64) -> F64:
    """Return the sums of all patterns with the first sign fixed: the others mirror them."""
    sums = differences_N[:1]
    for difference in differences_N[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums


def _as_far(sums: F64, differences: F64) -> NDArray[np.bool_]:
    tolerance = ROUNDING * float(np.abs(differences).sum())
    return np.abs(sums) >= abs(float(differences.sum())) - tolerance


def _slabs(num_samples: int, num_values: int) -> list[tuple[int, int]]:
    step = max(1, SLAB_VALUES // num_values)
    return [(at, min(at + step, num_samples)) for at in range(0, num_samples, step)]
