"""Colours of text keep the contrast of WCAG AA on what they stand on, in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import nncift_ray.report

LEAST_TEXT, LEAST_SHAPE = 4.5, 3.0
TEXTS, SHAPES = ("ink", "muted", "accent", "orange", "green", "purple"), ("grey", "blue")
GROUNDS = ("page", "card")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_shapes_stand_out_in_both_themes() -> None:
    css = (Path(nncift_ray.report.__file__).parent / "style.css.j2").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    for theme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for ground in GROUNDS:
            for names, least in ((TEXTS, LEAST_TEXT), (SHAPES, LEAST_SHAPE)):
                low = {name: contrast(colours[name], colours[ground]) for name in names}
                assert min(low.values()) >= least, (ground, low)
