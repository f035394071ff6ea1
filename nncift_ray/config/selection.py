"""Recipe section ``selection``: what the subset is to be good at, and its budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field, field_validator

from nncift_ray.config.sections import Section, parse_count

Fraction = Annotated[float, Field(gt=0, lt=1)]
Objective = Literal[
    "facility_location",
    "facility_location_mutual_information",
    "facility_location_query_mutual_information",
    "top_k",
]


class TokenBudget(Section):
    """A budget in tokens, as the embedder's tokenizer counts them."""

    tokens: int

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> int:
        return parse_count(value)


class SelectionConfig(Section):
    """What the subset is to be good at, and how large it may be.

    Attributes:
        objective: facility_location covers the candidates; given targets it becomes its query
            mutual information form. The two mutual information forms need targets. top_k takes
            the candidates of the highest score: a pointwise teacher's, or the mean influence on
            the targets of the subtask where it is highest (LESS).
        budget: A fraction (below 1), a count (from 1), or {tokens: 5M}.
        eta: Weight of the target in the mutual information forms.
    """

    objective: Objective
    budget: Fraction | int | TokenBudget
    eta: float = Field(default=1.0, gt=0)

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: object) -> object:
        if isinstance(value, TokenBudget):
            return value
        if isinstance(value, Mapping):
            mapping = cast("Mapping[str, object]", value)
            if list(mapping) != ["tokens"]:
                raise ValueError("a budget mapping has the one key 'tokens', e.g. {tokens: 5M}")
            return TokenBudget(tokens=parse_count(mapping["tokens"]))
        if isinstance(value, float) and 0 < value < 1:
            return value
        if isinstance(value, float) and value == 1.0:
            raise ValueError("1.0 is ambiguous: write 1 for one example, or a fraction below 1")
        try:
            return parse_count(value)
        except ValueError as error:
            raise ValueError(
                f"{value!r} is no budget: write a fraction such as 0.1, a count such as 5000 or "
                "5K, or {tokens: 5M}"
            ) from error
