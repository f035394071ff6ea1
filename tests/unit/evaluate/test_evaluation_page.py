from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from nncift_ray.evaluation.page import (
    evaluation_tables,
    headline,
    render_evaluation,
    savings_of,
    verdict_sentence,
)
from nncift_ray.evaluation.results import Evaluation
from nncift_ray.runtime import schemas
from tests.unit.evaluate.make_evaluation import (
    make_costs,
    make_empty_evaluation,
    make_evaluation,
    with_scores,
)
from tests.unit.evaluate.make_scores import make_scores
from tests.unit.report.test_render import HOSTILE, PageParser, visible_text

ICONS = 1
#: A picture and a curve a metric, of two tests.
NUM_CHARTS = 2 * (3 + 3)


@pytest.fixture(scope="module")
def data() -> Evaluation:
    return make_evaluation(HOSTILE.removesuffix("\ud800"))  # which no table can hold


@pytest.fixture(scope="module")
def page(data: Evaluation) -> str:
    return render_evaluation(data)


def printed(data: Evaluation, width: int = 110) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(evaluation_tables(data))
    return capture.get()


def judged(*grades: float | None, repeat: int = 20) -> pa.Table:
    """Make a judge's verdicts on random's two seeds and on one method."""
    values = list(grades) * repeat
    return pa.concat_tables([
        make_scores("random", values, seed=0, metric="judge"),
        make_scores("random", values, seed=1, metric="judge"),
        make_scores("delift", values, metric="judge"),
    ])  # fmt: skip


def test_every_part_is_drawn(page: str) -> None:
    assert PageParser(page).tags.count("svg") == NUM_CHARTS + ICONS
    assert "Not available" not in page


def test_corpus_text_creates_no_element_and_nothing_is_loaded(page: str) -> None:
    parsed = PageParser(page)
    assert not {"script", "img", "link", "iframe", "object"} & set(parsed.tags)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert parsed.values("src") == []
    assert all(link.startswith("#") for link in parsed.values("href"))
    assert "http" not in re.sub(r'http-equiv="', "", page)


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    parsed = PageParser(page)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in parsed.values("href")} <= set(ids)


def test_the_headline_names_who_beats_random_and_by_how_much(data: Evaluation) -> None:
    told = headline(data)
    tests = [line.split()[1] for line in told]
    assert tests == ["gsm8k", "t0"]
    assert re.search(r"delift \(NLL 0\.1\d+ lower, fine-tuned, 10 %", told[0])
    assert "selectit" in told[0]
    assert "worse than random" in told[0]
    assert "beat random" in told[0]


def test_a_method_that_is_better_by_one_metric_and_worse_by_another_is_told_as_both() -> None:
    level = [0.1, 0.5, 0.3, 0.9, 0.4, 0.2] * 5
    # Four methods beat random by ROUGE, and one of them loses by cosine.
    moved = {"rouge1": dict.fromkeys(("delift", "delift_se", "less", "selectit"), 2.0),
             "bge": {"selectit": -2.0}}  # fmt: skip
    scores = [
        make_scores("random", [v + s / 100 for v in level], seed=s, metric=metric)
        for metric in moved
        for s in range(3)
    ]
    scores += [
        make_scores(method, [v + move for v in level], metric=metric)
        for metric, moves in moved.items()
        for method, move in moves.items()
    ]
    (told,) = headline(with_scores(make_empty_evaluation(), pa.concat_tables(scores)))
    beats, both = told.removesuffix(".").split("; ")
    assert beats.endswith("beat random")
    assert "selectit" not in beats
    assert both.startswith("selectit does both, better (ROUGE-1")
    assert ") and worse (embedding cosine 2.0" in both


def test_more_winners_than_are_told_are_counted() -> None:
    level = [0.1, 0.5, 0.3, 0.9, 0.4, 0.2] * 5
    scores = [make_scores("random", [v + s / 100 for v in level], seed=s) for s in range(3)]
    names = ("delift", "delift_se", "less", "selectit", "nn_cift+less")
    scores += [make_scores(name, [v + 2 for v in level]) for name in names]
    (told,) = headline(with_scores(make_empty_evaluation(), pa.concat_tables(scores)))
    assert told.count("ROUGE-1") == 3
    assert told.endswith(") and 2 more beat random.")


