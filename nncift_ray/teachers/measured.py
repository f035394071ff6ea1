"""Teachers that are not asked: their scores follow from what earlier steps know of every example.

Each names the step that it reads; `scores.teacher_scores` makes the scores of all examples, or of
all pairs, at once. Costs are for n candidates and m targets. Suffixes: N examples, I rows, J
columns, D numbers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from nncift_ray.teachers.base import Teacher

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class MeasuredTeacher(Teacher):
    """A teacher whose scores of all examples, or pairs, are made of another step's numbers."""

    #: The steps, the first with the scores' rows: "deduplicate" (texts), "profiles", "quality",
    #: "embed" or "states".
    reads: ClassVar[tuple[str, ...]]


class PointsTeacher(MeasuredTeacher):
    """One that scores examples, by the losses that a language model gives them."""

    kind: ClassVar[Literal["pairwise", "pointwise"]] = "pointwise"
    needs_engine: ClassVar[bool] = True


class LongestTeacher(PointsTeacher):
    """The tokens of the response: the longest answers teach best. No model is run.

    Source: Long Is More for Alignment, arXiv 2402.04833.
    """

    needs_engine: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("deduplicate",)


class IfdTeacher(PointsTeacher):
    """How little the prompt explains the response (`ifd_scores`). Cost: 2n forward passes.

    Source: IFD, arXiv 2308.12032; by a small model in a large one's place, arXiv 2402.00530.
    """

    reads: ClassVar[tuple[str, ...]] = ("profiles",)


class ConsistencyTeacher(PointsTeacher):
    """How well near examples explain the response: -NLL(y | near examples, x) / NLL(y).

    Cost: n forward passes behind ``profiles.num_neighbours`` examples, and n of the response alone.
    """

    reads: ClassVar[tuple[str, ...]] = ("quality",)


class DeitaTeacher(PointsTeacher):
    """Difficulty times quality: IFD where it is below 1, times the quality; or a field's score.

    With ``selection.weight_by`` that field alone, such as DEITA's own complexity times quality, is
    the score, and no model is run. To be selected by top_k with a ``min_distance``. Cost otherwise:
    that of ifd and consistency.

    Source: DEITA, arXiv 2312.15685, whose two scorers of 13 billion parameters are not asked here.
    """

    reads: ClassVar[tuple[str, ...]] = ("quality", "profiles")


class LossDropTeacher(PointsTeacher):
    """What a short training on the targets saves of a candidate's loss: (before - after) / before.

    Cost: the training (m examples an epoch, keys of ``teacher.less``) and 2n forward passes.

    Source: arXiv 2605.09404 (its "normalized endpoint loss drop"; normalised here by the loss
    before).
    """

    reads: ClassVar[tuple[str, ...]] = ("loss_drop",)


class LossDropInContextTeacher(LossDropTeacher):
    """What ``profiles.num_neighbours`` targets in its context save of a candidate's loss.

    Loss alone minus loss behind them; they are drawn with ``selection.seed``, the same for all.
    Cost: 2n forward passes, those behind the targets sharing their prefix.

    Source: arXiv 2510.14459.
    """


class CosineTeacher(MeasuredTeacher):
    """The cosine of the sentence embeddings of every pair. Cost: n + m passes of the embedder.

    A candidate paired with itself counts 1, as in facility location over cosines elsewhere.
    """

    reads: ClassVar[tuple[str, ...]] = ("embed",)


class RdsPlusTeacher(MeasuredTeacher):
    """The cosine of the language model's last states of every pair, later tokens weighing more.

    Cost: n + m forward passes. To be selected by the objective round_robin, as in the paper.

    Source: RDS+, arXiv 2503.01807, section 3.
    """

    needs_engine: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("states",)


class LandmarksTeacher(MeasuredTeacher):
    """LESS's score of every pair, from exact gradients of some candidates: Influence Distillation.

    A ridge regression from a candidate's states (those of rds_plus) to its scores, one for each
    target, is fitted on ``teacher.less.num_landmarks`` candidates and read for all.
    Cost: a warm-up, backward passes of the landmarks and targets at each checkpoint, n + m forward.

    Source: arXiv 2505.19051, first order (there features are of Jacobian products).
    """

    needs_engine: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("states", "gradients", "target_gradients", "warmup")


def ridge_weights(feature_LD: F32, score_IL: F32) -> F32:
    """Return the weights of a ridge regression from features to each row's scores [I, D].

    The penalty, one for all rows, is that of the least squared error on left-out landmarks, of
    seven from 1e-6 to 1 times the largest squared singular value; in closed form.
    """
    left_LK, values_K, right_KD = np.linalg.svd(feature_LD.astype(np.float64), full_matrices=False)
    coordinates_IK = score_IL.astype(np.float64) @ left_LK
    best, weights_IK = np.inf, np.zeros_like(coordinates_IK)
    for penalty in values_K[0] ** 2 * np.logspace(-6, 0, 7):
        shrink_K = values_K**2 / (values_K**2 + penalty)
        leverage_L = (left_LK**2 * shrink_K).sum(axis=1)
        residual_IL = score_IL - (coordinates_IK * shrink_K) @ left_LK.T
        error = np.mean((residual_IL / np.maximum(1 - leverage_L, 1e-9)) ** 2)
        if error < best:
            best = error
            weights_IK = coordinates_IK * values_K / (values_K**2 + penalty)
    return (weights_IK @ right_KD).astype(np.float32)


def ifd_scores(nll_N: F64, nll_alone_N: F64) -> F64:
    """Return by how much the prompt fails to explain each response [N], 1 and above last.

    IFD = NLL(y | x) / NLL(y). The larger the better below 1; from 1 on, where the prompt does not
    help at all, the pair counts as wrong: such rows get 1 - IFD, so they come after all others, the
    worst last. NaN where a loss is not known or the response alone costs nothing.

    Source: arXiv 2308.12032, section 2.2 (losses; 2402.00530 takes perplexities, which keep the
    bound and may order otherwise).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ifd_N = np.where(nll_alone_N > 0, nll_N / nll_alone_N, np.nan)
    return np.where(ifd_N < 1, ifd_N, 1 - ifd_N)


def unit_rows(vectors_ND: F32) -> F32:
    """Return vectors at length 1 [N, D]; zero vectors, and those not finite, become zeros."""
    length_N1 = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    usable_N1 = np.isfinite(length_N1) & (length_N1 > 0)
    unit_ND = np.where(usable_N1, vectors_ND / np.where(usable_N1, length_N1, 1.0), 0.0)
    return unit_ND.astype(np.float32)
