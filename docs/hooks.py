"""Hooks of MkDocs: the repository's pages under their own paths, and pages made from the code.

Links between README, docs and benchmarks stay as they are in the repository. The recipe reference
is written from the sections of the recipe, as ``nncift init`` and ``nncift schema`` are.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import nncift_ray
from nncift_ray.recipe.sections import PoolConfig, Recipe

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE")
FOLDERS = {"docs": (".md", ".svg"), "benchmarks": (".md", ".svg", ".png", ".json")}
#: Shown in the API reference beside the public names: what a teacher of one's own has to be.
BESIDE = ("nncift_ray.teachers.base.Teacher",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the site's files: those of the theme, of the repository, and the generated ones."""
    kept = [file for file in files if not str(file.abs_src_path).startswith(config.docs_dir)]
    found = [ROOT / name for name in PAGES]
    for folder, endings in FOLDERS.items():
        found += sorted(x for x in (ROOT / folder).glob("*") if x.suffix in endings)
    paths = [path.relative_to(ROOT).as_posix() for path in found]
    kept += [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    made = {"docs/recipe.md": recipe_page(), "docs/api.md": api_page()}
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        made[f"docs/notebooks/{notebook.stem}.md"] = notebook_page(notebook)
    kept += [File.generated(config, path, content=text) for path, text in made.items()]
    return Files(kept)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links to files that the site has not are plain text."""
    markdown = markdown.replace(".ipynb)", ".md)")

    def keep(match: re.Match[str]) -> str:
        target = match[2].partition("#")[0]
        is_ours = "://" in target or not target or Path(target).suffix in (".md", ".svg", ".png")
        return match[0] if is_ours or target.endswith(".json") else match[1]

    return re.sub(r"(?<!!)\[([^\]\[]+)\]\(([^)\s]+)\)", keep, markdown)


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: its text, its code and what the code printed."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).strip()
                parts.append(f"![What the code above drew](data:image/png;base64,{image})")
                continue
            text = "".join(output.get("text") or data.get("text/plain") or ())
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Return the page of all public names, which mkdocstrings fills from their docstrings."""
    paths = [f"{home}.{name}" for name, home in nncift_ray._HOMES.items()]
    blocks = [f"::: {path}" for path in (*paths, *BESIDE)]
    return "\n\n".join(["# Python API", "`import nncift_ray as nn` has these names.", *blocks])


def recipe_page() -> str:
    """Return the page of all keys of a recipe: a sentence, the type, the default, an example."""
    parts = [
        "# Recipe",
        "Every key of a recipe, in the order of `nncift init`, which writes the same texts as "
        "comments. All keys but `data.candidates` may be left out. `nncift run --set key=value` "
        "and the arguments of `nn.select` set them, too.",
        "## The whole",
        *_section(Recipe, ""),
        "## Actors: `pool` of any section",
        *_section(PoolConfig, "pool."),
    ]
    return "\n\n".join(parts) + "\n"


def _section(section: type[BaseModel], path: str) -> Iterator[str]:
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in section.model_fields.items():
        inner = _section_of(field)
        if inner is PoolConfig:
            yield f"`{path}pool`: its [actors](#actors-pool-of-any-section)."
        elif inner is not None:
            below.append((f"{path}{name}", inner))
        else:
            yield from _key(f"{path}{name}", name, field)
    for name, inner in below:
        yield f"## `{name}`"
        yield _prose(inner.__doc__)
        yield from _section(inner, f"{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a key holds, unless it is one form of several."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _key(path: str, name: str, field: FieldInfo) -> Iterator[str]:
    yield f"### `{name}` {{ #{path} }}"
    yield _prose(field.description)
    default = field.get_default(call_default_factory=True)
    kind = f"{_type(field.annotation)}{_bounds(field)}"
    yield f"**Type:** {kind}  \n**Default:** `{_plain(default)}`"
    lines = f"{name}: {_plain(example_of(field))}"
    for parent in reversed(path.split(".")[:-1]):
        lines = f"{parent}:\n" + "\n".join(f"  {line}" for line in lines.splitlines())
    yield f"```yaml\n{lines}\n```"


def example_of(field: FieldInfo) -> Any:
    """Return a value to show: the field's own example, another choice, or the default."""
    if field.examples:
        return field.examples[0]
    default = field.get_default(call_default_factory=True)
    choices = [x for x in _choices(field.annotation) if x != default]
    if isinstance(default, bool):
        return not default
    return choices[0] if choices and isinstance(default, str | None) else default


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return [choice for each in get_args(kind) for choice in _choices(each)]
    return []


def _type(kind: Any) -> str:
    """Return a type in words; a choice of texts lists them."""
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "{" + ", ".join(kind.model_fields) + "}"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if hasattr(kind, "__metadata__"):
        return _type(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in inner))
    if origin is tuple:
        more = inner[-1] is Ellipsis
        return f"list of {_type(inner[0])}" if more else f"[{', '.join(map(_type, inner))}]"
    if origin is dict:
        return f"mapping of names to {_type(inner[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(kind, "anything")


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    known = [
        f"{word} {getattr(rule, name):g}"
        for name, word in words.items()
        for rule in field.metadata
        if getattr(rule, name, None) is not None
    ]
    return f", {' '.join(known)}" if known else ""


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _prose(text: str | None) -> str:
    """Return a docstring as Markdown: double backquotes are code, paragraphs stay."""
    paragraphs = (" ".join(part.split()) for part in (text or "").replace("``", "`").split("\n\n"))
    return "\n\n".join(paragraphs)
