"""What every section of the recipe is made of: frozen trees, counts, pools of actors."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMBG]?)\s*$", re.IGNORECASE)
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_LABEL_NAME}$")
_LABEL_SELECTOR = re.compile(
    rf"^!?({_LABEL_NAME}|in\(\s*{_LABEL_NAME}(\s*,\s*{_LABEL_NAME})*\s*\))$"
)


class Section(BaseModel):
    """A frozen part of the recipe that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def parse_count(value: object) -> int:
    """Read a count such as 5000, "5K" or "2.5M".

    Raises:
        ValueError: If it is no positive count.
    """
    match = _COUNT.match(str(value))
    if isinstance(value, bool) or match is None:
        raise ValueError(f"{value!r} is no count: write a number such as 5000, 5K or 2.5M")
    count = float(match[1]) * _COUNT_UNITS[match[2].upper()]
    if count != int(count) or count < 1:
        raise ValueError(f"{value!r} is no whole count of at least 1")
    return int(count)


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL_KEY.match(key) or not _LABEL_SELECTOR.match(value):
            raise ValueError(
                f"{key}: {value} selects no nodes: write a label and a value, '!value', 'in(a, b)' "
                "or '!in(a, b)', e.g. {ray.io/market-type: on-demand}"
            )
    return labels


#: A selector of nodes by their labels.
NodeLabels = Annotated[dict[str, str], AfterValidator(_check_labels)]


class PoolConfig(Section):
    """How many actors a stage has and what each holds. Never changes a result.

    Attributes:
        num_actors: A number, [min, max] to autoscale between, or null to use what the cluster has.
        num_cpus: CPUs of an actor; null: all of a local machine, or 4 on a cluster.
        num_gpus: GPUs of an actor; null: 1 where the cluster has any and the stage can use it.
        resources: Custom Ray resources of an actor, e.g. {licence: 1}.
        labels: Labels of the nodes that an actor may run on, as Ray's selectors: a value, "!value",
            "in(a, b)" or "!in(a, b)", e.g. {ray.io/market-type: "!spot"}.
        shard_rows: Rows (pairs when labelling) a shard: what a lost worker costs at most.
    """

    num_actors: int | tuple[int, int] | None = None
    num_cpus: float | None = Field(default=None, gt=0)
    num_gpus: float | None = Field(default=None, ge=0)
    resources: dict[str, float] = {}
    labels: NodeLabels = {}
    shard_rows: int | None = Field(default=None, ge=1)

    @field_validator("num_actors")
    @classmethod
    def _positive(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        low, high = value if isinstance(value, tuple) else (value or 1, value or 1)
        if low < 1 or high < low:
            raise ValueError("num_actors is a number from 1, or [min, max] with 1 <= min <= max")
        return value
