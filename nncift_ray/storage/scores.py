"""Which stage of a run holds its scores: the network's, or the teacher's own labels."""

from __future__ import annotations

from collections.abc import Mapping

from nncift_ray.storage.output import StageOutput

#: By a network, and by the teacher's labels; a run has one of the two, with the same tables.
NETWORK_SCORES, TEACHER_SCORES = "score_pairs", "teacher_scores"


def scores_of(outputs: Mapping[str, StageOutput]) -> StageOutput:
    """Return the output that holds a run's scores.

    Raises:
        KeyError: If neither stage is finished.
    """
    return outputs[TEACHER_SCORES if TEACHER_SCORES in outputs else NETWORK_SCORES]


def scored_blocks(outputs: Mapping[str, StageOutput]) -> tuple[str, ...]:
    """Return the blocks that a run has scored."""
    return tuple(scores_of(outputs).manifest.settings["blocks"])
