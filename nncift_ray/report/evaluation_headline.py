"""What a reader of an evaluation should leave with, in a few sentences and cards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from nncift_ray.core.evaluation.comparison import LOWER_IS_BETTER
from nncift_ray.report.cards import GOOD, WARN, Card
from nncift_ray.report.cost_plots import saving_words, savings_of
from nncift_ray.report.evaluation_data import (
    INITIAL,
    JUDGE,
    RANDOM,
    UNTAUGHT,
    EvaluationData,
    Result,
    first_budget,
    results_of,
)
from nncift_ray.report.evaluation_words import (
    budget_words,
    gain_words,
    list_words,
    metric_of,
    metric_words,
    mode_words,
)
from nncift_ray.report.formatting import format_count, format_percent
from nncift_ray.report.verdict_plots import judge_report, verdict_notices, verdicts_of
from nncift_ray.storage.evaluation_schemas import BETTER, NOISE, WORSE

MAX_FINDINGS = 3  # methods told of one test set
NOTHING = "No method can be told from a random subset of the same size."


def headline(data: EvaluationData) -> list[str]:
    """Say in a sentence a test set which methods beat random, by how much; or that none does.

    Of a method the surest result is told, at the size that most methods have if there is one, and
    how many more results say the same. Methods that are worse are told too. Of a judge that
    cannot be read nothing is told.
    """
    results = results_of(data.summary)
    judged = judged_results(data)
    if not judged:
        return [_why_no_verdict(results)]
    if all(row.verdict == NOISE for row in judged):
        return [NOTHING]
    tests = list(dict.fromkeys(row.test for row in judged))
    main = first_budget(results)
    judged.sort(key=lambda row: (row.budget != main, row.adjusted_p_value))
    return [_finding(test, [row for row in judged if row.test == test]) for test in tests]


def judged_results(data: EvaluationData) -> list[Result]:
    """Return the results with a verdict, those of a judge that cannot be read left out."""
    report = judge_report(verdicts_of(data.scores))
    babbles = report is not None and report.kind == "unreadable"
    return [
        row for row in results_of(data.summary)
        if row.verdict is not None and not (babbles and row.metric == JUDGE)
    ]  # fmt: skip


def _why_no_verdict(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing has been measured yet."
    seeds = max((row.num_seeds for row in results if row.method == RANDOM), default=0)
    if not seeds:
        return "There is no random subset to compare with, so nobody knows what choosing is worth."
    if seeds == 1:
        return (
            "There is one random subset only, so nobody can say how much of a difference is luck: "
            "set evaluation.random_seeds to 3 or more."
        )
    if any(row.verdict for row in results):
        return "The judge cannot be read, and no other metric was measured: nothing can be said."
    return "No method has values on the same rows as a random subset of its size."


def _finding(test: str, judged: Sequence[Result]) -> str:
    better = _by_method([row for row in judged if row.verdict == BETTER])
    worse = _by_method([row for row in judged if row.verdict == WORSE])
    if not better and not worse:
        return f"On {test} no method can be told from random."
    both = [name for name in better if name in worse]  # by one metric or use this, by another that
    parts: list[str] = []
    if names := _told(better, both):
        rest = len(names) - MAX_FINDINGS
        told = names[:MAX_FINDINGS] + ([f"{rest} more"] if rest > 0 else [])
        parts.append(f"{list_words(told)} {'beat' if len(names) > 1 else 'beats'} random")
    if names := _told(worse, both):
        parts.append(f"{list_words(names)} {'do' if len(names) > 1 else 'does'} worse than random")
    parts += [
        f"{name} does both, better ({_how(better[name])}) and worse ({_how(worse[name])})"
        for name in both
    ]
    if not better:
        parts.append("no method beats random")
    return f"On {test} {'; '.join(parts)}."


def _told(found: Mapping[str, Sequence[Result]], without: Sequence[str]) -> list[str]:
    """Return methods with by how much, each in a few words."""
    return [f"{name} ({_how(rows)})" for name, rows in found.items() if name not in without]


def _by_method(rows: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    return found


def _how(rows: Sequence[Result]) -> str:
    """Say by how much in the surest comparison: "NLL 0.05 lower, fine-tuned, 10 %"."""
    surest = rows[0]  # they are sorted so
    more = f", and in {len(rows) - 1} more" if len(rows) > 1 else ""
    place = f"{mode_words(surest.mode)}, {budget_words(surest.budget)}"
    return f"{metric_words(surest.metric)} {gain_words(surest)}, {place}{more}"


def count_verdicts(data: EvaluationData) -> Counter[str]:
    """Count better, worse and noise."""
    return Counter(row.verdict or "" for row in judged_results(data))


def verdict_sentence(data: EvaluationData) -> str:
    """Say how many comparisons there are and what they say, and how many may err."""
    counts = count_verdicts(data)
    number = counts[BETTER] + counts[WORSE] + counts[NOISE]
    if not number:
        return ""
    groups = {
        (row.test, row.metric, row.mode, row.budget)
        for row in judged_results(data)
    }  # fmt: skip
    tables = "comparison" if len(groups) == 1 else "comparisons"
    return (
        f"Of {format_count(number)} results beside random, {counts[BETTER]} are better, "
        f"{counts[WORSE]} worse and {counts[NOISE]} within noise. They stand in {len(groups)} "
        f"{tables} of methods (one test set, metric, use and size each); in each the chance of any "
        f"false verdict is at most {format_percent(1 - data.confidence)}."
    )


def evaluation_cards(data: EvaluationData) -> list[Card]:
    """Make the cards at the head of the page."""
    counts = count_verdicts(data)
    number = counts[BETTER] + counts[WORSE] + counts[NOISE]
    cards: list[Card] = []
    if number:
        tone = GOOD if counts[BETTER] and not counts[WORSE] else WARN if counts[WORSE] else ""
        note = f"of {number} results; {counts[WORSE]} worse, {counts[NOISE]} within noise"
        cards.append(Card("Better than random", str(counts[BETTER]), note, tone))
    for saving in savings_of(data.costs)[:2]:
        if math.isfinite(saving.share):
            way = "less" if saving.share >= 0 else "more"
            marked = ", extrapolated" if saving.extrapolated else ""
            cards.append(Card(
                f"Time of {saving.own.method}", f"{format_percent(abs(saving.share))} {way}",
                f"than {saving.teacher.method}, "
                f"{format_count(saving.own.num_candidates)} candidates{marked}",
                GOOD if saving.share > 0 else WARN,
            ))  # fmt: skip
    cards += _agreement_cards(data)
    missing = sum(row.num_missing for row in results_of(data.summary))
    note = "failed or unreadable; counted, never replaced"
    cards.append(Card("Values missing", format_count(missing), note, WARN if missing else ""))
    return cards


def _agreement_cards(data: EvaluationData) -> list[Card]:
    return [
        Card(f"Picks of {row['method']}", f"{format_percent(row['overlap'])} shared",
             f"with {row['teacher']} at {budget_words(row['budget'])}; by chance "
             f"{format_percent(row['chance_overlap'])}")
        for row in data.agreement.to_pylist()[:2]
    ]  # fmt: skip


def evaluation_notices(data: EvaluationData) -> list[str]:
    """Say what makes results weaker than they look, most serious first."""
    results = results_of(data.summary)
    notices = verdict_notices(verdicts_of(data.scores))
    missing = [row for row in results if row.num_missing and row.metric != JUDGE]
    if missing:
        worst = max(missing, key=lambda row: row.num_missing)
        number = sum(row.num_missing for row in missing)
        notices.append(
            f"{format_count(number)} values are missing (answers or likelihoods that failed), most "
            f"for {worst.method} in {metric_words(worst.metric)} on {worst.test}: "
            f"{format_count(worst.num_missing)}. They count for no method; the tables show them."
        )
    return [*notices, *_teaching_notices(results), *data.notices]


def _teaching_notices(results: Sequence[Result]) -> list[str]:
    """Say where random subsets taught the model nothing that the metric sees.

    Where that is so, a metric can hardly tell subsets apart either.
    """
    initial = {(row.test, row.metric): row for row in results
               if row.method == INITIAL and row.mode == UNTAUGHT}  # fmt: skip
    flat: dict[tuple[str, str], list[str]] = {}
    for row in results:
        before = initial.get((row.test, row.metric))
        if row.method != RANDOM or before is None or not (row.is_measured and before.is_measured):
            continue
        if before.low <= row.high and row.low <= before.high:
            key = row.test, f"{mode_words(row.mode)}, {budget_words(row.budget)}"
            flat.setdefault(key, []).append(metric_words(row.metric))
    return [
        f"On {test} ({how}) random subsets leave {list_words(names)} about where the untaught "
        "model is (intervals overlap): expect little difference between subsets there."
        for (test, how), names in flat.items()
    ]


def cost_sentence(data: EvaluationData) -> str:
    """Say what networks save on the corpus that was run; "" where there is no pair."""
    savings = savings_of(data.costs)
    measured = min((one.own.num_candidates for one in savings), default=0)
    parts = [saving_words(one) for one in savings if one.own.num_candidates == measured]
    return f"{list_words(parts)}." if parts else ""


def direction_words(metrics: Sequence[str]) -> str:
    """Say of which metrics less is better; "" of none."""
    less = [metric_of(name).name for name in metrics if name in LOWER_IS_BETTER]
    return f"Of {list_words(less)} less is better, of all others more." if less else ""
