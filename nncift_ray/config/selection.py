"""Recipe section ``selection``: what the subset is to be good at, its budget and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from nncift_ray.config.optimizer import OptimizerConfig
from nncift_ray.config.quotas import QuotasConfig
from nncift_ray.config.sections import Section, parse_count

Fraction = Annotated[float, Field(gt=0, lt=1)]
Objective = Literal[
    "facility_location",
    "facility_location_mutual_information",
    "facility_location_query_mutual_information",
    "facility_location_conditional_gain",
    "graph_cut",
    "graph_cut_mutual_information",
    "graph_cut_conditional_gain",
    "saturated_coverage",
    "top_k",
    "random",
]
CONDITIONAL = ("facility_location_conditional_gain", "graph_cut_conditional_gain")
#: Objectives that have no use for targets: their form with a target has a name of its own.
WITHOUT_TARGETS = ("graph_cut", "graph_cut_conditional_gain")
#: What only some objectives read.
READERS_OF_KEY: Mapping[str, tuple[str, ...]] = {
    "nu": CONDITIONAL,
    "redundancy": ("graph_cut", "graph_cut_mutual_information", "graph_cut_conditional_gain"),
    "saturation": ("saturated_coverage",),
}


class TokenBudget(Section):
    """A budget in tokens, as the embedder's tokenizer counts them."""

    tokens: int

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> int:
        return parse_count(value)


class SelectionConfig(Section):
    """What the subset is to be good at, and how large it may be.

    Influence s_ij says how much candidate j helps row i; larger is better. It may be negative, and
    is scaled to 0..1 by one minimum and maximum of all that is scored in the run, so the most
    harmful helper counts as 0 (ADR 4). Rows i are candidates, or the targets q where there are any.

    ======================================== =============== ======================================
    objective                                reads           value of a subset A
    ======================================== =============== ======================================
    facility_location                        within          sum_i max_{j in A} s_ij
      with targets: its query form below;    with existing data: its conditional gain
    facility_location_mutual_information     within, cross   sum_i min(max_j s_ij, eta max_q s_qi)
    facility_location_query_mutual_inform... cross           sum_q max_j s_qj + eta sum_j max_q s_qj
    facility_location_conditional_gain       within or cross sum_i (max_j s_ij - nu max_p s_ip)+
    graph_cut                                within          relevance - redundancy * pairs in A
    graph_cut_mutual_information             cross           what A does for all targets together
    graph_cut_conditional_gain               within          graph_cut, less what existing p share
    saturated_coverage                       within or cross sum_i min(sum_j s_ij, saturation)
    top_k                                    points, cross,  score of each candidate alone
                                             or within
    random                                   as facility_location  a seeded permutation (a baseline)
    ======================================== =============== ======================================

    "within or cross": the rows are the targets where there are any (cross), else the candidates
    (within). p are the examples of ``data.existing``; they are scored by the same network, as
    helpers of the same rows. (x)+ is x where positive, else 0.

    Attributes:
        objective: See above. The mutual information forms need targets, the conditional gains need
            data.existing. top_k takes the candidates of the highest score: a pointwise teacher's,
            or the mean influence on the targets of the subtask where it is highest (LESS).
        budget: A fraction (below 1), a count (from 1), or {tokens: 5M}.
        eta: Weight of the target in the mutual information forms.
        nu: Weight of the existing data in the conditional gains; 1 in the paper.
        redundancy: How much graph_cut minds that picks resemble each other (its lambda).
        saturation: saturated_coverage: share of a row's whole list that is enough for it.
        optimizer: How the subset is searched.
        stop_gain: Stop early when a pick would add less than this share of the value reached so
            far; null: fill the budget.
        quotas: Least and most picks of each source or other group.
        include: Ids of candidates that must be picked, or one path of a file with an id a line.
        exclude: Ids of candidates that must not be picked, or one path of such a file.
        seed: Seed of random and of the stochastic optimiser.
    """

    objective: Objective
    budget: Fraction | int | TokenBudget
    eta: float = Field(default=1.0, gt=0)
    nu: float = Field(default=1.0, ge=0)
    redundancy: float = Field(default=0.5, ge=0)
    saturation: float = Field(default=0.1, gt=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    stop_gain: float | None = Field(default=None, ge=0, lt=1)
    quotas: QuotasConfig = QuotasConfig()
    include: tuple[str, ...] | str = ()
    exclude: tuple[str, ...] | str = ()
    seed: int = Field(default=0, ge=0)

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

    @model_validator(mode="after")
    def _keys_are_read(self) -> Self:
        for key, readers in READERS_OF_KEY.items():
            if key in self.model_fields_set and self.objective not in readers:
                if key == "nu" and self.objective == "facility_location":
                    continue  # becomes its conditional form where there are existing data
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} is read by {', '.join(readers)}; the objective is {self.objective}"
                    )
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> Self:
        kind, in_tokens = self.optimizer.kind, isinstance(self.budget, TokenBudget)
        if kind == "cost_benefit" and not in_tokens:
            raise ValueError("optimizer cost_benefit needs a budget in tokens: {tokens: 5M}")
        if kind in ("stochastic", "partitioned") and in_tokens:
            raise ValueError(
                f"optimizer {kind} needs a budget in examples; use lazy or cost_benefit"
            )
        if kind == "partitioned" and self.optimizer.rounds > 1 and self.quotas.given:
            raise ValueError("optimizer.rounds above 1 takes no quotas; use 1, or optimizer lazy")
        if self.objective in ("top_k", "random") and kind not in ("lazy", "naive"):
            raise ValueError(f"{self.objective} has nothing to search; leave the optimizer at lazy")
        return self

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if isinstance(self.include, tuple) and isinstance(self.exclude, tuple):
            both = sorted(set(self.include) & set(self.exclude))
            if both:
                raise ValueError(f"include and exclude both name {', '.join(both[:3])}")
        if isinstance(self.budget, TokenBudget):
            if any(isinstance(quota, float) for quota in self.quotas.values):
                raise ValueError("quotas that are shares need a budget in examples; write counts")
            return self
        least = sum(quota for quota in self.quotas.min.values() if isinstance(quota, int))
        shares = sum(quota for quota in self.quotas.min.values() if isinstance(quota, float))
        if shares > 1 or (isinstance(self.budget, int) and least > self.budget):
            raise ValueError(f"quotas.min come to more than the budget of {self.budget}")
        if isinstance(self.budget, int) and len(self.include) > self.budget:
            if isinstance(self.include, tuple):
                raise ValueError(
                    f"include names {len(self.include)} examples, the budget is {self.budget}"
                )
        return self
