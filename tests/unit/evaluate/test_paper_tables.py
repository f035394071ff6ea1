"""The cost table adds up what was measured; seconds that grow as a square have the exponent 2."""

from __future__ import annotations

import pytest

from benchmarks.paper_tables import SIZES, cost_rows, duration, exponent, method_table

STEPS = {"embed": 10.0, "profiles": 20.0, "quality": 30.0, "label": 50.0}


def test_costs_are_those_of_rows_labels_and_pairs() -> None:
    rows = cost_rows(
        STEPS, 100, fit=lambda labels: labels / 250,
        score=lambda size: size**2 / 1e6, cosine=lambda size: 1.0,
    )  # fmt: skip
    delift, by_embedding = rows[0], rows[1]
    assert delift["rows"] == SIZES[0] == 1_000
    # 0.1 s a label; 0.1 s a row to embed, 0.5 s to profile; 50 x 50 labels.
    assert delift["teacher_seconds"] == pytest.approx(1_000 * 999 * 0.1)
    assert delift["network_seconds"] == pytest.approx(100 + 500 + 2_500 * 0.1 + 10 + 1)
    assert by_embedding["teacher_seconds"] == pytest.approx(100 + 1)
    assert by_embedding["network_seconds"] == pytest.approx(100 + 10 + 1)
    assert exponent(rows, "delift", "teacher_seconds") == pytest.approx(2, abs=0.001)
    assert exponent(rows, "delift_se", "scores_seconds") == pytest.approx(2)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(90, "90.0 s"), (600, "10.0 min"), (36_000, "10.0 h"), (864_000, "10 days")],
)
def test_durations_are_written_in_the_unit_they_are_read_in(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_table_of_methods_has_a_mean_and_the_difference_to_random() -> None:
    base = {"mode": "tuned", "metric": "nll", "difference_low": -0.3, "difference_high": -0.1}
    rows = [
        base | {"method": "random", "mean": 1.5, "difference": None, "verdict": None},
        base | {"method": "cosine", "mean": 1.3, "difference": -0.2, "verdict": "better"},
        base | {"method": "initial", "mode": "none", "mean": 2, "difference": None},
    ]
    head, _, *lines = method_table(rows).splitlines()
    assert head == "| method | use | NLL | ROUGE-1 | ROUGE-L | cosine |"
    assert lines == [
        "| initial | untaught | 2.000 | - | - | - |",
        "| random | fine-tuned | 1.500 | - | - | - |",
        "| cosine | fine-tuned | 1.300: -0.200* (-0.30 to -0.10) | - | - | - |",
    ]
