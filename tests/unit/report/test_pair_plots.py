from __future__ import annotations

import re

import pyarrow as pa

from nncift_ray.report.figures import plot_histogram, plot_recall
from nncift_ray.report.page import render_report
from nncift_ray.runtime import schemas
from tests.unit.report.make_data import make_minimal_data, make_recall


def test_recall_is_told_with_the_share_of_pairs_it_took() -> None:
    chart = plot_recall(*make_recall(), 0.98)
    assert re.fullmatch(
        r"99.* % of the true best helpers .* scoring 1.6\s% of the pairs", chart.title
    )
    assert chart.available


def test_a_run_that_went_exact_after_all_says_so() -> None:
    tried, final = make_recall()
    chart = plot_recall(tried, final.slice(0, 0), 0.98)
    assert chart.title.endswith("every pair scored instead")
    assert chart.available


def test_an_index_that_tried_nothing_has_no_picture() -> None:
    tried, final = make_recall()
    assert "every pair was scored" in plot_recall(tried.slice(0, 0), final, 0.98).missing


def test_a_histogram_draws_one_panel_a_block() -> None:
    rows = {"block": ["cross", "within"], "bin": [48_000, 48_001], "count": [4, 6]}
    chart = plot_histogram(pa.Table.from_pydict(rows, schemas.SCORE_HISTOGRAM))
    assert [panel.caption for panel in chart.panels] == ["cross", "within"]
    assert "10 scores" in chart.title


def test_equal_scores_make_a_histogram_of_one_bin() -> None:
    rows = {"block": ["within"], "bin": [32_768], "count": [9]}  # all scores are 0
    chart = plot_histogram(pa.Table.from_pydict(rows, schemas.SCORE_HISTOGRAM))
    assert "nan" not in chart.panels[0].svg


def test_a_page_without_pruning_has_no_recall_picture() -> None:
    assert 'id="recall"' not in render_report(make_minimal_data())
