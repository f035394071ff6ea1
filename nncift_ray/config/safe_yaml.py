"""YAML that makes plain values only, of bounded size, and says which key is given twice."""

from __future__ import annotations

from typing import Any, cast

import yaml

from nncift_ray.errors import ConfigError

#: Aliases count as often as they stand for something: a few lines can stand for billions of values.
MAX_VALUES = 100_000
MAX_CHARS = 10_000_000
MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key <<


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
