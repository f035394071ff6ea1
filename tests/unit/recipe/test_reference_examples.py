"""Every key of a recipe has a sentence, and a value to show that the recipe would take."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from nncift_ray.recipe.sections import Recipe


def keys_of(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key with its field; a section is its keys."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            assert (kind.__doc__ or "").strip(), f"{path}{name}: write what the section is for"
            yield from keys_of(kind, f"{path}{name}.")
        else:
            yield f"{path}{name}", field


def test_every_key_has_a_sentence_and_something_to_show() -> None:
    for key, field in keys_of(Recipe):
        assert (field.description or "").strip(), f"{key}: write a text below it"
        empty = field.get_default(call_default_factory=True) in (None, "", (), {})
        assert field.examples or not empty, f"{key}: give Field(examples=[...])"


def test_every_example_is_a_value_that_its_key_takes() -> None:
    for _, field in keys_of(Recipe):
        for example in field.examples or ():
            kind = TypeAdapter(typing.Annotated[(field.annotation, *field.metadata, field)])
            kind.validate_python(example)
