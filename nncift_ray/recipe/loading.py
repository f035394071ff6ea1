"""From YAML and overrides to a checked recipe, and back; and every key with what it means."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nncift_ray.errors import ConfigError, redact
from nncift_ray.recipe.sections import ClusterConfig, Config, OptimizerConfig, Recipe, TeacherConfig

#: Aliases count as often as they stand for something: a few lines can stand for billions of values.
MAX_VALUES = 100_000
MAX_CHARS = 10_000_000
MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key <<

#: Keys that recipes once had, and what takes their place.
REMOVED_KEYS: dict[str, str] = {
    "evaluation.tuning.num_workers": "one actor trains; give it more CPUs or a GPU by "
    "evaluation.tuning.pool",
    "labels.design": "labels are always a square block of rows and columns",
    "network.centre_rows": "the network learns the labels as they are",
    "network.ensemble_size": "one network is trained; compare seeds with `nncift sweep --seeds`",
    "network.loss": "the loss is the mean squared error",
    "pair_scores.generator": "candidates always come from anchor features",
    "pair_scores.index": "columns are always listed from k-means cells",
    "pair_scores.activation_dtype": "activations are always stored in float32",
    "pair_scores.dense": "set pair_scores.top_k to the number of candidates: lists then hold all",
    "pair_scores.half": "pairs are always scored in float32",
    "selection.optimizer.epsilon": "it was of the stochastic search; lazy needs no such key",
    "selection.optimizer.rounds": "partitioned searches its parts once, then what they picked",
    "selection.optimizer.bounding": "it settled hardly any candidate; partitioned does without",
}


def parse_yaml(text: str, origin: str) -> object:
    """Parse one YAML document into plain values.

    Raises:
        ConfigError: If it is not YAML, holds a key twice or a tag other than YAML's own, is too
            large once its aliases are followed, or nests too deep.
    """
    if len(text) > MAX_CHARS:
        raise ConfigError(f"{origin}: longer than {MAX_CHARS:,} characters; that is no recipe")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > MAX_VALUES:
            raise ConfigError(
                f"{origin}: stands for more than {MAX_VALUES:,} values once its aliases (*name) "
                "are followed; write out what is meant"
            )
        return cast(object, loader.construct_document(node))  # pyright: ignore[reportUnknownMemberType]
    # What YAML's own types raise: a date that cannot be, a list as a key.
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deep for a recipe") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping of unique keys."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                continue
            key = cast(object, self.construct_object(key_node, deep=True))  # pyright: ignore
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice, {key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values that a node stands for; one that holds itself stands for too many."""
    key = id(node)
    if key not in known:
        known[key] = MAX_VALUES + 1  # what it stays at if it is met again inside itself
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
            children = [child for pair in pairs for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = cast("list[yaml.Node]", node.value)
        known[key] = 1 + sum(_num_values(child, known) for child in children)
    return known[key]


# From YAML and overrides to a checked recipe, and back.


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply ``key.path=value`` overrides (values are YAML).

    Raises:
        ConfigError: Naming the key and the remedy; nothing has been started then.
    """
    tree = read_recipe(path)
    for override in overrides:
        apply_override(tree, override)
    return make_config(tree, str(path))


def make_config(tree: Mapping[str, Any], origin: str = "config") -> Config:
    """Check a tree of plain values.

    Raises:
        ConfigError: With one line for every key that is wrong.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(cast("Mapping[str, Any]", item)) for item in error.errors()]
        # A key that is wrong is shown with what was given: perhaps a secret in the wrong place.
        raise ConfigError(redact(f"{origin}:\n  " + "\n  ".join(dict.fromkeys(lines)))) from None


def dump_config(config: Config) -> str:
    """Write the whole recipe, defaults included, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the tree of plain values in a recipe's file, unchecked.

    Raises:
        ConfigError: If it cannot be read as one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the recipe cannot be read ({error})") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys {', '.join(_keys(Config))}")
    return cast("dict[str, Any]", tree)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the key of a ``key.path=value`` override in a tree of plain values, in place.

    Raises:
        ConfigError: If it is not written so.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write key.path=value, e.g. selection.budget=0.2")
    value = parse_yaml(text, f"--set {key}")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section")
        node = cast("dict[str, Any]", child)
    node[last] = value


def _keys(section: type[BaseModel]) -> list[str]:
    return list(section.model_fields)


def _section_at(path: Sequence[object]) -> type[BaseModel] | None:
    """Return the section class that a key path leads to."""
    section: type[BaseModel] = Config
    for key in path:
        field = section.model_fields.get(str(key))
        kind = None if field is None else field.annotation
        members = [getattr(member, "__origin__", member) for member in (kind, *get_args(kind))]
        found = [k for k in members if isinstance(k, type) and issubclass(k, BaseModel)]
        if not found:
            return None
        section = found[0]
    return section


def _explain(item: Mapping[str, Any]) -> str:
    """Turn one pydantic error into a line with key path, what is wrong and the remedy."""
    path = [str(part) for part in cast("Sequence[object]", item["loc"])]
    # Members of a union show up as extra path entries that are no keys of the recipe.
    keys = [part for part in path if re.fullmatch(r"\w+", part)]
    shown, section = ".".join(keys), _section_at(keys[:-1])
    if shown in REMOVED_KEYS:
        return f"{shown}: this key was removed; {REMOVED_KEYS[shown]}"
    if item["type"] == "extra_forbidden" and section is not None:
        known = _keys(section)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{shown}: unknown key; {hint}Keys here: {', '.join(known)}"
    if item["type"] == "missing":
        return f"{shown}: is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = item.get("input")
    suffix = f" (given: {given!r})" if isinstance(given, str | int | float) and shown else ""
    return f"{shown}: {message}{suffix}" if shown else message


# What is written about every key, from its one source: the text below it in ``sections``.

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
