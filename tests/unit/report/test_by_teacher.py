"""A run whose scores are its teacher's labels speaks of no network."""

from __future__ import annotations

import re

from nncift_ray.report.page import make_cards, render_dataset_card, render_report
from tests.unit.report.make_data import make_report_data, make_teacher_data


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</head>", 1)[1]).split())


def test_the_page_says_whose_the_scores_are_and_why_a_section_is_missing() -> None:
    page = text_of(render_report(make_teacher_data()))
    assert "by the scores of a DELIFT teacher" in page
    assert "What the teacher said" in page
    assert "no network was trained, so there is no prediction to hold against it" in page
    for gone in ("Network fidelity", "stands in for its teacher", "All metrics"):
        assert gone not in page
        assert gone in text_of(render_report(make_report_data()))


def test_the_page_keeps_what_is_known_of_the_scores() -> None:
    page = text_of(render_report(make_teacher_data()))
    assert "What the teacher labelled" in page


def test_cards_claim_no_prediction() -> None:
    cards = {card.name: card for card in make_cards(make_teacher_data())}
    assert cards["Pairs labelled"].value == "400"
    assert not any("Order agrees" in name or "Error against" in name for name in cards)


def test_the_dataset_card_names_the_teacher_and_no_network() -> None:
    card = render_dataset_card(make_teacher_data())
    assert "by the scores of the teacher DELIFT, without a network," in card
    assert "NN-CIFT](" not in card
