"""Numbers and texts as a person reads them; a missing or not finite value reads as a dash."""

from __future__ import annotations

import math
import re

MISSING = "–"
_REPLACEMENT = "\ufffd"
# Control characters and lone surrogates: neither UTF-8 files nor SVG text may hold them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean_text(text: str) -> str:
    """Replace characters that an HTML or SVG file cannot hold."""
    return _UNPRINTABLE.sub(_REPLACEMENT, text)


def shorten(text: str, max_chars: int) -> str:
    """Cut a text to ``max_chars`` characters, the ellipsis included."""
    return text if len(text) <= max_chars else text[: max_chars - 1].rstrip() + "…"


def shorten_middle(text: str, max_chars: int) -> str:
    """Cut a text in its middle: both ends of a path or a task name tell it apart from others."""
    if len(text) <= max_chars:
        return text
    head = (max_chars - 1) // 2
    return f"{text[:head]}…{text[len(text) - (max_chars - 1 - head) :]}"


def format_count(value: float | None) -> str:
    """Write a whole number with thousands separators."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def format_compact(value: float | None) -> str:
    """Write a large number in three digits and a unit: 1.25M."""
    if value is None or not math.isfinite(value):
        return MISSING
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return format_count(value)


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a measured value with ``digits`` significant digits, plainly wherever that is short."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:,.{min(max(decimals, 0), 6)}f}"


def format_percent(share: float | None) -> str:
    """Write a share (0..1) in per cent with the digits that matter."""
    if share is None or not math.isfinite(share):
        return MISSING
    percent = 100 * share
    if percent == 0:
        return "0 %"
    if abs(percent) < 0.01:
        return "<0.01 %" if percent > 0 else ">-0.01 %"
    decimals = 0 if abs(percent) >= 20 else 1 if abs(percent) >= 1 else 2
    text = f"{percent:.{decimals}f}"
    # Nearly all is not all, and a reader would take it so.
    return f"{'>99.9' if share < 1 and text == '100' else text} %"


def format_tick(value: float) -> str:
    """Write the number at a tick of an axis: no more digits than it needs, a true minus sign."""
    return f"{value:.6g}".replace("-", "−")


def format_percent_tick(share: float) -> str:
    """Write the share (0..1) at a tick of an axis in per cent."""
    return f"{format_tick(round(100 * share, 6))} %"


def format_seconds(seconds: float | None) -> str:
    """Write a duration in the two units that matter."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 100 else f"{hours:,} h"


def format_usd(value: float | None) -> str:
    """Write a price in dollars."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"${value:,.2f}" if value >= 0.01 or value == 0 else "<$0.01"
