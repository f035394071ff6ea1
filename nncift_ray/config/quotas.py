"""Recipe key ``selection.quotas``: how many picks each source may and must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from nncift_ray.config.sections import Section, parse_count


def _quota(value: object) -> object:
    """Read a share of the picks (below 1) or a count."""
    if isinstance(value, float) and 0 < value < 1:
        return value
    if value == 0 and not isinstance(value, bool):
        return 0
    try:
        return parse_count(value)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is no quota: write a count such as 500, or a share of the picks such as 0.2"
        ) from error


Quota = Annotated[float | int, BeforeValidator(_quota)]


class QuotasConfig(Section):
    """Least and most picks of each group.

    A quota is a count, or a share of the budget below 1 (rounded down for ``max`` and up for
    ``min``). Groups that are not named have none.

    Attributes:
        field: Field of the original record that names the group, such as task; null: data.group_by,
            or the name of the file where that is null, too.
        min: Least picks by group; a group with fewer candidates stops the run.
        max: Most picks by group, or one quota for every group.
    """

    field: str | None = Field(default=None, min_length=1)
    min: dict[str, Quota] = {}
    max: dict[str, Quota] | Quota = {}

    @property
    def given(self) -> bool:
        """Whether there is any quota."""
        return bool(self.min) or self.max != {}

    @property
    def values(self) -> tuple[float | int, ...]:
        """Every quota given."""
        most = cast("Mapping[str, float | int]", self.max)
        return (*self.min.values(), *(most.values() if isinstance(self.max, dict) else (self.max,)))

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        for group, least in self.min.items():
            most = self.max.get(group) if isinstance(self.max, dict) else self.max
            if (
                most is not None
                and isinstance(most, int) == isinstance(least, int)
                and least > most
            ):
                raise ValueError(f"group '{group}': min {least} is above max {most}")
        return self
