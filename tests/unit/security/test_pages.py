"""Pages for people: whatever a corpus, a file name or a recipe holds, a page stays a page."""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from nncift_ray.evaluation.page import render_evaluation
from nncift_ray.report.page import render_report
from tests.unit.evaluate.make_evaluation import make_evaluation
from tests.unit.report.make_data import make_report_data
from tests.unit.report.test_render import PageParser

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)><svg/onload=alert(1)><details open ontoggle=alert(1)>",
    "attribute": "\" onmouseover=\"alert(1)\" x='' onfocus='alert(1)' autofocus=\"",
    "address": "javascript:alert(1) <a href='javascript:alert(1)'>x</a> data:text/html,<b>",
    "style": "</style><style>@import 'https://evil.example/x.css'; * {color: red}</style>",
    "comment": "<!-- --><![CDATA[ ]]><script>alert(1)</script> --!>",
    "frame": "<iframe src='https://evil.example'></iframe><base href='https://evil.example/'>",
    "refresh": "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "form": "</div></main><form action='https://evil.example'><input name=q></form>",
    "entity": "&lt;script&gt; &#60;script&#62;alert(1)&#60;/script&#62; \\u003cscript\\u003e",
    "svg": "<foreignObject><body onload=alert(1)></foreignObject><use href='https://evil.example#x'/>",
    "template": "{{ config }} {% raw %} ${7*7} #{7*7}",
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LOADING = {"img", "link", "iframe", "frame", "object", "embed", "base", "form", "input",
           "audio", "video", "source", "image", "foreignobject", "applet", "template"}  # fmt: skip
LINKS = ("href", "xlink:href", "src", "srcset", "action", "formaction", "data", "poster",
         "background", "ping")  # fmt: skip
#: Fields that are words of the code's own, not of a user, and what pages look up by them.
WORDS = {"objective", "optimizer", "stopped_by", "main_block", "layout"}


def everywhere(value: Any, payloads: Iterator[str]) -> Any:
    """Put a payload behind every text of a tree of dataclasses, mappings and sequences."""
    if isinstance(value, str):
        return value + next(payloads)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: everywhere(getattr(value, field.name), payloads)
            for field in dataclasses.fields(value)
            if field.name not in WORDS
        }
        return dataclasses.replace(value, **fields)
    if isinstance(value, Mapping):
        named = "prompt" in value or "rank" in value or "example" in value
        return {
            key if named else everywhere(key, payloads): everywhere(item, payloads)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(everywhere(item, payloads) for item in value)
    return value


def check_page(page: str, plain: str) -> None:
    """Check that a page loads and runs nothing, and has no element that the plain one lacks."""
    parsed, expected = PageParser(page), PageParser(plain)
    assert parsed.open == []
    assert not LOADING & set(parsed.tags)
    assert set(parsed.tags) <= set(expected.tags)
    assert parsed.tags.count("style") == expected.tags.count("style")
    assert [name for _, name, _ in parsed.attributes if name.startswith("on")] == []
    for name in LINKS:
        assert [link for link in parsed.values(name) if not link.startswith("#")] == []
    assert parsed.values("http-equiv") == ["Content-Security-Policy"]
    assert any(each.startswith(POLICY) for each in parsed.values("content"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == re.findall(r"<script>(.*?)</script>", plain, re.DOTALL)
    assert len(scripts) == parsed.tags.count("script")
    styles = [*parsed.values("style"), *re.findall(r"<style>(.*?)</style>", page, re.DOTALL)]
    for style in styles:
        assert "@import" not in style
        assert [
            url for url in re.findall(r"url\(([^)]*)\)", style) if not url.startswith("#")
        ] == []


@pytest.fixture(scope="module")
def plain_report() -> str:
    return render_report(make_report_data())


# Each text gets the next payload, so that one page holds all of them and none is cut off behind
# another; the second turn puts others in the same places.
@pytest.mark.parametrize("first", [0, 5])
def test_a_report_with_payloads_in_every_text_runs_and_loads_nothing(
    plain_report: str, first: int
) -> None:
    payloads = itertools.cycle([*PAYLOADS.values()][first:] + [*PAYLOADS.values()][:first])
    page = render_report(everywhere(make_report_data(), payloads))
    check_page(page, plain_report)
    seen = [name for name, payload in PAYLOADS.items() if html.escape(payload) in unquoted(page)]
    assert seen == list(PAYLOADS)


def unquoted(page: str) -> str:
    """Write the quotes as ``html.escape`` does."""
    return page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


@pytest.mark.parametrize("half", [0, 1])
def test_an_evaluation_with_payloads_in_its_texts_runs_and_loads_nothing(half: int) -> None:
    payload = "".join([*PAYLOADS.values()][half::2])
    check_page(render_evaluation(make_evaluation(payload)), render_evaluation(make_evaluation("a")))


def test_the_check_sees_what_it_is_for(plain_report: str) -> None:
    for payload in ("<script>1</script>", "<i onclick=x></i>", "<a href='javascript:x'>y</a>"):
        with pytest.raises(AssertionError):
            check_page(plain_report.replace("</main>", payload + "</main>"), plain_report)
