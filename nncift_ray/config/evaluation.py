"""Recipe section ``evaluation``: which subsets are compared, by what, on which held-out rows."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from nncift_ray.config.sections import PoolConfig, Section
from nncift_ray.config.teacher import BUILT_IN_TEACHERS

#: Methods that ask no teacher: no data at all, a random subset, all candidates.
WITHOUT_TEACHER = ("initial", "random", "full")
NN_CIFT, SMALL_LM = "nn_cift", "small_lm"
#: ``delift``: the teacher's own labels. ``nn_cift+delift``: a network fitted to a sample of them.
#: ``small_lm+delift``: the labels of ``evaluation.small_model`` in the teacher's place.
METHODS = (
    *WITHOUT_TEACHER,
    *(f"{prefix}{kind}" for prefix in ("", f"{NN_CIFT}+", f"{SMALL_LM}+")
      for kind in BUILT_IN_TEACHERS),
)  # fmt: skip
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


class TuningConfig(Section):
    """How the model is fine-tuned on a subset (defaults: the paper's QLoRA).

    Attributes:
        method: "qlora" (the base in 4-bit NF4), "lora", or "full" (all weights).
        rank: Rank of the LoRA matrices.
        alpha: LoRA's scale is alpha / rank.
        dropout: LoRA's dropout.
        target_modules: Names of the linear layers that get an adapter; null: all of them but the
            output layer.
        num_epochs: Passes over the subset.
        learning_rate: Peak of the linear schedule.
        lr_warmup_fraction: Share of the steps in which the learning rate rises.
        batch_size: Examples an optimiser step, over all workers together.
        max_length: Tokens of the longest example; a longer one is an error row.
        dtype: What is computed in; "auto" is bfloat16 on a GPU, float32 on a CPU. On a CPU bfloat16
            means autocast over float32 weights.
        seed: Seed of LoRA's first weights, of the order and of dropout.
        num_workers: Ray Train workers.
        pool: CPUs of a worker.
    """

    method: Literal["qlora", "lora", "full"] = "qlora"
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None
    num_epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    lr_warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    batch_size: int = Field(default=4, ge=1)
    max_length: int = Field(default=1024, ge=8)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=1, ge=1)
    pool: PoolConfig = PoolConfig()


class InContextConfig(Section):
    """How a subset is shown to the untuned model: the nearest examples before every question.

    Attributes:
        num_examples: Examples shown (paper: 5), nearest by the embeddings of the prompts.
        max_length: Tokens of the longest prompt; examples are cut from their left, the question
            never.
    """

    num_examples: int = Field(default=5, ge=1)
    max_length: int = Field(default=2048, ge=32)


class GenerationConfig(Section):
    """How answers are written (defaults: the paper's).

    Attributes:
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token.
        min_p: Tokens less likely than this share of the likeliest are never taken.
        seed: Seed; each row has a stream of its own.
        max_rows: Held-out rows of each test set that answers are written for, drawn with the seed;
            null: all.
        pool: Actors that generate and score.
    """

    max_tokens: int = Field(default=150, ge=1)
    temperature: float = Field(default=0.2, ge=0)
    min_p: float = Field(default=0.1, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    max_rows: int | None = Field(default=None, ge=1)
    pool: PoolConfig = PoolConfig()


class JudgeConfig(Section):
    """A language model that grades answers from 1 to 5; used when ``metrics`` has ``judge``.

    Attributes:
        model: "auto", a hub id (paper: prometheus-eval/prometheus-7b-v2.0), a folder, or an
            embedded model.
        revision: Revision of a hub model.
        engine: As ``teacher.engine``.
        dtype: As ``teacher.dtype``.
        quantization: As ``teacher.quantization``.
        max_length: Tokens of the longest question to the judge, its answer included.
        max_tokens: Longest verdict.
        rubric: Replaces the shipped rubric; says what 1 to 5 mean.
        pool: Actors.
    """

    model: str = "auto"
    revision: str | None = None
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    max_length: int = Field(default=4096, ge=64)
    max_tokens: int = Field(default=512, ge=1)
    rubric: str | None = None
    pool: PoolConfig = PoolConfig()


class EvaluationConfig(Section):
    """What `nncift evaluate` compares.

    Attributes:
        tests: Held-out rows by a name of your own: ``{gsm8k: [test.jsonl]}``.
        methods: Subsets to compare. "initial" (no data), "random", "full", a teacher by its own
            labels ("delift"), NN-CIFT over it ("nn_cift+delift"), or a smaller model in its place
            ("small_lm+delift").
        budgets: Sizes of the subsets, as fractions of the candidates. The first is for every
            method, further ones draw a learning curve for ``curve_methods``.
        curve_methods: Methods that the further budgets are for; null: all that have a budget.
        random_seeds: How many random subsets there are of each size.
        modes: "icl" (examples in the prompt of the untuned model), "tuned" (the model fine-tuned).
        metrics: "nll" (held-out nats a response token), "rouge" (ROUGE-1 and ROUGE-L F), "bge"
            (cosine of answer and reference), "exact_match", "judge".
        model: Language model to teach: "auto", a hub id, a folder, or an embedded model.
        revision: Revision of a hub model.
        engine: As ``teacher.engine``.
        dtype: As ``teacher.dtype``.
        small_model: Model of "small_lm" methods.
        teacher_pairs: Most pairs that a pairwise teacher labels for its own scores; null: every
            pair. Fewer are whole rows of the table, drawn with the seed, and the tables say so.
        nll_max_rows: Held-out rows of each test set that "nll" is measured on in the mode "icl",
            whose prompts are long; null: all. The mode "tuned" measures all.
        tuning: Fine-tuning.
        in_context: In-context learning.
        generation: Writing answers.
        judge: Grading answers.
        extrapolate_to: Candidates of a larger corpus that the cost table is extrapolated to, marked
            as such; null: none.
        bootstrap_samples: Resamplings of the confidence intervals.
        confidence: Level of the intervals and of what is called more than noise.
    """

    tests: dict[str, tuple[str, ...]] = {}
    methods: tuple[str, ...] = ("initial", "random", "nn_cift+delift", "full")
    budgets: tuple[float, ...] = (0.1,)
    curve_methods: tuple[str, ...] | None = None
    random_seeds: int = Field(default=3, ge=1)
    modes: tuple[Literal["icl", "tuned"], ...] = ("icl", "tuned")
    metrics: tuple[Literal["nll", "rouge", "bge", "exact_match", "judge"], ...] = (
        "nll",
        "rouge",
        "bge",
    )
    model: str = "auto"
    revision: str | None = None
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    small_model: str | None = None
    teacher_pairs: int | None = Field(default=None, ge=1)
    nll_max_rows: int | None = Field(default=None, ge=1)
    tuning: TuningConfig = TuningConfig()
    in_context: InContextConfig = InContextConfig()
    generation: GenerationConfig = GenerationConfig()
    judge: JudgeConfig = JudgeConfig()
    extrapolate_to: int | None = Field(default=None, ge=1)
    bootstrap_samples: int = Field(default=10_000, ge=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)

    @field_validator("tests")
    @classmethod
    def _named(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, patterns in value.items():
            if not _NAME.match(name):
                raise ValueError(f"{name!r}: a test set's name has letters, digits, - and _ only")
            if not patterns:
                raise ValueError(f"{name}: give at least one file")
        return value

    @field_validator("methods", "curve_methods")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in METHODS:
                raise ValueError(f"{name!r} is no method; use {', '.join(METHODS)}")
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a method is named twice")
        return value

    @field_validator("budgets")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < each < 1 for each in value):
            raise ValueError("give fractions above 0 and below 1; all candidates are method full")
        if len(set(value)) != len(value):
            raise ValueError("a budget is given twice")
        return value

    @model_validator(mode="after")
    def _joined(self) -> Self:
        if not self.methods or not self.modes or not self.metrics:
            raise ValueError("methods, modes and metrics must each name something")
        strange = [name for name in self.curve_methods or () if name not in self.methods]
        if strange:
            raise ValueError(f"curve_methods: {', '.join(strange)} is not among methods")
        small = [name for name in self.methods if name.startswith(f"{SMALL_LM}+")]
        if small and self.small_model is None:
            raise ValueError(f"methods: {', '.join(small)} needs small_model")
        return self
