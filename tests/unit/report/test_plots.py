from __future__ import annotations

import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

from nncift_ray.report.data import (
    MixRow,
    choose_sample_ranks,
    count_mix,
)
from nncift_ray.report.figures import (
    MAX_CURVE_POINTS,
    plot_coverage,
    plot_gain_curve,
    plot_lengths,
    plot_mix,
    plot_order,
    plot_scores,
    thin_curve,
)
from nncift_ray.report.page import make_cards
from nncift_ray.runtime import schemas
from tests.unit.report.make_data import (
    make_coverage,
    make_fidelity,
    make_ranked_data,
    make_ranking,
    make_report_data,
    make_teacher_data,
)


def test_thinned_curve_keeps_both_ends_and_order() -> None:
    keep = thin_curve(100_000)
    assert len(keep) <= MAX_CURVE_POINTS
    assert (keep[0], keep[-1]) == (0, 99_999)
    assert (np.diff(keep) > 0).all()


def test_gain_title_names_the_pick_that_reaches_nine_tenths() -> None:
    # Harmonic numbers: H_10 = 2.929, and H_7 = 2.593 < 0.9 * H_10 = 2.636 <= H_8 = 2.718.
    title = plot_gain_curve(make_ranking(10)).title
    assert title.startswith("90 % of the objective is reached after 8 picks")


def test_the_bound_is_promised_rounded_down() -> None:
    chart = plot_gain_curve(make_ranking(10), upper_bound=3.0)  # H_10 = 2.929: 97.63 %
    assert "at least 97.6 % of the best possible" in chart.means
    assert "no subset exceeds 102" in chart.panels[0].svg


def test_a_bound_far_off_is_said_and_not_drawn() -> None:
    chart = plot_gain_curve(make_ranking(10), upper_bound=30.0)
    assert "at least 9.7 %" in chart.means
    assert "no subset exceeds" not in chart.panels[0].svg


def test_quotas_are_marked_where_there_are_any() -> None:
    plain = [MixRow("a", 60, 5), MixRow("b", 40, 15)]
    bounded = [replace(plain[0], least=5), replace(plain[1], most=15)]
    assert "quota" in plot_mix(bounded, "task").panels[0].svg
    assert "Orange marks are quotas" in plot_mix(bounded, "task").sees
    assert "quota" not in plot_mix(plain, "task").panels[0].svg


def test_gain_curve_without_picks_says_so() -> None:
    chart = plot_gain_curve(schemas.RANKING.empty_table())
    assert not chart.available
    assert "no pick" in chart.missing


def test_coverage_counts_rows_without_a_pick() -> None:
    chart = plot_coverage(make_coverage(50), "targets")
    assert "2.0 % have no pick" in chart.title
    assert "1 of them" in chart.means


def test_coverage_of_no_row_at_all_draws() -> None:
    columns = {"row_index": [0], "covered_by": pa.array([None], pa.int64()), "coverage": [0.0]}
    chart = plot_coverage(pa.table(columns).cast(schemas.COVERAGE), "candidates")
    assert chart.available
    assert chart.title.startswith("No pick")


def test_mix_title_names_what_grew_and_what_shrank() -> None:
    chart = plot_mix([MixRow("news", 80, 10), MixRow("sums", 20, 30)], "task")
    assert chart.title == "“sums” grows from 20 % to 75 %, “news” shrinks from 80 % to 25 %"


def test_mix_of_many_groups_shows_twenty_and_sums_up_the_rest() -> None:
    chart = plot_mix([MixRow(f"group{i}", 10, i) for i in range(50)], "task")
    assert sum(f">group{i}<" in chart.panels[0].svg for i in range(50)) == 20
    assert "The other 30 hold" in chart.sees


def test_mix_label_keeps_dollars_and_angle_brackets() -> None:
    rows = [MixRow("<b>$a^2$</b>", 5, 5), MixRow("x", 5, 0)]
    assert "&lt;b&gt;$a^2$&lt;/b&gt;" in plot_mix(rows, "task").panels[0].svg


def test_lengths_title_compares_medians() -> None:
    chart = plot_lengths(np.full(10, 100), np.full(4, 250))
    assert chart.title == "Picks are 2.5 times as long as the pool: median 250 against 100 tokens"


def test_lengths_of_zero_tokens_draw_on_the_log_axis() -> None:
    assert plot_lengths(np.array([0, 0]), np.array([0])).available


def test_undefined_correlations_have_a_reason() -> None:
    table = make_fidelity()
    nulls = pa.nulls(table.num_rows, pa.float64())
    for name in ("spearman", "interaction_correlation", "capture"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, schemas.FIDELITY.field(name), nulls)
    assert not plot_order(table, "within").available


