"""The sentences of the page: what was done here and how to read it."""

from __future__ import annotations

import math

from nncift_ray.report.data import ReportData
from nncift_ray.report.formatting import format_count, format_percent, format_seconds, format_usd
from nncift_ray.report.headline import num_picks, total_cost, total_seconds


def head_lead(data: ReportData) -> list[dict[str, object]]:
    """Say in one sentence what was selected, in parts: text and whether it is set strong."""
    picks = format_count(num_picks(data))
    parts = [
        (f"{picks} of {format_count(data.num_candidates)} examples", True),
        (" selected ", False),
    ]
    if data.pointwise:
        parts.append(("for what they score on their own", False))
    elif data.num_targets:
        parts += [
            ("for what they teach about ", False),
            (f"{format_count(data.num_targets)} targets", True),
        ]
    else:
        parts.append(("for what they teach about all the others", False))
    if data.teacher:
        told = f"{'scores' if data.pointwise else 'influence'} learnt from"
        if data.by_teacher:
            told = f"the {'ratings' if data.pointwise else 'labels'} of"
        parts += [
            (f", by {told} a ", False),
            (data.teacher, True),
            (" teacher", False),
        ]
    return [{"text": text, "strong": strong} for text, strong in [*parts, (".", False)]]


def selection_lead(data: ReportData) -> str:
    """Say how the picks were made."""
    picks = num_picks(data)
    if not picks:
        return "Nothing was selected."
    if data.selection_note:
        return data.selection_note
    if data.ranks_by_score:
        return f"The {format_count(picks)} candidates with the highest score: {_score_of(data)}"
    if data.objective == "random":
        return (
            f"A seeded random choice of {format_count(picks)} candidates, to compare others with; "
            "its value is what they would be worth under facility location."
        )
    objective = data.objective or "the objective"
    return (
        f"{objective[0].upper()}{objective[1:]} was maximised over "
        f"{format_count(data.num_candidates)} candidates: "
        "each pick is the example that adds most to what the earlier picks already give the "
        f"{data.ground_set}.{_search(data)}{_limits(data)}{_end(data)}"
    )


def _search(data: ReportData) -> str:
    """Say how the picks were searched for."""
    parts = f"in {data.num_parts} parts" if data.num_parts else "in parts"
    then = (
        f"in {data.num_rounds} rounds that thin the candidates out, then among those left"
        if data.num_rounds > 1
        else "then among what the parts picked"
    )
    ways = {
        "lazy": "by lazy greedy",
        "naive": "by plain greedy",
        "stochastic": "by stochastic greedy, which looks at a random sample before every pick",
        "cost_benefit": "by lazy greedy twice, by gain a token and by gain; this is the better of "
        "the two",
        "partitioned": f"by lazy greedy {parts}, {then}",
    }
    way = ways.get(data.optimizer)
    return f" Searched {way}." if way else ""


def _limits(data: ReportData) -> str:
    return f" Quotas by {data.mix_name} bound the choice." if data.has_quotas else ""


def _end(data: ReportData) -> str:
    """Say why the picks end where they do, where it is not the budget."""
    ends = {
        "stop_gain": " It stopped before the budget was full: a further pick would have added less "
        "than selection.stop_gain.",
        "exhausted": " It stopped before the budget was full: no candidate was left that may be "
        "picked.",
    }
    return ends.get(data.stopped_by, "")


def skipped_lead(data: ReportData) -> str:
    """Say what the skipped examples are."""
    return (
        "Left out although each is worth much alone: what it would give, the picks already give. "
        "Shown with the pick that gives most of it; the nearer their embeddings, the more they are "
        "copies of each other."
    )


def _score_of(data: ReportData) -> str:
    """Say what a candidate's score is, and what ranking by it leaves out."""
    alone = "Each is judged alone: two picks may teach the same."
    if data.pointwise and data.by_teacher:
        return f"what the teacher says of each. {alone}"
    if data.pointwise:
        return f"what the network predicts the teacher would say of each. {alone}"
    rows = "targets" if data.num_targets else "candidates"
    best = " of the subtask that it helps most" if data.has_subtasks else ""
    does = "is measured to do" if data.by_teacher else "is predicted to do"
    return f"the mean of what each {does} for the {rows}{best}. {alone}"


def neighbours_lead(data: ReportData) -> str:
    """Say in what order sample picks stand, and what stands below each."""
    if data.ranks_by_score:
        return "From the highest score to the lowest that was picked."
    return (
        "From the first pick to the last. Below each pick stand rows for which no other pick is "
        "better, with their coverage (0 to 1)."
    )


def fidelity_lead(data: ReportData) -> str:
    """Say what the network learnt from and what the splits are, or why there is no network."""
    if data.by_teacher:
        return (
            "The scores are the teacher's own labels: no network was trained, so there is no "
            "prediction to hold against the teacher, and no error, correlation or training curve "
            f"to show. {_labelled(data)}"
        )
    if data.pointwise:
        text = (
            "The teacher rates a sample of examples, a small network learns the ratings and "
            "predicts the rest. Q4 are held-out examples that were not in training."
        )
        return f"{text} {_labelled(data)}".rstrip()
    text = (
        "The teacher labels a sample of pairs, a small network learns them and predicts the rest. "
        "Q1 to Q4 are held-out pairs: in Q1 both examples had other labelled pairs in training, in "
        "Q4 neither had."
    )
    return f"{text} {_labelled(data)}".rstrip()


def _labelled(data: ReportData) -> str:
    """Say how much the teacher labelled, where that is known."""
    if data.num_labelled_pairs is None:
        return ""
    did = "rated" if data.pointwise else "labelled"
    return f"The teacher {did} {format_count(data.num_labelled_pairs)} {data.unit} here."


def cost_lead(data: ReportData) -> str:
    """Say what the stages took together."""
    if not data.stages:
        return "No stage was recorded."
    text = f"{len(data.stages)} stages took {format_seconds(total_seconds(data))} together"
    cost = total_cost(data)
    return f"{text}, for {format_usd(cost)}." if cost is not None else f"{text}."


def health_lead(data: ReportData) -> str:
    """Say how many rows were left out."""
    rows = data.num_candidates + data.num_duplicates + data.num_errors
    share = data.num_errors / rows if rows else math.nan
    return (
        f"{format_count(data.num_errors)} rows were set aside as unusable "
        f"({format_percent(share)}) and {format_count(data.num_duplicates)} exact duplicates were "
        "collapsed into the first of their kind; neither were scored."
    )


def footer(data: ReportData) -> str:
    """Say what wrote the page."""
    version = f" {data.version}" if data.version else ""
    made = f", {data.created}" if data.created else ""
    axes = "" if data.pointwise else " Row = helped example, column = helper example."
    return f"Written by nncift_ray{version}{made}.{axes}"
