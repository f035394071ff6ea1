"""The section on new data: there only where a run went on from another, and with its verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nncift_ray.report.data import ReportData
from nncift_ray.report.page import WARN, make_cards, render_report
from tests.unit.report.make_data import make_empty_data

REASON = "a new example lies farther from the labelled sample"


def make_facts(*, due: bool, num_new: int = 50) -> dict[str, Any]:
    return {
        "num_new": num_new,
        "distance": {"farther": 0.9 if due else 0.51, "sigmas": 9.0, "ks": 0.4},
        "median_distance": {"new": 0.4, "reference": 0.2},
        "ranges": [{"block": "within", "side": "rows", "new": 0.08, "reference": 0.02}],
        "due": due,
        "reasons": [REASON] if due else [],
    }


def make_data(*, due: bool) -> ReportData:
    data = make_empty_data()
    return replace(data, drift=make_facts(due=due))


@pytest.mark.parametrize("due", [False, True])
def test_the_section_tells_the_verdict(due: bool) -> None:
    page = render_report(make_data(due=due))
    assert "Do the labels still fit the data?" in page
    assert (f"Relabelling is due because {REASON}" in page) is due
    assert ("no new labels are due" in page) is not due
    assert "activations out of range, within rows" in page


def test_a_card_warns_where_labels_are_due() -> None:
    tones = {
        due: next(card for card in make_cards(make_data(due=due)) if card.name == "New labels").tone
        for due in (False, True)
    }
    assert tones[True] == WARN != tones[False]


def test_a_run_of_its_own_has_no_such_section() -> None:
    page = render_report(make_empty_data())
    assert 'id="drift"' not in page
    assert "New labels" not in page