def test_drawing_leaves_the_global_settings_alone() -> None:
    before = dict(mpl.rcParams)
    plot_gain_curve(make_ranking(10))
    assert dict(mpl.rcParams) == before


def test_headline_takes_the_hardest_split_of_the_main_block() -> None:
    both = pa.concat_tables([make_fidelity("within"), make_fidelity("cross", interaction=0.7)])
    found = replace(make_report_data(), fidelity=both, num_targets=5).headline_fidelity
    assert found is not None
    assert (found.block, found.split, found.beyond) == ("cross", "Q4", 0.7)


def test_headline_without_fidelity_is_none() -> None:
    assert make_teacher_data().headline_fidelity is None


def test_mix_counts_groups_of_pool_and_subset() -> None:
    assert count_mix("aab", "b") == (MixRow("a", 2, 0), MixRow("b", 1, 1))


@pytest.mark.parametrize("num_picks", [0, 1, 5, 8, 9, 20, 100_000])
def test_sample_ranks_are_distinct_ascending_and_end_at_the_last(num_picks: int) -> None:
    ranks = choose_sample_ranks(num_picks)
    assert ranks == sorted(set(ranks))
    assert len(ranks) <= 8
    assert ranks[:1] + ranks[-1:] == ([1, num_picks] if num_picks else [])


def test_scores_say_what_a_random_example_would_have() -> None:
    chart = plot_scores(make_ranking(4), random_objective=0.4)
    assert chart.title == "Scores fall from 1.00 at the first pick to 0.250 at the last"
    assert "a random example scores 0.100" in chart.means
    assert "hardly better" not in chart.means


def test_scores_that_reach_a_random_example_ask_for_a_smaller_budget() -> None:
    assert "a smaller budget" in plot_scores(make_ranking(20), random_objective=1.0).means


def test_scores_without_picks_say_so() -> None:
    assert "no pick" in plot_scores(schemas.RANKING.empty_table()).missing


def test_pairs_stand_beside_a_cosine_and_points_do_not() -> None:
    points = plot_order(make_ranked_data(pointwise=True).fidelity, "points")
    pairs = plot_order(make_fidelity("cross"), "cross")
    assert "cosine" not in points.panels[0].svg
    assert len(points.panels) == 1
    assert all("cosine" in panel.svg for panel in pairs.panels)


def test_order_stands_over_all_pairs_and_beyond_averages() -> None:
    chart = plot_order(make_fidelity("cross"), "cross")
    assert [panel.caption for panel in chart.panels] == [
        "Order of all pairs",
        "Beyond averages",
        "Best helpers found",
    ]
    finding = "In Q4 the network follows the teacher's order beyond averages: 0.40"
    assert chart.title == finding


def test_a_measure_that_is_nowhere_defined_has_no_panel() -> None:
    table = make_fidelity("cross")
    nulls = pa.nulls(table.num_rows, pa.float64())
    name = "interaction_correlation"
    place = table.schema.get_field_index(name)
    chart = plot_order(table.set_column(place, schemas.FIDELITY.field(name), nulls), "x")
    assert len(chart.panels) == 2
    assert chart.title == "In Q4 the network follows the teacher's order: 0.60"


@pytest.mark.parametrize(
    ("interaction", "claim", "tone"),
    [
        (0.40, "The scores know which example helps which", "good"),
        (0.28, "(additive), but no more than a cosine", ""),
        (0.04, "Nothing shows that the scores know one example's best helper", "warn"),
        (math.nan, "Nothing shows that the scores know one example's best helper", ""),
    ],
)
def test_knowledge_of_pairs_is_claimed_only_beyond_both_rivals(
    interaction: float, claim: str, tone: str
) -> None:
    """The cosine correlates 0.25; intervals are +-0.05."""
    data = replace(make_report_data(), fidelity=make_fidelity(interaction=interaction))
    card = next(card for card in make_cards(data) if card.name == "Knowledge of pairs")
    assert claim in data.verdict
    assert card.tone == tone
    if interaction == 0.4:
        assert card.value == "0.40"
        assert "(95 % interval 0.35 to 0.45), 200 held-out pairs; cosine 0.25" in card.note


def test_knowledge_without_an_interval_is_not_claimed() -> None:
    table = make_fidelity()
    place = table.schema.get_field_index("interaction_correlation_low")
    nulls = pa.nulls(table.num_rows, pa.float64())
    table = table.set_column(place, table.schema.field(place), nulls)
    said = replace(make_report_data(), fidelity=table).verdict
    assert "Too few pairs were held out" in said


def test_examples_on_their_own_have_no_sentence_about_pairs() -> None:
    assert make_ranked_data(pointwise=True).verdict == ""
    assert make_teacher_data().verdict == ""
