"""How much of each block the teacher is asked about, for a recipe and the size of its corpus."""

from __future__ import annotations

from collections.abc import Sequence

from nncift_ray.errors import ConfigError
from nncift_ray.labels.sample import SampleDesign, design_of_scores
from nncift_ray.recipe.sections import Config, NetworkConfig
from nncift_ray.runtime.schemas import CROSS, POINTS, WITHIN

#: Held-out pairs of each quadrant where the recipe gives none: one in so many labels, bounded.
#: Points have one quadrant where pairs have four.
HOLDOUT_SHARE = {WITHIN: 20, CROSS: 20, POINTS: 5}
MAX_HOLDOUT_PAIRS = 500
#: Keys that only a network has a use for, each with the value that asks for what a teacher's scores
#: are made of anyway.
_NETWORK_KEYS = {
    "labels": {"fraction": 1.0, "holdout_pairs": 0},
    "pair_scores": {"mode": "exact"},
}


def label_designs(
    config: Config,
    blocks: Sequence[str],
    num_candidates: int,
    num_targets: int,
    *,
    compares_picks: bool = False,
) -> dict[str, SampleDesign]:
    """Return the design of each block's label sample, for a corpus of this size.

    ``compares_picks`` says whether the objective reads what every two candidates do for each other.

    A fraction that would come to more than ``labels.max_pairs`` is cut to that; a number of pairs
    that the recipe gives is not. Where the labels themselves are the scores, all there is is
    labelled, or whole rows up to that number.

    Raises:
        ConfigError: If so few labels leave candidates, or an objective, without what they need.
    """
    rows = {WITHIN: num_candidates, POINTS: num_candidates, CROSS: num_targets}
    if config.pair_scores.by == "teacher":
        return {
            block: _design_of_scores(
                config, block, rows[block], num_candidates, compares_picks=compares_picks
            )
            for block in blocks
        }
    return {
        block: _design_of_training(config, block, rows[block], num_candidates) for block in blocks
    }


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
    )


def _design_of_scores(
    config: Config, block: str, num_rows: int, num_candidates: int, *, compares_picks: bool
) -> SampleDesign:
    """Return the design of the labels that are the scores: all of them, or whole rows."""
    labels = config.labels
    key = "labels.label_pairs" if labels.label_pairs else "labels.max_pairs"
    most = labels.label_pairs or labels.max_pairs
    try:
        design = design_of_scores(
            num_rows,
            None if block == POINTS else num_candidates - (block == WITHIN),
            most,
            validation_fraction=labels.validation_fraction,
            seed=labels.seed,
        )
    except ValueError as error:
        raise ConfigError(
            f"{key} = {most:,}, block '{block}': with pair_scores.by teacher {error}. Raise {key}, "
            "or set pair_scores.by to network, which needs no label of every candidate."
        ) from error
    if design.whole_rows and block == WITHIN and compares_picks:
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
