"""How much of each block the teacher is asked about, for a recipe and the size of its corpus."""

from __future__ import annotations

from collections.abc import Sequence

from nncift_ray.config import Config, NetworkConfig
from nncift_ray.core.network.sample_layouts import PAPER, WHOLE_ROWS
from nncift_ray.core.network.sampling import SampleDesign
from nncift_ray.core.network.teacher_sample import design_all_points, design_whole_rows
from nncift_ray.errors import ConfigError
from nncift_ray.stages.selection.selection_plan import GRAPH_CUTS
from nncift_ray.storage.schemas import CROSS, POINTS, WITHIN

#: Held-out pairs of each quadrant where the recipe gives none: one in so many labels, bounded.
#: Points have one quadrant where pairs have four.
HOLDOUT_SHARE = {WITHIN: 20, CROSS: 20, POINTS: 5}
MAX_HOLDOUT_PAIRS = 500
#: Keys that only a network has a use for, each with the value that asks for what a teacher's scores
#: are made of anyway.
_NETWORK_KEYS = {
    "labels": {"design": PAPER, "fraction": 1.0, "holdout_pairs": 0},
    "pair_scores": {"mode": "exact", "activation_dtype": "float32", "half": False},
}


def label_designs(
    config: Config, blocks: Sequence[str], num_candidates: int, num_targets: int
) -> dict[str, SampleDesign]:
    """Return the design of each block's label sample, for a corpus of this size.

    A fraction that would come to more than ``labels.max_pairs`` is cut to that; a number of pairs
    that the recipe gives is not. Where the labels themselves are the scores, all there is is
    labelled, or whole rows up to that number.

    Raises:
        ConfigError: If so few labels leave candidates, or an objective, without what they need.
    """
    make = _design_of_scores if config.pair_scores.by == "teacher" else _design_of_training
    rows = {WITHIN: num_candidates, POINTS: num_candidates, CROSS: num_targets}
    return {block: make(config, block, rows[block], num_candidates) for block in blocks}


def _design_of_training(
    config: Config, block: str, num_rows: int, num_candidates: int
) -> SampleDesign:
    """Return the design of the labels that a network learns from."""
    labels = config.labels
    if block == POINTS:
        wanted = round(num_rows * labels.fraction)
    else:
        wanted = int(num_rows * num_candidates * labels.fraction**2)
    pairs = labels.label_pairs or min(wanted, labels.max_pairs)
    default_holdout = min(MAX_HOLDOUT_PAIRS, max(1, pairs // HOLDOUT_SHARE[block]))
    holdout = labels.holdout_pairs
    return SampleDesign(
        label_fraction=labels.fraction,
        label_pairs=pairs if labels.label_pairs or wanted > pairs else None,
        holdout_pairs_per_quadrant=default_holdout if holdout is None else holdout,
        validation_fraction=labels.validation_fraction,
        seed=labels.seed,
        layout=labels.design,
    )


def _design_of_scores(
    config: Config, block: str, num_rows: int, num_candidates: int
) -> SampleDesign:
    """Return the design of the labels that are the scores: all of them, or whole rows."""
    labels = config.labels
    key = "labels.label_pairs" if labels.label_pairs else "labels.max_pairs"
    most = labels.label_pairs or labels.max_pairs
    kept = {"validation_fraction": labels.validation_fraction, "seed": labels.seed}
    try:
        if block == POINTS:
            return design_all_points(num_rows, most, **kept)
        design = design_whole_rows(num_rows, num_candidates, block == WITHIN, most, **kept)
    except ValueError as error:
        raise ConfigError(
            f"{key} = {most:,}, block '{block}': with pair_scores.by teacher {error}. Raise {key}, "
            "or set pair_scores.by to network, which needs no label of every candidate."
        ) from error
    if design.layout == WHOLE_ROWS and block == WITHIN and config.objective in GRAPH_CUTS:
        raise ConfigError(
            f"selection.objective: {config.objective} reads what every two candidates do for each "
            f"other, {num_rows * (num_rows - 1):,} pairs, and {key} = {most:,} allows fewer "
            f"labels: raise {key}, set pair_scores.by to network, or take facility_location"
        )
    return design


def unread_keys(config: Config) -> list[str]:
    """Return the keys that the recipe changes and that nobody reads where no network is trained.

    A key that asks for what is done anyway, all labels and none held out, is not among them.
    """
    unread: list[str] = []
    for name, keys in _NETWORK_KEYS.items():
        section = getattr(config, name)
        for key, same in keys.items():
            default = type(section).model_fields[key].default
            if getattr(section, key) not in (default, same):
                unread.append(f"{name}.{key}")
    return [*unread, *(["network"] if config.network != NetworkConfig() else [])]
