from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from nncift_ray.report.page import render_report
from tests.unit.report.make_data import (
    make_empty_data,
    make_fidelity,
    make_ranked_data,
    make_ranking,
    make_report_data,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'$x^2$ {{ 7*7 }} \x00\x1b\ud800"
MAX_PAGE_BYTES = 1_500_000
NUM_CHARTS = 4  # gain, lengths, mix, coverage
NUM_PANELS = 3  # the order has one a measure
ICONS = 1


class PageParser(HTMLParser):
    """Collects tags, attributes and ids, and checks that HTML elements are closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def full_page() -> str:
    return render_report(make_report_data())


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return render_report(make_report_data(text=HOSTILE))


def test_full_report_draws_every_chart(full_page: str) -> None:
    page = PageParser(full_page)
    assert page.tags.count("svg") == NUM_CHARTS + NUM_PANELS + ICONS
    assert "Not available" not in full_page
    assert page.open == []
    assert len(full_page.encode()) < MAX_PAGE_BYTES


def test_a_run_without_picks_and_scores_says_why_pictures_are_missing() -> None:
    page = render_report(make_empty_data())
    assert PageParser(page).tags.count("svg") == ICONS
    assert page.count("Not available because") == 3  # gain, lengths, coverage
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL).lower()


def test_the_first_screen_has_a_verdict_and_four_figures(full_page: str) -> None:
    head = full_page[: full_page.index('<section id="selection">')]
    assert head.count('<div class="stat') == 4
    assert "The scores know which example helps which" in head
    assert "The objective decided all of them; 1 unusable row, 3 exact duplicates were" in head


def test_corpus_text_creates_no_element(full_page: str, hostile_page: str) -> None:
    assert hostile_page.count("<script") == 1  # our own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile_page
    hostile, full = PageParser(hostile_page), PageParser(full_page)
    assert "img" not in hostile.tags
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    outside_svg = {"script", "img", "article", "section", "details"}
    for tag in outside_svg:
        assert hostile.tags.count(tag) == full.tags.count(tag)


def test_corpus_text_is_not_run_as_a_template(hostile_page: str) -> None:
    assert "{{ 7*7 }}" in hostile_page


def test_page_holds_only_characters_that_utf8_and_html_allow(hostile_page: str) -> None:
    hostile_page.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", hostile_page)


def test_page_loads_nothing_from_elsewhere(full_page: str) -> None:
    page = PageParser(full_page)
    assert not {"link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert page.values("src") == []
    assert all(link.startswith("#") for link in page.values("href"))
    assert "@import" not in full_page
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", full_page))
    assert "http://" not in full_page
    assert "https://" not in full_page


def test_page_forbids_loads_and_all_scripts_but_its_own_by_policy(full_page: str) -> None:
    assert "default-src 'none'" in full_page
    (script,) = re.findall(r"<script>(.*?)</script>", full_page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in full_page


def test_every_heading_of_a_table_has_a_scope_and_every_table_a_caption(full_page: str) -> None:
    assert len(re.findall(r"<th(?= |>)", full_page)) == full_page.count('<th scope="col"')
    assert full_page.count("<table>") == full_page.count("<caption>")
    assert "Name a river." in full_page


def test_ids_are_unique_and_every_reference_has_one() -> None:
    two_blocks = make_report_data()
    page = PageParser(render_report(replace(two_blocks, fidelity=make_fidelity("cross"))))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href")} <= set(ids)
    used = re.findall(r"url\(#([^)]+)\)", " ".join(value for _, _, value in page.attributes))
    assert set(used) <= set(ids)


def test_same_data_gives_the_same_bytes(full_page: str) -> None:
    assert render_report(make_report_data()) == full_page


def test_metrics_that_are_nan_read_as_a_dash() -> None:
    fidelity = make_fidelity(network=math.nan, row_column_mean=math.nan, random=math.inf)
    page = render_report(replace(make_report_data(), fidelity=fidelity))
    assert not re.search(r">\s*(nan|inf)\b", page)
    assert '<td class="num">–</td>' in page


def test_one_pick_renders() -> None:
    page = render_report(replace(make_report_data(), ranking=make_ranking(1)))
    assert "One pick makes the whole objective" in page


def test_hundred_thousand_picks_stay_a_small_page() -> None:
    page = render_report(replace(make_report_data(), ranking=make_ranking(100_000)))
    assert ">100,000<" in page
    assert len(page.encode()) < MAX_PAGE_BYTES


def test_values_that_clash_with_the_palette_stay_as_written() -> None:
    page = render_report(make_report_data(text='style="fill: #0b6bcb" url(#x)'))
    assert "style=&#34;fill: #0b6bcb&#34; url(#x)" in page


def visible_text(page: str) -> str:
    """Return what a reader reads, without style and tags."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.fixture(scope="module")
def points_text() -> str:
    return visible_text(render_report(make_ranked_data(pointwise=True)))


@pytest.fixture(scope="module")
def ranked_text() -> str:
    return visible_text(render_report(make_ranked_data(pointwise=False)))


def test_a_pointwise_report_speaks_of_examples_and_never_of_pairs(points_text: str) -> None:
    assert not re.search(
        r"\b(pairs?|quadrant|row \+ column|Q1|Q2|Q3)\b", points_text, re.IGNORECASE
    )
    assert "Not available" not in points_text
    assert "Q4, not seen" in points_text
    assert "Order agrees with teacher" in points_text


@pytest.mark.parametrize("kind", ["points_text", "ranked_text"])
def test_picks_by_score_show_scores_and_no_coverage(
    kind: str, request: pytest.FixtureRequest
) -> None:
    text = request.getfixturevalue(kind)
    assert "Scores fall from 1.00 at the first pick to 0.0500 at the last" in text
    assert "score 0.900" in text
    words = r"\b(coverage|best for|gain|adds most|earlier picks)\b"
    assert re.findall(words, text, re.IGNORECASE) == []


def test_a_score_over_targets_says_whose_mean_it_is(ranked_text: str) -> None:
    assert "predicted to do for the targets of the subtask that it helps most" in ranked_text
    assert "Not available" not in ranked_text


def test_skipped_examples_stand_with_the_pick_that_speaks_for_them() -> None:
    page = render_report(make_report_data())
    assert "redundant with selected ones" in page
    assert "worth 0.900 alone" in page
    assert "gives 80" in page


def test_answers_that_look_wrong_stand_with_the_examples_they_were_held_against() -> None:
    page = render_report(make_report_data())
    assert "7 of 100 candidates: the examples nearest" in page
    assert "suspicion 3.2 · consistency 1.5" in page
    assert "picked, #4" in page


def test_quality_that_was_not_weighed_is_said_to_be_so() -> None:
    page = render_report(replace(make_report_data(), uses_quality=False))
    assert "The selection did not weigh this" in page


def test_a_run_that_measured_no_quality_has_no_such_section() -> None:
    page = render_report(replace(make_report_data(), suspects=(), num_suspects=None))
    assert "look wrong" not in page


def test_a_run_that_skipped_nothing_has_no_such_section() -> None:
    page = render_report(replace(make_report_data(), skipped=()))
    assert "redundant with selected ones" not in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"optimizer": "lazy"}, "Searched by lazy greedy."),
        ({"optimizer": "cost_benefit"}, "by gain a token and by gain"),
        (
            {"optimizer": "partitioned", "num_parts": 8},
            "lazy greedy in 8 parts, then among what the parts picked.",
        ),
    ],
)
def test_the_page_says_how_the_subset_was_searched(more: dict[str, Any], words: str) -> None:
    assert words in render_report(replace(make_report_data(), **more))


def test_an_older_run_that_does_not_say_how_is_not_guessed_at() -> None:
    assert "Searched" not in render_report(make_report_data())


def test_an_early_stop_is_said() -> None:
    page = render_report(replace(make_report_data(), stopped_by="stop_gain"))
    assert "selection.stop_gain" in page


def test_a_random_choice_is_not_said_to_be_maximised() -> None:
    page = render_report(replace(make_report_data(), objective="random"))
    assert "A seeded random choice of 20 candidates" in page
    assert "was maximised" not in page
