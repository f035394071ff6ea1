"""The way from values to a page: every value escaped, nothing run, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2

from nncift_ray.report.formatting import clean_text


def render_page(template: str, values: Mapping[str, object]) -> str:
    """Fill a template of this room.

    Args:
        template: Name of its file; it extends ``base.html.j2``.
        values: What it names.

    Returns:
        The page, safe to encode as UTF-8. The same values give the same text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nncift_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return clean_text(environment.get_template(template).render(**values))
