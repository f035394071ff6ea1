"""The cards at the head of the page: one number each, with what it is to be compared to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nncift_ray.report.data import ReportData, unit_of
from nncift_ray.report.formatting import (
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_usd,
)
from nncift_ray.report.headline import (
    MEAN,
    ROW_COLUMN_MEAN,
    final_objective,
    headline_fidelity,
    mean_coverage,
    mean_score,
    num_picks,
    num_scored_pairs,
    share_of_best,
    total_cost,
    total_seconds,
)

GOOD, WARN = "good", "warn"
GOOD_SHARE = 0.9  # of the best possible value
MANY_ERRORS = 0.02  # share of all rows read
BASELINE_NAMES = {ROW_COLUMN_MEAN: "row + column mean", MEAN: "the mean label"}


@dataclass(frozen=True, slots=True)
class Card:
    """One headline number."""

    name: str
    value: str
    note: str
    tone: str = ""  # "", "good" or "warn"


def make_cards(data: ReportData) -> list[Card]:
    """Make the cards that this run has numbers for, the most important first."""
    makers = (_picks, _value, _optimum, _correlation, _error, _labels, _drift, _time, _health)
    return [card for card in (make(data) for make in makers) if card is not None]


def _picks(data: ReportData) -> Card:
    picks = num_picks(data)
    share = picks / data.num_candidates if data.num_candidates else math.nan
    note = f"{format_percent(share)} of {format_count(data.num_candidates)} candidates"
    return Card("Examples selected", format_count(picks), note)


def _value(data: ReportData) -> Card | None:
    if data.ranks_by_score:
        return _score(data)
    coverage = mean_coverage(data)
    final = final_objective(data)
    if math.isfinite(coverage):
        note = (
            f"mean over {format_count(data.coverage.num_rows if data.coverage is not None else 0)} "
            f"{data.ground_set}"
        )
        if data.random_objective and math.isfinite(final):
            note += (
                f"; {format_number(final / data.random_objective, 3)} × a random subset's objective"
            )
        return Card("Coverage (0 to 1)", format_number(coverage), note)
    if math.isfinite(final):
        return Card("Objective", format_number(final, 4), "after the last pick")
    return None


def _optimum(data: ReportData) -> Card | None:
    share = share_of_best(data)
    if data.ranks_by_score or not math.isfinite(share):
        return None
    note = "of what any subset within the budget could be worth"
    # Rounded down: the bound is a promise.
    return Card(
        "At least", f"{math.floor(1000 * share) / 10:g} %", note, GOOD if share > 0.9 else ""
    )


def _score(data: ReportData) -> Card | None:
    mean = mean_score(data)
    if not math.isfinite(mean):
        return None
    note = "mean over the picks"
    if data.random_objective:
        ratio = format_number(final_objective(data) / data.random_objective, 3)
        note += f"; {ratio} × a random subset's"
    return Card("Score (0 to 1)", format_number(mean), note)


def _correlation(data: ReportData) -> Card | None:
    found = headline_fidelity(data)
    if found is None or not math.isfinite(found.spearman):
        return None
    count = f"{format_count(found.num_pairs)} {unit_of(found.block)}"
    note = f"Spearman, {found.split} of {found.block}, {count}"
    tone = GOOD if found.spearman >= 0.5 else WARN if found.spearman < 0.2 else ""
    return Card("Order agrees with teacher", f"{found.spearman:.2f}", note, tone)


def _error(data: ReportData) -> Card | None:
    found = headline_fidelity(data)
    if found is None:
        return None
    ratio = found.error_ratio
    note = f"MSE {format_number(found.scaled_mse)} on labels scaled to [0,\u00a01], {found.split}"
    if not math.isfinite(ratio):
        return Card("Network error", format_number(found.scaled_mse), note)
    value = f"{format_percent(abs(1 - ratio))} {'below' if ratio <= 1 else 'above'}"
    if ratio > 2:
        value = f"{format_number(ratio, 2)} ×"
    tone = GOOD if ratio < 0.9 else WARN if ratio > 1.02 else ""
    return Card(f"Error against {BASELINE_NAMES[found.baseline]}", value, note, tone)


def _labels(data: ReportData) -> Card | None:
    scored, labelled = num_scored_pairs(data), data.num_labelled_pairs
    unit = data.unit.capitalize()
    if labelled is None:
        return None
    if data.by_teacher:
        note = "by the teacher; no score is predicted"
        return Card(f"{unit} labelled", format_compact(labelled), note)
    if not scored:
        return Card(f"{unit} labelled", format_compact(labelled), "by the teacher")
    note = f"{format_count(labelled)} labelled of {format_compact(scored)} scored"
    return Card(f"{unit} the teacher saw", format_percent(labelled / scored), note)


def _drift(data: ReportData) -> Card | None:
    if data.drift is None:
        return None
    due = bool(data.drift["due"])
    note = f"{format_count(data.drift['num_new'])} new candidates"
    distance = data.drift.get("distance")
    if distance is not None:
        note += f"; farther from the labels than the labelled corpus in {distance['farther']:.0%}"
    return Card("New labels", "due" if due else "not due", note, WARN if due else GOOD)


def _time(data: ReportData) -> Card | None:
    if not data.stages:
        return None
    cost = total_cost(data)
    note = f"{len(data.stages)} stages"
    if cost is not None:
        note += f", {format_usd(cost)}"
    return Card("Time", format_seconds(total_seconds(data)), note)


def _health(data: ReportData) -> Card:
    note = f"rows set aside; {format_count(data.num_duplicates)} exact duplicates collapsed"
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    tone = WARN if data.num_errors > MANY_ERRORS * rows else ""
    return Card("Unusable rows", format_count(data.num_errors), note, tone)
