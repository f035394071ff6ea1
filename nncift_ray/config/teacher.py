"""Recipe sections ``teacher`` and ``labels``: who labels, and how much."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nncift_ray.config.sections import PoolConfig, Section, parse_count

BUILT_IN_TEACHERS = ("delift_se", "delift", "less", "selectit")
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class LessConfig(Section):
    """The warm-up and the gradient features of LESS (defaults: arXiv 2402.04333).

    Attributes:
        warmup_fraction: Share of the candidates, drawn at random, that the warm-up trains on.
        max_warmup_examples: Most examples that the fraction may come to.
        num_epochs: Epochs of the warm-up; each leaves one checkpoint.
        learning_rate: Peak of the linear schedule.
        lr_warmup_fraction: Share of the steps in which the learning rate rises.
        batch_size: Examples an optimiser step.
        rank: Rank of the LoRA matrices.
        alpha: LoRA's scale is alpha / rank.
        dropout: LoRA's dropout while warming up; none while gradients are taken.
        target_modules: Names of the linear layers that get an adapter.
        quantization: "bitsandbytes" loads the frozen base in 4 bits.
        projection_dim: Length of a projected gradient.
        max_length: Tokens of the longest example; a longer one is an error row.
        seed: Seed of the draw, of LoRA's first weights, of the order and of the projection.
        num_workers: Ray Train workers of the warm-up.
        pool: Actors that take gradients.
    """

    warmup_fraction: float = Field(default=0.05, gt=0, le=1)
    max_warmup_examples: int = Field(default=20_000, ge=1)
    num_epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    lr_warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    batch_size: int = Field(default=32, ge=1)
    rank: int = Field(default=128, ge=1)
    alpha: float = Field(default=512.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    quantization: Literal["bitsandbytes"] | None = None
    projection_dim: int = Field(default=8192, ge=1)
    max_length: int = Field(default=2048, ge=8)
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=1, ge=1)
    pool: PoolConfig = PoolConfig()


class SelectItConfig(Section):
    """The reflections of SelectIT (arXiv 2402.16705).

    Attributes:
        models: Language models of different size whose scores are averaged by their number of
            parameters; teacher.model alone when empty.
        alpha: How much disagreement between the rating prompts lowers the score.
    """

    models: tuple[str, ...] = ()
    alpha: float = Field(default=0.2, ge=0)


class TeacherConfig(Section):
    """Who labels the sample.

    Attributes:
        kind: delift_se, delift, less, selectit, or a class of your own as "package.module:Class".
        model: Language model of an LM teacher: "auto", a hub id, a folder, or
            "embedded:smollm2-135m-instruct".
        revision: Revision of a hub model.
        engine: vLLM where it is installed, else transformers, when "auto".
        dtype: Weights of the language model; "auto" is float32 on CPU, bfloat16 on GPU.
        max_length: Tokens of the longest request; examples are cut from their left to fit.
        kv_cache_memory_bytes: Memory of vLLM's key-value cache; null: on CPU four requests of
            max_length, at most half of what is free, and on GPU what gpu_memory_utilization leaves.
        gpu_memory_utilization: vLLM on GPU: share of the memory it takes, log-probabilities of the
            prompts included.
        batch_tokens: Tokens computed in one step of the engine; null: as many as the vocabulary and
            the memory allow.
        tensor_parallel_size: vLLM: GPUs that share one copy of the model.
        quantization: "bitsandbytes" (4 bits; transformers, or vLLM with its plugin for it), or what
            the installed vLLM knows, such as awq, gptq or fp8; null: as the model's files say.
        adapter: Folder of a PEFT LoRA adapter on the model.
        max_failed_fraction: Stop when a larger share of the requests fails.
        less: Warm-up and gradients of LESS.
        selectit: Reflections of SelectIT.
        options: Keyword arguments of a teacher class of your own.
    """

    kind: str
    model: str = "auto"
    revision: str | None = None
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_length: int = Field(default=2048, ge=32)
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    batch_tokens: int | None = Field(default=None, ge=32)
    tensor_parallel_size: int = Field(default=1, ge=1)
    quantization: str | None = None
    adapter: str | None = None
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    less: LessConfig = LessConfig()
    selectit: SelectItConfig = SelectItConfig()
    options: dict[str, Any] = {}

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        secret = [name for name in value if _SECRET_NAME.search(name)]
        if secret:
            raise ValueError(
                f"{', '.join(secret)}: recipes are written to manifests and reports; let the "
                "teacher read secrets from the environment"
            )
        return value

    @model_validator(mode="after")
    def _options_are_for_own_classes(self) -> Self:
        if self.options and self.kind in BUILT_IN_TEACHERS:
            raise ValueError(f"options are for a teacher class of your own; {self.kind} takes none")
        return self

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in BUILT_IN_TEACHERS or _IMPORT_PATH.match(value):
            return value
        raise ValueError(
            f"{value!r} is no teacher: use {', '.join(BUILT_IN_TEACHERS)} or package.module:Class"
        )


class LabelsConfig(Section):
    """How much the teacher labels: ``fraction`` of the rows and of the columns, or ``label_pairs``.

    With ``pair_scores.by: teacher`` it labels everything: every pair, or every example of a
    pointwise teacher. ``label_pairs`` (or ``max_pairs``) then bounds the pairs to whole rows, and
    ``design``, ``fraction`` and ``holdout_pairs`` are not read.

    Attributes:
        design: Which pairs are labelled: "paper" (a square block), "rows" (many rows, few helpers),
            "helpers" (few rows, many helpers), "balanced" (each row with a quarter of the helpers)
            or "uniform" (pairs of all there are). All of them label equally many.
        fraction: Share of the rows and of the columns in the labelled block (paper: 0.05).
        label_pairs: Total pairs to label instead, held-out ones included, per block.
        max_pairs: Most pairs of a block that ``fraction`` may come to; 0.05 of a million rows would
            be 2.5 billion.
        holdout_pairs: Held-out pairs of each quadrant Q1..Q4; null: a twentieth of the labels, at
            most 500.
        validation_fraction: Share of the block that only decides when training stops.
        group_pairs: Requests that the engine is handed at once, neighbours sharing a helper. Part
            of what the labels are: another number changes their last digits.
        seed: Seed of the draw.
        pool: Actors.
    """

    design: Literal["paper", "rows", "helpers", "balanced", "uniform"] = "paper"
    fraction: float = Field(default=0.05, gt=0, le=1)
    label_pairs: int | None = None
    max_pairs: int = Field(default=1_000_000, ge=1)
    holdout_pairs: int | None = Field(default=None, ge=0)
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    group_pairs: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)
    pool: PoolConfig = PoolConfig()

    @field_validator("label_pairs", mode="before")
    @classmethod
    def _count(cls, value: object) -> int | None:
        return None if value is None else parse_count(value)
