"""Which pairs each objective reads, and what of the recipe's ``selection`` other sections fill in.

Imported by what only plans: no kernel is compiled for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nncift_ray.errors import DataError, StorageError
from nncift_ray.recipe.sections import Config, SelectionConfig
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN

#: The steps that hold a run's scores: by a network, or the teacher's own labels; a run has one.
NETWORK_SCORES, TEACHER_SCORES = "score_pairs", "teacher_scores"
TOP_K, RANDOM, ROUND_ROBIN = "top_k", "random", "round_robin"
PAIR_COVERAGE = "pair_coverage"
#: The step of a search in parts, and the kind of optimiser that has it.
PARTITIONED = "partitioned"
REPEATS = "repeats"

_ID = re.compile(r"[0-9a-f]{32}")


def scores_of(outputs: Mapping[str, StageOutput]) -> StageOutput:
    """Return the output that holds a run's scores.

    Raises:
        KeyError: If neither step is finished.
    """
    return outputs[TEACHER_SCORES if TEACHER_SCORES in outputs else NETWORK_SCORES]


def scored_blocks(outputs: Mapping[str, StageOutput]) -> tuple[str, ...]:
    """Return the blocks that a run has scored."""
    return tuple(scores_of(outputs).manifest.settings["blocks"])


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective of the recipe."""

    #: Blocks of pairs that it reads; none: of the targets where there are any, else candidates.
    blocks: tuple[str, ...] = ()
    #: Blocks of which it needs every pair (sums, or largest influences), not lists alone.
    needs_every_pair: tuple[str, ...] = ()
    #: Whether it adds up pairs, or may come to any, so that lists are to hold every one.
    adds_pairs: bool = False
    #: Whether what two picks do for each other counts.
    compares_picks: bool = False
    #: Whether a pointwise teacher's scores will do.
    takes_points: bool = False


OBJECTIVES: Mapping[str, ObjectiveSpec] = {
    "facility_location": ObjectiveSpec((WITHIN,)),
    PAIR_COVERAGE: ObjectiveSpec(),
    "facility_location_pool_mutual_information": ObjectiveSpec(
        (WITHIN, CROSS), needs_every_pair=(CROSS,)
    ),
    "facility_location_mutual_information": ObjectiveSpec(
        (WITHIN, CROSS), needs_every_pair=(CROSS,)
    ),
    "facility_location_query_mutual_information": ObjectiveSpec(
        (CROSS,), needs_every_pair=(CROSS,)
    ),
    "facility_location_conditional_gain": ObjectiveSpec(),
    "graph_cut": ObjectiveSpec(
        (WITHIN,), needs_every_pair=(WITHIN,), adds_pairs=True, compares_picks=True
    ),
    "graph_cut_conditional_gain": ObjectiveSpec(
        (WITHIN,), needs_every_pair=(WITHIN,), adds_pairs=True, compares_picks=True
    ),
    "graph_cut_mutual_information": ObjectiveSpec(
        (CROSS,), needs_every_pair=(CROSS,), adds_pairs=True
    ),
    "saturated_coverage": ObjectiveSpec(needs_every_pair=(WITHIN, CROSS), adds_pairs=True),
    ROUND_ROBIN: ObjectiveSpec((CROSS,), needs_every_pair=(CROSS,), adds_pairs=True),
    TOP_K: ObjectiveSpec(needs_every_pair=(WITHIN, CROSS), takes_points=True),
    RANDOM: ObjectiveSpec(takes_points=True),
}


def blocks_of(objective: str, *, pointwise: bool, has_targets: bool) -> tuple[str, ...]:
    """Return the blocks that an objective reads, so what is to be labelled, fitted and scored.

    Args:
        objective: An objective of the recipe.
        pointwise: Whether the teacher scores examples, not pairs.
        has_targets: Whether there are targets.

    Raises:
        ValueError: If the objective needs pairs and the teacher has none.
    """
    spec = OBJECTIVES[objective]
    if pointwise and not spec.takes_points:
        raise ValueError(
            "a pointwise teacher scores examples, not pairs, so selection.objective must be top_k "
            f"(given: {objective})"
        )
    if pointwise:
        return (POINTS,)
    return spec.blocks or ((CROSS,) if has_targets else (WITHIN,))


def list_blocks(objective: str, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return those of an objective's blocks of which it reads the lists of best helpers alone.

    Of these, pairs that no list holds need not be scored.
    """
    whole = (POINTS, *OBJECTIVES[objective].needs_every_pair)
    return tuple(block for block in blocks if block not in whole)


def resolve_selection(config: Config) -> SelectionConfig:
    """Return the recipe's ``selection`` with what other sections and files say filled in.

    The objective in the form that runs, the field that names groups, and the ids of ``include``
    and ``exclude``.

    Raises:
        DataError: If a list of ids cannot be read.
    """
    selection, quotas = config.selection, config.selection.quotas
    if quotas.given:
        quotas = quotas.model_copy(update={"field": quotas.field or config.data.group_by})
    return selection.model_copy(
        update={
            "objective": config.objective,
            "quotas": quotas,
            "include": _read_ids(selection.include, "selection.include"),
            "exclude": _read_ids(selection.exclude, "selection.exclude"),
        }
    )


def _read_ids(given: tuple[str, ...] | str, key: str) -> tuple[str, ...]:
    """Return ids as they are listed in the recipe, or in a file with one a line."""
    if not isinstance(given, str):
        lines, where = list(given), key
    elif _ID.fullmatch(given):
        lines, where = [given], key
    else:
        where = f"{key}: {given}"
        try:
            text = Location.of(given).read_bytes().decode("utf-8")
        except (StorageError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: the list of ids cannot be read ({error})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if not _ID.fullmatch(line)]
    if wrong:
        raise DataError(
            f"{where}: '{wrong[0][:80]}' is no id of an example. Ids are the 32 hexadecimal digits "
            "of export/ids.txt"
        )
    return tuple(dict.fromkeys(lines))
