"""Subsets of the candidates, as the stages of an evaluation are given them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from nncift_ray.storage.output import StageOutput


def members_digest(examples: StageOutput, members: NDArray[np.int64]) -> str:
    """Return the SHA-256, in hex, of the ids of a subset's examples, in the order of its rows.

    Ids are hashes of content, so subsets that different methods arrive at share what follows.

    Args:
        examples: Output of the deduplicate stage.
        members: Row numbers of candidates.
    """
    digest = hashlib.sha256()
    if len(members):
        ids = examples.take_rows("candidates", members, ["example_id"])["example_id"].to_pylist()
        digest.update("\n".join(map(str, ids)).encode())
    return digest.hexdigest()
