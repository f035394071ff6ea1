"""Recipe key ``selection.optimizer``: how the subset is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, cast

from pydantic import Field, model_validator

from nncift_ray.config.sections import PoolConfig, Section

OptimizerKind = Literal["lazy", "naive", "stochastic", "cost_benefit", "partitioned"]
#: Keys that only one kind reads.
KEYS_OF_KIND: Mapping[str, str] = {
    "epsilon": "stochastic",
    "partitions": "partitioned",
    "rounds": "partitioned",
    "bounding": "partitioned",
    "pool": "partitioned",
}


class OptimizerConfig(Section):
    """How the subset is searched; ``optimizer: lazy`` is short for ``optimizer: {kind: lazy}``.

    Attributes:
        kind: "lazy" picks greedily and computes only the gains that can matter; "naive" computes
            all of them at every pick (the same ranking, slowly); "stochastic" looks at a random
            sample before every pick; "cost_benefit" is for a budget in tokens, by gain a token;
            "partitioned" selects in parts of the candidates, on all actors, then among the parts'
            picks: no machine holds more of the lists than a part, or the picks of all parts.
        epsilon: stochastic: expected value at least 1 - 1/e - epsilon of the best; smaller looks at
            more candidates a pick.
        partitions: partitioned: parts of the candidates in the first round; null: one for every
            50,000 candidates, at least 2.
        rounds: partitioned: rounds of parts before the last search; each keeps fewer.
        bounding: partitioned, rounds above 1: settle first what is in every best subset or in none.
            Graph cuts then need all lists in memory.
        pool: partitioned: its actors.
    """

    kind: OptimizerKind = "lazy"
    epsilon: float = Field(default=0.01, gt=0, lt=1)
    partitions: int | None = Field(default=None, ge=2)
    rounds: int = Field(default=1, ge=1, le=8)
    bounding: bool = False
    pool: PoolConfig = PoolConfig()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Self:
        for key in sorted(self.model_fields_set & set(KEYS_OF_KIND)):
            if self.kind != KEYS_OF_KIND[key] and getattr(self, key) != self._default(key):
                raise ValueError(f"{key} is a key of {KEYS_OF_KIND[key]}; this is {self.kind}")
        return self

    @model_validator(mode="after")
    def _bounding_has_rounds(self) -> Self:
        if self.bounding and self.rounds == 1:
            raise ValueError("bounding goes before a search in rounds; set rounds above 1")
        return self

    @classmethod
    def _default(cls, key: str) -> object:
        return cast(object, cls.model_fields[key].default)