def test_where_none_beats_random_the_headline_says_so() -> None:
    same = [0.1, 0.5, 0.3, 0.9, 0.4, 0.2] * 5
    scores = [make_scores("random", same, seed=s) for s in range(3)]
    empty = make_empty_evaluation()
    data = with_scores(empty, pa.concat_tables([*scores, make_scores("delift", same)]))
    assert headline(data) == ["No method can be told from a random subset of the same size."]
    assert "1 within noise" in verdict_sentence(data)
    assert "≈ random" in printed(data)
    assert "No method differs from random on gsm8k in ROUGE-1 F" in render_evaluation(data)


def test_one_random_subset_allows_no_verdict_and_the_headline_says_why() -> None:
    scores = [make_scores("random", [0.1, 0.2, 0.3]), make_scores("delift", [0.9, 0.8, 0.9])]
    data = with_scores(make_empty_evaluation(), pa.concat_tables(scores))
    assert "one random subset only" in headline(data)[0]
    assert "no verdict" in printed(data)


def test_without_random_nothing_is_claimed() -> None:
    data = with_scores(make_empty_evaluation(), make_scores("delift", [0.9, 0.8]))
    assert headline(data) == [
        "There is no random subset to compare with, so nobody knows what choosing is worth."
    ]


def test_an_evaluation_of_nothing_is_a_page_that_says_so() -> None:
    page = render_evaluation(make_empty_evaluation())
    text = visible_text(page)
    assert "Nothing has been measured yet" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "Nothing has been measured yet" in printed(make_empty_evaluation())


def test_a_judge_that_babbles_is_shown_for_what_it_is() -> None:
    data = with_scores(make_empty_evaluation(), judged(None, None, None, 4.0))
    told = re.sub(r"\s+", " ", printed(data))
    assert "The judge babbles: 180 of 240 verdicts hold no grade" in told
    assert headline(data) == [
        "The judge cannot be read, and no other metric was measured: nothing can be said."
    ]
    assert verdict_sentence(data) == ""
    assert "120 missing" in told
    assert "The judge babbles" in render_evaluation(data)


def test_a_judge_without_any_readable_verdict_has_no_mean() -> None:
    data = with_scores(make_empty_evaluation(), judged(None))
    page = render_evaluation(data)
    assert "no answer has a value of this metric" in page
    assert "60 of 60 verdicts hold no grade" in page
    assert "60 of 60 verdicts" in printed(data)


def test_missing_values_and_cells_are_shown_in_the_terminal(data: Evaluation) -> None:
    told = printed(data)
    assert "8 missing" in told
    assert "could not be read or are missing" in told
    without = data.scores.filter(
        ~((pc.field("method") == "delift") & (pc.field("metric") == "rouge1"))
    )
    assert "not measured" in printed(with_scores(data, without))


def test_terminal_states_verdicts_in_words_and_survives_narrow_screens(
    data: Evaluation,
) -> None:
    for width in (60, 80, 200):
        told = printed(data, width)
        assert "better" in told
        assert "worse" in told
        assert "random" in told


def test_savings_compare_a_network_with_its_teacher_on_as_many_candidates() -> None:
    measured, extrapolated = savings_of(make_costs())
    assert (measured.own["method"], measured.teacher["method"]) == ("nn_cift+delift", "delift")
    assert measured.share == pytest.approx(1 - 100 / 1000)
    assert not measured.note
    assert extrapolated.own["num_candidates"] == 1_000_000
    assert extrapolated.share == pytest.approx(1 - 1e5 / 1e8)
    assert extrapolated.note


def test_a_teacher_asked_about_a_part_is_compared_by_what_all_would_cost() -> None:
    rows = [row for row in make_costs().to_pylist() if row["num_candidates"] == 1000]
    whole = next(r for r in rows if (r["method"], r["step"]) == ("delift", "all"))
    rows.append(whole | {"seconds": 5000.0, "extrapolated": True})
    (saving,) = savings_of(pa.Table.from_pylist(rows, schemas.COSTS))
    assert saving.share == pytest.approx(1 - 100 / 5000)
    assert saving.note


def test_extrapolated_costs_are_marked_wherever_they_stand(data: Evaluation, page: str) -> None:
    assert re.search(r"nn_cift\+delift 1,000,000 .*? extrapolated", visible_text(page))
    assert re.search(r"nn_cift\+delift +1,000,000.* extrapolated", printed(data, 200))
