"""The look of every picture, and the way from a matplotlib figure to SVG that lives inside a page.

Colours are named by role. A figure is drawn in the light theme's colours; on the way out each of
them becomes a CSS variable, so one picture serves the light and the dark page. Texts stay texts and
take the page's font; layout is made with matplotlib's own, which is wider, so nothing collides.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET  # noqa: S405 - reads only what matplotlib just wrote
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#1b2533", "#5f6b7c", "#e3e7ee", "#fffffe"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0b6bcb", "#d9580d", "#0f8a6b", "#a04c9c", "#9aa5b5"
# Page variable of each colour; style.css.j2 gives them a value in the light and in the dark theme.
CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    CARD: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    GREY: "--grey",
}
FONT_SIZE = 9.5
FIGURE_WIDTH = 5.3  # inches: half of a desktop page, all of a phone
PANEL_WIDTH = 2.6  # inches: a small multiple

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nncift",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so layout is the same everywhere
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # corpus text may hold dollar signs
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.labelsize": FONT_SIZE,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": FONT_SIZE - 0.5,
    "ytick.labelsize": FONT_SIZE - 0.5,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font:\s*([\d.]+px)[^;]*")
_URL = re.compile(r"url\(#")


@dataclass(frozen=True, slots=True)
class Panel:
    """One SVG and the short line above it (empty where the chart's title is enough)."""

    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and its reading, or the reason why there is none."""

    name: str
    title: str  # states the finding where one can be computed
    panels: tuple[Panel, ...] = ()
    sees: str = ""  # what the reader sees
    means: str = ""  # what it means for them
    missing: str = ""  # why there is no picture

    @property
    def available(self) -> bool:
        """Say whether there is a picture."""
        return bool(self.panels)


@contextmanager
def theme() -> Generator[None]:
    """Draw in the report's look, leaving matplotlib's global settings as they were."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # The browser picks a font that has the glyph; matplotlib's need not have it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def new_axes(height: float, width: float = FIGURE_WIDTH) -> tuple[Figure, Axes]:
    """Make a figure (inches) with one pair of axes; call inside ``theme()``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Write a figure as an ``<svg>`` element for inline use; call inside ``theme()``.

    Args:
        figure: The drawn figure.
        name: Unique on the page; prefixes every id, since ids are shared by all inline pictures.
        label: What a screen reader says.

    Returns:
        The element without XML head, name spaces, fixed size, date or style sheet.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - see import
    _strip_elements(root)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
        _rewrite_attributes(element.attrib, name)
    view_box = root.attrib["viewBox"]
    root.attrib = {"viewBox": view_box, "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _strip_elements(root: ET.Element) -> None:
    """Drop metadata (dates, addresses) and style sheets (they would hold for the whole page)."""
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)


def _rewrite_attributes(attributes: dict[str, str], name: str) -> None:
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if attributes.get("href", "").startswith("#"):
        attributes["href"] = f"#{name}-{attributes['href'][1:]}"
    for key in ("style", "clip-path", "fill", "stroke"):
        if key in attributes:
            value = _URL.sub(f"url(#{name}-", attributes[key])
            value = _FONT.sub(r"font-size: \1", value)
            attributes[key] = _COLOUR.sub(_to_variable, value)
    # A presentation attribute knows no var(): move such colours into the style.
    for key in ("fill", "stroke"):
        if "var(" in attributes.get(key, ""):
            moved = f"{key}: {attributes.pop(key)}"
            attributes["style"] = "; ".join(filter(None, [attributes.get("style", ""), moved]))


def _to_variable(match: re.Match[str]) -> str:
    variable = CSS_VARIABLES.get(match[0])
    return f"var({variable}, {match[0]})" if variable else match[0]
