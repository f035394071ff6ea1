from __future__ import annotations

import math

import pytest

from nncift_ray.report.data import (
    clean_text,
    format_compact,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_tick,
    format_usd,
    shorten,
    shorten_middle,
)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_missing_values_read_as_a_dash(value: float | None) -> None:
    formats = (format_count, format_compact, format_number, format_percent, format_seconds)
    assert {write(value) for write in (*formats, format_usd)} == {"–"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.06712, "0.0671"), (-0.5, "-0.500"), (12.0, "12.0"), (1234.5, "1,234"),
     (2e-6, "2.00e-06"), (3.2e7, "3.20e+07")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.99999, ">99.9 %"), (0.00001, "<0.01 %"), (0.105, "10.5 %"),
     (0.0034, "0.34 %"), (-0.25, "-25 %")],
)  # fmt: skip
def test_percent_never_rounds_to_none_or_all(share: float, text: str) -> None:
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.31 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (0, "0.00 s")],
)
def test_seconds_read_in_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_compact_counts_keep_small_numbers_whole() -> None:
    assert [format_compact(v) for v in (999, 12_345, 250_000, 27.5e6, 1e12)] == [
        "999", "12,345", "250k", "27.5M", "1T",
    ]  # fmt: skip


def test_tick_has_a_minus_sign_and_no_spare_zeros() -> None:
    assert format_tick(-0.08) == "\u22120.08"
    assert format_tick(10.0) == "10"


def test_shortened_texts_have_the_length_asked_for() -> None:
    assert shorten("abcdefgh", 5) == "abcd…"
    assert shorten_middle("abcdefgh", 5) == "ab…gh"
    assert shorten("abc", 3) == shorten_middle("abc", 3) == "abc"


def test_clean_text_replaces_surrogates_and_controls_and_keeps_newlines() -> None:
    assert clean_text("a\x00\ud800\n\tß") == "a\ufffd\ufffd\n\tß"
