"""What is written about every key, from its one source: the text below it in ``sections``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from nncift_ray.recipe.sections import ClusterConfig, OptimizerConfig, Recipe, TeacherConfig

WIDTH = 96
#: Sections that a first recipe has live keys in; all else is a comment.
LIVE = {"run_dir", "teacher.kind", "selection.objective", "selection.budget"}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, short forms of sections included."""
    schema = Recipe.model_json_schema()
    for section in (TeacherConfig, OptimizerConfig, ClusterConfig):
        made = schema["$defs"][section.__name__]
        schema["$defs"][section.__name__] = {"anyOf": [{"type": "string"}, made]}
    return schema


def commented_recipe(data: str) -> str:
    """Return a recipe of all keys as YAML: what a first run needs live, all else as comments."""
    recipe = Recipe.model_validate({"data": {"candidates": [data]}})
    head = "# A recipe of nncift_ray. Keys with '#' before them show their defaults.\n"
    return head + "\n".join(_lines(recipe, "", 0)) + "\n"


def _lines(section: BaseModel, path: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        here, value = f"{path}{name}", getattr(section, name)
        if isinstance(value, BaseModel):
            live = any(key.startswith(f"{here}.") for key in {*LIVE, "data.candidates"})
            mark = "" if live else "# "
            below = _lines(value, f"{here}.", depth + 1)
            yield ""
            yield from _wrapped(type(value).__doc__ or "", indent)
            yield f"{indent}{mark}{name}:"
            yield from below if live else map(_comment, below)
            continue
        yield from _wrapped(field.description or "", indent)
        live = here in LIVE or here == "data.candidates"
        yield f"{indent}{'' if live else '# '}{name}: {_plain(value)}"


def _comment(line: str) -> str:
    bare = line.lstrip()
    return line if not bare or bare.startswith("#") else line.replace(bare, f"# {bare}", 1)


def _wrapped(text: str, indent: str) -> Iterator[str]:
    first = text.strip().split("\n\n")[0]
    yield from textwrap.wrap(
        " ".join(first.split()),
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
    )


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False)
