"""The whole recipe: its sections, and the rules that join them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from nncift_ray.errors import find_secret

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMBG]?)\s*$", re.IGNORECASE)
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?{_LABEL_NAME}$")
_LABEL_SELECTOR = re.compile(
    rf"^!?({_LABEL_NAME}|in\(\s*{_LABEL_NAME}(\s*,\s*{_LABEL_NAME})*\s*\))$"
)


class Section(BaseModel):
    """A frozen part of the recipe that knows all its keys; each is described by the text below it.

    The text is the ``description`` in ``model_fields``.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )
    #: The key that a plain text stands for: ``teacher: delift`` is ``teacher: {kind: delift}``.
    short_key: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {cls.short_key: value} if cls.short_key and isinstance(value, str) else value


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


#: A number from 1, or one such as "5K" or "4G" (decimal).
Count = Annotated[int, BeforeValidator(parse_count)]


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
    """How many actors a stage has and what each holds. Never changes a result."""

    num_actors: int | tuple[int, int] | None = Field(default=None, examples=[[2, 8]])
    """A number, [min, max] to autoscale between, or null to use what the cluster has."""
    num_cpus: float | None = Field(default=None, gt=0, examples=[2])
    """CPUs of an actor; null: all of a local machine, or 4 on a cluster."""
    num_gpus: float | None = Field(default=None, ge=0, examples=[0.5])
    """GPUs of an actor; null: 1 where the cluster has any and the stage can use it."""
    resources: dict[str, float] = Field(default={}, examples=[{"licence": 1}])
    """Custom Ray resources of an actor, e.g. {licence: 1}."""
    labels: NodeLabels = Field(default={}, examples=[{"ray.io/market-type": "!spot"}])
    """Labels of the nodes that an actor may run on, as Ray's selectors: a value, "!value", "in(a,
    b)" or "!in(a, b)", e.g. {ray.io/market-type: "!spot"}."""
    shard_rows: int | None = Field(default=None, ge=1, examples=[2000])
    """Rows (pairs when labelling) a shard: what a lost worker costs at most."""

    @field_validator("num_actors")
    @classmethod
    def _positive(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        low, high = value if isinstance(value, tuple) else (value or 1, value or 1)
        if low < 1 or high < low:
            raise ValueError("num_actors is a number from 1, or [min, max] with 1 <= min <= max")
        return value


# Recipe sections ``data`` and ``embedder``: the corpus, and the vectors it becomes.

ColumnRole = Literal[
    "prompt", "response", "input", "system", "history", "messages", "tools", "reasoning"
]


class DataConfig(Section):
    """What to choose from, and what to become good at."""

    candidates: tuple[str, ...] = Field(
        default=(), examples=[["corpus/*.jsonl", "hf:tatsu-lab/alpaca"]]
    )
    """Files, globs or folders to choose from; a run needs some."""
    targets: tuple[str, ...] = Field(default=(), examples=[["dev.jsonl"]])
    """What the model should be good at; the candidates themselves when empty."""
    existing: tuple[str, ...] = Field(default=(), examples=[["seen.jsonl"]])
    """Data that the model already has; a conditional gain looks for what they lack. They are not
    selected again, and are never labelled."""
    layout: Literal[
        "auto",
        "alpaca",
        "prompt_completion",
        "question_answer",
        "sharegpt",
        "messages",
        "preference",
    ] = "auto"
    """Layout of all files, or "auto" to find it per file."""
    columns: dict[ColumnRole, str] | None = Field(
        default=None, examples=[{"prompt": "q", "response": "choices[0].text"}]
    )
    """Explicit mapping for other layouts, e.g. {prompt: q, response: "choices[0].text"}; or
    {messages: COLUMN} for a list of turns."""
    preference: Literal["chosen", "refuse", "all"] = "chosen"
    """Of preference pairs: learn from what is chosen, or refuse them. Rows whose label calls the
    response bad (KTO) are refused unless "all"."""
    reasoning: Literal["keep", "drop"] = "keep"
    """Whether a reasoning trace (reasoning_content, thinking) is part of the response."""
    max_chars: int = Field(default=200_000, ge=1)
    """A longer prompt or response makes a row an error."""
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    """Stop when a larger share of the records is unusable."""
    near_duplicates: float | None = Field(default=0.95, gt=0, le=1)
    """A candidate is left out where an earlier one is alike: the words of both prompts and of both
    responses have this Jaccard similarity (runs of three, MinHash); null: exact copies only."""
    benchmarks: tuple[str, ...] = Field(default=(), examples=[["gsm8k_test.jsonl"]])
    """Files, globs or folders of tests that no pick may give away: candidates that overlap with
    them, or with ``evaluation.tests``, are left out."""
    overlap_words: int = Field(default=13, ge=5)
    """Words in a row that a candidate and a test may not share; the same prompt is always one."""
    group_by: str | None = Field(default=None, examples=["task"])
    """Field of the original record that names a source or task in the report; the file name when
    null."""
    subtask_by: str | None = Field(default=None, examples=["subject"])
    """Field of a target's original record that names its subtask; the objective top_k takes the
    best of the subtasks (LESS). All targets are one subtask when null."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files, globs and folders."""
        return (*self.candidates, *self.targets, *self.existing, *self.benchmarks)

    @field_validator("candidates", "targets", "existing", "benchmarks", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.columns is not None and self.layout != "auto":
            raise ValueError("give either layout or columns, not both: columns is itself a layout")
        if self.subtask_by is not None and not self.targets:
            raise ValueError("subtask_by names a field of targets, and there are none")
        columns = set(self.columns or {"messages"})
        if "messages" not in columns and not {"prompt", "response"} <= columns:
            raise ValueError("columns needs the keys 'prompt' and 'response', or 'messages'")
        return self


class EmbedderConfig(Section):
    """The sentence embedder whose vectors the network reads."""

    model: str = "auto"
    """"auto" (BAAI/bge-large-en-v1.5, or the packaged model when the hub cannot be reached), a hub
    id, a local folder, or "embedded:all-minilm-l6-v2"."""
    revision: str | None = Field(default=None, examples=["main"])
    """Revision of a hub model."""
    dtype: Literal["float32", "float16"] = "float32"
    """How vectors are stored."""
    pool: PoolConfig = PoolConfig()
    """Actors."""


# Recipe sections ``teacher`` and ``labels``: who labels, and how much.

LOSS_DROPS = ("loss_drop", "loss_drop_in_context")
#: Teachers that are not asked: their scores of all there is follow from what other steps measured.
MEASURED_TEACHERS = (
    *("longest", "ifd", "consistency", "deita", *LOSS_DROPS),
    *("rds_plus", "landmarks"),
)
#: Not asked either, but scored as a network's pairs are: its network is the plain inner product.
COSINE = "cosine"
UNASKED_TEACHERS = (*MEASURED_TEACHERS, COSINE)
BUILT_IN_TEACHERS = (COSINE, "delift", "delift_se", "less", "selectit", *MEASURED_TEACHERS)
#: Those that score examples, not pairs; of a class of the user's own its attribute ``kind`` says.
POINTWISE_TEACHERS = ("selectit", "longest", "ifd", "consistency", "deita", *LOSS_DROPS)
#: Import paths of the user's own, by the names that ``register_teacher`` gave them.
REGISTERED_TEACHERS: dict[str, str] = {}
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class LessConfig(Section):
    """The warm-up and the gradient features of LESS (defaults: arXiv 2402.04333)."""

    warmup_fraction: float = Field(default=0.05, gt=0, le=1)
    """Share of the candidates, drawn at random, that the warm-up trains on."""
    max_warmup_examples: int = Field(default=20_000, ge=1)
    """Most examples that the fraction may come to."""
    num_epochs: int = Field(default=4, ge=1)
    """Epochs of the warm-up; each leaves one checkpoint."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak of the linear schedule."""
    lr_warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    batch_size: int = Field(default=32, ge=1)
    """Examples an optimiser step."""
    rank: int = Field(default=128, ge=1)
    """Rank of the LoRA matrices."""
    alpha: float = Field(default=512.0, gt=0)
    """LoRA's scale is alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """LoRA's dropout while warming up; none while gradients are taken."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an adapter."""
    quantization: Literal["bitsandbytes"] | None = Field(default=None, examples=["bitsandbytes"])
    """"bitsandbytes" loads the frozen base in 4 bits."""
    projection_dim: int = Field(default=8192, ge=1)
    """Length of a projected gradient."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of the longest example; a longer one is an error row."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw, of LoRA's first weights, of the order and of the projection."""
    gradient_checkpointing: bool | None = Field(default=None, examples=[True])
    """Compute activations again on the way back, which takes a third more time and a fraction of
    the memory; null: above a billion parameters."""
    storage: Literal["float32", "int8", "bit"] = "int8"
    """How the gradients of all rows are stored (``pair_scores.by: teacher``), for each checkpoint
    4, 1 or 1/8 bytes times ``projection_dim``; those of a label sample are float32."""
    num_landmarks: int = Field(default=4096, ge=2)
    """landmarks: candidates whose gradients are taken; the others' scores are told from theirs."""
    target_rank: int | None = Field(default=None, ge=1, examples=[64])
    """Compare the gradients of all rows only in so many directions, those in which the targets'
    vary most; null: in all."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers of the warm-up."""
    pool: PoolConfig = PoolConfig()
    """Actors that take gradients."""


class SelectItConfig(Section):
    """The reflections of SelectIT (arXiv 2402.16705)."""

    models: tuple[str, ...] = Field(default=(), examples=[["small-model", "large-model"]])
    """Language models of different size whose scores are averaged by their number of parameters;
    teacher.model alone when empty."""
    alpha: float = Field(default=0.2, ge=0)
    """How much disagreement between the rating prompts lowers the score."""


Template = Literal["auto", "paper"]
TaughtTurns = Literal["all", "last"]


class ServerConfig(Section):
    """An OpenAI-compatible server that scores the tokens of prompts.

    It must take token ids and know ``prompt_logprobs`` (vLLM), or ``echo`` with ``logprobs``.
    """

    url: str = Field(pattern=r"^https?://\S+$")
    """Where it is, e.g. http://gpu-1:8000/v1."""
    model: str | None = None
    """The name that it serves the model by; null: ``teacher.model``, whose tokenizer is read."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests that wait for an answer at a time."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest wait for an answer; then the request is sent again, five times in all."""
    token_variable: str = Field(default="NNCIFT_API_TOKEN", pattern=r"^[A-Za-z_]\w*$")
    """Environment variable that holds the server's token; not set: none is sent."""


EngineName = Literal["auto", "vllm", "transformers"]
#: The tags are no words, so that messages leave them out of the path of a key.
EngineChoice = Annotated[
    Annotated[EngineName, Tag("a name")] | Annotated[ServerConfig, Tag("a server")],
    Discriminator(lambda value: "a name" if isinstance(value, str) else "a server"),
]


class EngineConfig(Section):
    """Which language model, and how an engine loads it."""

    model: str = "auto"
    """Language model: "auto", a hub id, a folder, or "embedded:smollm2-135m-instruct"."""
    revision: str | None = Field(default=None, examples=["main"])
    """Revision of a hub model."""
    engine: EngineChoice = "auto"
    """vLLM where it is installed, else transformers, when "auto"; or a server that speaks OpenAI's
    language, e.g. ``{url: "http://gpu-1:8000/v1"}``, for the teachers delift, loss_drop_in_context
    and your own (further keys: model, concurrency, timeout_seconds, token_variable)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights of the language model; "auto" is float32 on CPU, bfloat16 on GPU, as the run
    directory was begun."""
    max_length: int = Field(default=2048, ge=32)
    """Tokens of the longest request, a generated answer included."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1, examples=[4_000_000_000])
    """Memory of vLLM's key-value cache; null: on CPU four requests of max_length (eight answers),
    at most half of what is free, and on GPU what gpu_memory_utilization leaves."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """vLLM on GPU: share of the memory it takes, log-probabilities of the prompts included."""
    batch_tokens: int | None = Field(default=None, ge=32, examples=[8192])
    """Tokens computed in one step of the engine; null: as many as the vocabulary and the memory
    allow."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """vLLM: GPUs that share one copy of the model."""
    quantization: str | None = Field(default=None, examples=["bitsandbytes"])
    """"bitsandbytes" (4 bits; transformers, or vLLM with its plugin for it), or what the installed
    vLLM knows, such as awq, gptq or fp8; null: as the model's files say."""
    adapter: str | None = Field(default=None, examples=["adapters/mine"])
    """Folder of a PEFT LoRA adapter on the model."""
    template: Template = "auto"
    """How examples are written: "auto" in the model's chat template, where it has one, as trainers
    do; "paper" as plain text. Holds for the evaluation's model, too."""
    turns: TaughtTurns = "all"
    """In a chat template: whether all turns of the assistant are taught, or the last."""

    @property
    def server(self) -> ServerConfig | None:
        """The server that is asked; None where the model is loaded here."""
        return None if isinstance(self.engine, str) else self.engine

    @property
    def served_name(self) -> str:
        """What the server calls the model."""
        return (self.server and self.server.model) or self.model

    @model_validator(mode="after")
    def _server_has_loaded_the_model(self) -> Self:
        if self.server is None:
            return self
        if self.model == "auto":
            raise ValueError(
                "engine is a server, so name the model it serves in teacher.model (a hub id or a "
                "folder: its tokenizer is read), and in engine.model what the server calls it"
            )
        if self.adapter or self.quantization or self.tensor_parallel_size > 1:
            raise ValueError(
                "engine is a server: adapter, quantization and tensor_parallel_size are its own to "
                "set, so take them out here"
            )
        return self


class TeacherConfig(EngineConfig):
    """Who labels the sample; a language model's keys are read by the teachers that ask one."""

    short_key = "kind"

    kind: str = COSINE
    """cosine, whose scores need no label; delift, delift_se, less, selectit, of whose labels a
    network learns; longest, ifd, consistency, deita, loss_drop, loss_drop_in_context, rds_plus,
    landmarks, which score everything themselves; a name that ``register_teacher`` gave; or a class
    of your own as "package.module:Class". ``teacher: delift`` is short for
    ``teacher: {kind: delift}``."""
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of the requests fails."""
    less: LessConfig = LessConfig()
    """Warm-up and gradients of LESS."""
    selectit: SelectItConfig = SelectItConfig()
    """Reflections of SelectIT."""
    options: dict[str, Any] = Field(default={}, examples=[{"threshold": 0.5}])
    """Keyword arguments of a teacher class of your own."""

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
        value = REGISTERED_TEACHERS.get(value, value)  # so that a run's record can be read anywhere
        if value in BUILT_IN_TEACHERS or _IMPORT_PATH.match(value):
            return value
        raise ValueError(
            f"{value!r} is no teacher: use {', '.join(BUILT_IN_TEACHERS)} or package.module:Class"
        )


class ProfilesConfig(Section):
    """What a language model is asked about every example: losses, features, and its neighbours.

    Selection multiplies a candidate's worth by the quality that follows.
    """

    model: str | None = "teacher"
    """"teacher" (its first language model; a teacher without one has no profiles), a hub id, a
    folder or an embedded model, loaded with the teacher's keys; null: no profiles."""
    num_neighbours: int = Field(default=5, ge=0)
    """Near examples shown before a candidate, to see whether they contradict its answer; 0: none,
    so that losses and the cosine of prompt and answer alone judge it."""
    pool: PoolConfig = PoolConfig()
    """Actors."""


class LabelsConfig(Section):
    """How much the teacher labels: ``fraction`` of the rows and of the columns, or ``label_pairs``.

    With ``pair_scores.by: teacher`` it labels everything: every pair, or every example of a
    pointwise teacher. ``label_pairs`` (or ``max_pairs``) then bounds the pairs to whole rows, and
    ``fraction`` and ``holdout_pairs`` are not read.
    """

    fraction: float = Field(default=0.05, gt=0, le=1)
    """Share of the rows and of the columns in the labelled block (paper: 0.05)."""
    label_pairs: int | None = Field(default=None, examples=[20_000])
    """Total pairs to label instead, held-out ones included, per block."""
    max_pairs: int = Field(default=1_000_000, ge=1)
    """Most pairs of a block that ``fraction`` may come to; 0.05 of a million rows would be 2.5
    billion."""
    holdout_pairs: int | None = Field(default=None, ge=0, examples=[200])
    """Held-out pairs of each quadrant Q1..Q4; null: a twentieth of the labels, at most 500."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the block that only decides when training stops."""
    group_pairs: int = Field(default=256, ge=1)
    """Requests that the engine is handed at once, neighbours sharing a helper. Part of what the
    labels are: another number changes their last digits."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""
    pool: PoolConfig = PoolConfig()
    """Actors."""

    @field_validator("label_pairs", mode="before")
    @classmethod
    def _count(cls, value: object) -> int | None:
        return None if value is None else parse_count(value)


# Recipe sections ``network`` and ``pair_scores``: what learns from labels, what scores pairs.


class NetworkConfig(Section):
    """What predicts the influence of every pair.

    "pair" is fitted by least squares and reads none of the keys of training; "paper" is NN-CIFT's
    InfluenceNetwork with its defaults (arXiv 2502.09969), and what scores a pointwise teacher's
    examples.
    """

    kind: Literal["pair", "paper"] = "pair"
    """"pair": effects of either example, and an inner product of what the embedder and the profiles
    say of the two. "paper": a hidden layer over both embeddings, side by side."""
    num_hidden: int = Field(default=100, ge=2)
    """Hidden units; of "pair", numbers of the inner product."""
    num_epochs: int = Field(default=20, ge=1)
    """Most epochs, where they make ``min_steps`` optimiser steps or more."""
    min_steps: int = Field(default=20_000, ge=0)
    """A small sample gets more epochs (and patience) until they would make this many steps; 0 keeps
    to the paper's epochs."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs a step, over all workers together."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's."""
    patience: int = Field(default=5, ge=1)
    """Epochs without a better held-out loss before training stops."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights and batch order."""
    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers (CPU); another number changes the last bits of the weights."""
    standardise: bool = True
    """Learn labels of mean 0 and deviation 1; the paper's network learns them raw."""


class PairScoresConfig(Section):
    """The all-pairs stage."""

    by: Literal["network", "teacher"] = "network"
    """"network" predicts the influence of every pair from a sample of labels. "teacher" takes the
    teacher's own labels for it: of every pair, or of whole rows (all candidates as helpers) up to
    ``labels.label_pairs``; no network is trained."""
    mode: Literal["exact", "pruned", "auto"] = "exact"
    """"exact" scores every pair. "pruned" scores the pairs that an index of the network's own
    features proposes. "auto" measures both on this machine and takes the faster."""
    top_k: int = Field(default=64, ge=1)
    """Helpers kept of every row."""
    min_recall: float = Field(default=0.98, gt=0, le=1)
    """Share of the true top K that a pruned run must find, on average over rows."""
    recall_rows: int = Field(default=256, ge=1)
    """Rows the search is tuned on, and as many others that it is checked on."""
    on_low_recall: Literal["stop", "exact"] = "stop"
    """What to do where even the widest search finds too little: stop, or go exact."""
    seed: int = Field(default=0, ge=0)
    """Of the samples that the index is built, tuned and checked on."""
    max_dense_bytes: Count = 2 * 10**9
    """Most bytes of a block's pairs where an objective adds up every one (the graph cuts,
    saturated_coverage, round_robin)."""
    max_worker_bytes: Count = 4 * 10**9
    """Memory that one worker may take, estimated before the stage starts. More lets it keep more
    columns in memory. Never changes a result."""
    column_tile: int = Field(default=65_536, ge=16)
    """Columns scored at a time. Never changes a result."""
    pool: PoolConfig = PoolConfig()
    """Actors; each scores with as many threads as it has CPUs."""


# Recipe key ``selection.quotas``: how many picks each source may and must have.


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
    """

    field: str | None = Field(default=None, min_length=1, examples=["task"])
    """Field of the original record that names the group, such as task; null: data.group_by, or the
    name of the file where that is null, too."""
    min: dict[str, Quota] = Field(default={}, examples=[{"maths": 50}])
    """Least picks by group; a group with fewer candidates stops the run."""
    max: dict[str, Quota] | Quota = Field(default={}, examples=[{"chat": 0.3}])
    """Most picks by group, or one quota for every group."""

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


# Recipe key ``selection.optimizer``: how the subset is searched.

OptimizerKind = Literal["lazy", "cost_benefit", "partitioned"]
#: Kinds that recipes once had, and what takes their place.
REMOVED_KINDS: Mapping[str, str] = {
    "naive": "use lazy, which picks the same, faster",
    "stochastic": "use lazy, which reaches a higher value in about the same time",
}


class OptimizerConfig(Section):
    """How the subset is searched; ``optimizer: lazy`` is short for ``optimizer: {kind: lazy}``."""

    short_key = "kind"

    kind: OptimizerKind = "lazy"
    """"lazy" picks greedily and computes only the gains that can matter; "cost_benefit" is for a
    budget in tokens, by gain a token; "partitioned" selects in parts of the candidates, on all
    actors, then among the parts' picks: no machine holds more of the lists than a part, or the
    picks of all parts."""
    partitions: int | None = Field(default=None, ge=2, examples=[8])
    """partitioned: parts of the candidates; null: one for every 50,000 candidates, at least 2."""
    pool: PoolConfig = PoolConfig()
    """partitioned: its actors."""

    @field_validator("kind", mode="before")
    @classmethod
    def _is_not_removed(cls, kind: object) -> object:
        if isinstance(kind, str) and kind in REMOVED_KINDS:
            raise ValueError(f"this kind was removed; {REMOVED_KINDS[kind]}")
        return kind

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Self:
        for key in ("partitions", "pool"):
            is_given = getattr(self, key) != type(self).model_fields[key].default
            if self.kind != "partitioned" and is_given:
                raise ValueError(f"{key} is a key of partitioned; this is {self.kind}")
        return self


# Recipe section ``selection``: what the subset is to be good at, its budget and its limits.

Fraction = Annotated[float, Field(gt=0, lt=1)]
Objective = Literal[
    "facility_location",
    "pair_coverage",
    "facility_location_mutual_information",
    "facility_location_pool_mutual_information",
    "facility_location_query_mutual_information",
    "facility_location_conditional_gain",
    "graph_cut",
    "graph_cut_mutual_information",
    "graph_cut_conditional_gain",
    "saturated_coverage",
    "round_robin",
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
    "min_distance": ("top_k",),
}


class TokenBudget(Section):
    """A budget in tokens, as the embedder's tokenizer counts them."""

    tokens: Count
    """Most tokens of the picks together."""


class SelectionConfig(Section):
    """What the subset is to be good at, and how large it may be.

    Influence s_ij says how much candidate j helps row i; larger is better. It may be negative, and
    is scaled to 0..1 by one minimum and maximum of all that is scored in the run, so the most
    harmful helper counts as 0. docs/selection.md has the value of a subset under every objective.
    """

    objective: Objective = "facility_location"
    """pair_coverage leaves out what a row or a helper is by itself, so that none is best; it
    needs network.kind pair. The mutual information forms need targets, the conditional gains need
    data.existing. top_k takes the candidates of the highest score: a pointwise teacher's, or the
    mean influence on the targets of the subtask where it is highest (LESS)."""
    budget: Fraction | int | TokenBudget = 0.1
    """A fraction (below 1), a count (from 1), or {tokens: 5M}."""
    eta: float = Field(default=1.0, gt=0)
    """Weight of the target in the mutual information forms."""
    nu: float = Field(default=1.0, ge=0)
    """Weight of the existing data in the conditional gains; 1 in the paper."""
    redundancy: float = Field(default=0.5, ge=0)
    """How much graph_cut minds that picks resemble each other (its lambda)."""
    saturation: float = Field(default=0.1, gt=0, le=1)
    """saturated_coverage: share of a row's whole list that is enough for it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the subset is searched."""
    stop_gain: float | None = Field(default=None, ge=0, lt=1, examples=[0.001])
    """Stop early when a pick would add less than this share of the value reached so far; null: fill
    the budget."""
    quotas: QuotasConfig = QuotasConfig()
    """Least and most picks of each source or other group."""
    include: tuple[str, ...] | str = Field(default=(), examples=[["3f9a12"]])
    """Ids of candidates that must be picked, or one path of a file with an id a line."""
    exclude: tuple[str, ...] | str = Field(default=(), examples=["never.txt"])
    """Ids of candidates that must not be picked, or one path of such a file."""
    repeats: float | None = Field(default=0.85, gt=0, le=1)
    """Of candidates with one answer, the same numbers and at least this cosine of embeddings, one
    may be picked: they ask the same in other words; null: all may."""
    quality: Literal["auto", "none"] = "auto"
    """auto: where there are profiles, a candidate's worth is multiplied by its quality; none: it is
    not (the paper's method)."""
    weight_by: str | None = Field(default=None, min_length=1, examples=["quality"])
    """Field of a candidate's record, a number from 0, that multiplies its worth in any objective
    (divided by the largest of all candidates); on top of the quality."""
    min_distance: float = Field(default=0.0, ge=0, lt=1)
    """top_k: leave out a candidate whose embedding is nearer than this (1 - cosine) to that of a
    better pick, as long as others fill the budget; 0.1 in DEITA."""
    seed: int = Field(default=0, ge=0)
    """Seed of random, and of the parts of the partitioned optimizer."""

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
        if kind == "partitioned" and in_tokens:
            raise ValueError(
                "optimizer partitioned needs a budget in examples; use lazy or cost_benefit"
            )
        if self.objective in ("top_k", "round_robin", "random") and kind != "lazy":
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


# Recipe section ``evaluation``: which subsets are compared, by what, on which held-out rows.

#: Methods that ask no teacher: no data at all, a random subset of all or of one source, everything.
WITHOUT_TEACHER = ("initial", "random", "random_source", "full")
NN_CIFT, SMALL_LM = "nn_cift", "small_lm"
#: ``delift``: the teacher's own labels. ``nn_cift+delift``: a network fitted to a sample of them.
#: ``small_lm+delift``: the labels of ``evaluation.small_model`` in the teacher's place.
METHODS = (
    *WITHOUT_TEACHER,
    *BUILT_IN_TEACHERS,
    *(f"{NN_CIFT}+{kind}" for kind in BUILT_IN_TEACHERS if kind not in UNASKED_TEACHERS),
    *(f"{SMALL_LM}+{kind}" for kind in BUILT_IN_TEACHERS if kind not in ("longest", COSINE)),
)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


class TuningConfig(Section):
    """How the model is fine-tuned on a subset (defaults: the paper's QLoRA)."""

    method: Literal["qlora", "lora", "full"] = "qlora"
    """"qlora" (the base in 4-bit NF4), "lora", or "full" (all weights)."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRA matrices."""
    alpha: float = Field(default=16.0, gt=0)
    """LoRA's scale is alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """LoRA's dropout."""
    target_modules: tuple[str, ...] | None = Field(default=None, examples=[["q_proj", "v_proj"]])
    """Names of the linear layers that get an adapter; null: all of them but the output layer."""
    num_epochs: int = Field(default=3, ge=1)
    """Passes over the subset."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak of the linear schedule."""
    lr_warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    batch_size: int = Field(default=4, ge=1)
    """Examples an optimiser step."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of the longest example; a longer one is an error row."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; "auto" is bfloat16 on a GPU, float32 on a CPU. On a CPU bfloat16 means
    autocast over float32 weights."""
    gradient_checkpointing: bool | None = Field(default=None, examples=[True])
    """Compute activations again on the way back, which takes a third more time and a fraction of
    the memory; null: above a billion parameters."""
    seed: int = Field(default=0, ge=0)
    """Seed of LoRA's first weights, of the order and of dropout."""
    pool: PoolConfig = PoolConfig()
    """The one actor that trains."""


class InContextConfig(Section):
    """How a subset is shown to the untuned model: the nearest examples before every question."""

    num_examples: int = Field(default=5, ge=1)
    """Examples shown (paper: 5), nearest by the embeddings of the prompts."""
    max_length: int = Field(default=2048, ge=32)
    """Tokens of the longest prompt; examples are cut from their left, the question never."""


class GenerationConfig(Section):
    """How answers are written (defaults: the paper's)."""

    max_tokens: int = Field(default=150, ge=1)
    """Longest answer."""
    temperature: float = Field(default=0.2, ge=0)
    """0 takes the likeliest token."""
    min_p: float = Field(default=0.1, ge=0, le=1)
    """Tokens less likely than this share of the likeliest are never taken."""
    seed: int = Field(default=0, ge=0)
    """Seed; each row has a stream of its own."""
    max_rows: int | None = Field(default=None, ge=1, examples=[100])
    """Held-out rows of each test set that answers are written for, drawn with the seed; null: all.
    """
    pool: PoolConfig = PoolConfig()
    """Actors that generate and score."""


class ModelConfig(Section):
    """Which language model, and how an engine loads it."""

    model: str = "auto"
    """"auto", a hub id, a folder, or an embedded model."""
    revision: str | None = Field(default=None, examples=["main"])
    """Revision of a hub model."""
    engine: EngineName = "auto"
    """As ``teacher.engine``, but no server."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """As ``teacher.dtype``."""


class JudgeConfig(ModelConfig):
    """A language model that grades answers from 1 to 5; used when ``metrics`` has ``judge``.

    The paper's is prometheus-eval/prometheus-7b-v2.0.
    """

    quantization: str | None = Field(default=None, examples=["bitsandbytes"])
    """As ``teacher.quantization``."""
    max_length: int = Field(default=4096, ge=64)
    """Tokens of the longest question to the judge, its answer included."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest verdict."""
    rubric: str | None = Field(
        default=None, examples=["1: wrong. 3: partly right. 5: right and complete."]
    )
    """Replaces the shipped rubric; says what 1 to 5 mean."""
    pool: PoolConfig = PoolConfig()
    """Actors."""


class EvaluationConfig(ModelConfig):
    """What `nncift evaluate` compares; ``model`` is the one that is taught."""

    tests: dict[str, tuple[str, ...]] = Field(default={}, examples=[{"gsm8k": ["test.jsonl"]}])
    """Held-out rows by a name of your own: ``{gsm8k: [test.jsonl]}``."""
    methods: tuple[str, ...] = ("initial", "random", "nn_cift+delift", "full")
    """Subsets to compare. "initial" (no data), "random", "random_source" (of ``source``), "full", a
    teacher by its own labels or measurements ("delift", "ifd"), NN-CIFT over it ("nn_cift+delift"),
    or a smaller model in its place ("small_lm+delift")."""
    budgets: tuple[float, ...] = (0.1,)
    """Sizes of the subsets, as fractions of the candidates. The first is for every method, further
    ones draw a learning curve for ``curve_methods``."""
    curve_methods: tuple[str, ...] | None = Field(
        default=None, examples=[["random", "nn_cift+delift"]]
    )
    """Methods that the further budgets are for; null: all that have a budget."""
    random_seeds: int = Field(default=3, ge=1)
    """How many random subsets there are of each size."""
    source: str | None = Field(default=None, examples=["gsm8k"])
    """The source that "random_source" draws from, as data.group_by (or the file's name) has it:
    what is left of a method's lead once the right source is known."""
    modes: tuple[Literal["icl", "tuned"], ...] = ("icl", "tuned")
    """"icl" (examples in the prompt of the untuned model), "tuned" (the model fine-tuned)."""
    metrics: tuple[Literal["nll", "rouge", "bge", "exact_match", "judge"], ...] = (
        "nll",
        "rouge",
        "bge",
    )
    """"nll" (held-out nats a response token), "rouge" (ROUGE-1 and ROUGE-L F), "bge" (cosine of
    answer and reference), "exact_match", "judge"."""
    small_model: str | None = Field(default=None, examples=["embedded:smollm2-135m-instruct"])
    """Model of "small_lm" methods."""
    teacher_pairs: int | None = Field(default=None, ge=1, examples=[50_000])
    """Most pairs that a pairwise teacher labels for its own scores; null: every pair. Fewer are
    whole rows of the table, drawn with the seed, and the tables say so."""
    nll_max_rows: int | None = Field(default=None, ge=1, examples=[200])
    """Held-out rows of each test set that "nll" is measured on in the mode "icl", whose prompts are
    long; null: all. The mode "tuned" measures all."""
    tuning: TuningConfig = TuningConfig()
    """Fine-tuning."""
    in_context: InContextConfig = InContextConfig()
    """In-context learning."""
    generation: GenerationConfig = GenerationConfig()
    """Writing answers."""
    judge: JudgeConfig = JudgeConfig()
    """Grading answers."""
    extrapolate_to: int | None = Field(default=None, ge=1, examples=[1_000_000])
    """Candidates of a larger corpus that the cost table is extrapolated to, marked as such; null:
    none."""
    bootstrap_samples: int = Field(default=10_000, ge=100)
    """Resamplings of the confidence intervals."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals and of what is called more than noise."""

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
        if "random_source" in self.methods and self.source is None:
            raise ValueError("methods: random_source needs source, the name of the right one")
        small = [name for name in self.methods if name.startswith(f"{SMALL_LM}+")]
        if small and self.small_model is None:
            raise ValueError(f"methods: {', '.join(small)} needs small_model")
        return self


# The whole recipe: its sections, and the rules that join them.


class ClusterConfig(Section):
    """Where to run."""

    short_key = "mode"

    mode: Literal["auto", "local", "ray"] = "auto"
    """"local": in this process, one shard after another, without Ray; a row that kills the process
    ends the run. "ray": actors, of a Ray of our own or of a cluster. "auto": local for a corpus of
    up to 20 MB (some 20,000 rows), unless there is an address, a second GPU, vLLM, several workers,
    or the last local run was killed. ``cluster: local`` is short for ``cluster: {mode: local}``."""
    address: str | None = Field(default=None, examples=["ray://head:10001"])
    """Ray address; null: RAY_ADDRESS if set, else a Ray of our own on this machine."""
    labels: NodeLabels = Field(default={}, examples=[{"ray.io/market-type": "on-demand"}])
    """Labels of the nodes for every stage whose pool names none, as in a pool; so that what must
    last stays off spot nodes."""
    worker_logs: bool = False
    """Show what workers print."""
    log_format: Literal["text", "json"] = "text"
    """Progress for people (text), or JSON lines on standard error (json) with run, stage and shard
    ids. A run directory on a disk gets these lines in ``logs/`` anyway."""
    price_per_gpu_hour: float = Field(default=2.5, ge=0)
    """US dollars, for `nncift plan` and the report."""
    price_per_cpu_hour: float = Field(default=0.04, ge=0)
    """US dollars."""
    teacher_tokens_per_second: float | None = Field(default=None, gt=0, examples=[20_000])
    """Speed of one teacher actor, for `nncift plan`; null: a guess by hardware."""
    placement_timeout: float = Field(default=1800, gt=0)
    """Seconds for which no node may be able to hold an actor before the stage stops and says what
    is missing; long enough for an autoscaler and for a spot shortage."""
    row_timeout: float = Field(default=3600, gt=0)
    """Seconds in which a worker that asks a language model must finish a row; then it is ended, and
    a row that hangs with nothing beside it goes to the errors table."""

    def price(self, seconds: float, num_cpus: float, num_gpus: float) -> float:
        """Return what a worker's seconds cost, US dollars: its GPUs, or its CPUs without any."""
        cpus, gpus = num_cpus * self.price_per_cpu_hour, num_gpus * self.price_per_gpu_hour
        return seconds / 3600 * (gpus if num_gpus else cpus)


ExportFormat = Literal["alpaca", "messages", "sharegpt", "preference", "dataset", "ids"]


class ExportConfig(Section):
    """The files of the subset. ``subset.jsonl`` and ``subset.parquet`` are always written."""

    formats: tuple[ExportFormat, ...] = get_args(ExportFormat)
    """Other forms: alpaca, messages and sharegpt for training programs, preference (pairs for DPO,
    where there are any), dataset (a folder with a card that Hugging Face datasets loads), ids (one
    a line)."""


class ReportConfig(Section):
    """The HTML report."""

    title: str | None = Field(default=None, examples=["Alpaca, a tenth"])
    """Heading; the run directory's name when null."""
    num_picks: int = Field(default=12, ge=1, le=200)
    """Picks shown with what they cover."""
    tracking: Literal["mlflow", "wandb", "tensorboard"] | None = Field(
        default=None, examples=["mlflow"]
    )
    """Where a run's figures and an evaluation's are logged as well; server and project are those
    of the tracker's own environment variables."""


def name_of(patterns: object) -> str:
    """Return a short name for some files, after the first: "corpus" for "data/corpus.jsonl.gz"."""
    first = patterns if isinstance(patterns, str) else next(iter(cast("Any", patterns)), "")
    parts = [part for part in re.split(r"[/:]", str(first)) if not re.search(r"[*?\[]", part)]
    name = next((part for part in reversed(parts) if part), "run")
    return re.sub(r"[^\w-]", "_", name.split(".")[0]) or "run"


#: Keys that only a network has a use for, each with the value that asks for what a teacher's scores
#: are made of anyway.
NETWORK_KEYS = {
    "labels": {"fraction": 1.0, "holdout_pairs": 0},
    "pair_scores": {"mode": "exact"},
}


class Recipe(Section):
    """A whole recipe: the tree of the YAML file, every key with a default but the data."""

    run_dir: str = Field(default="", examples=["s3://bucket/runs/mine"])
    """Folder or object-store address that holds all of a run; the same recipe resumes there. Left
    out, it is ``runs/`` and the name of the candidates' first file."""
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    selection: SelectionConfig = SelectionConfig()
    embedder: EmbedderConfig = EmbedderConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    labels: LabelsConfig = LabelsConfig()
    network: NetworkConfig = NetworkConfig()
    pair_scores: PairScoresConfig = PairScoresConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    export: ExportConfig = ExportConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="before")
    @classmethod
    def _measurements_are_scores(cls, value: object) -> object:
        """Set ``pair_scores.by`` for a teacher that scores everything by itself."""
        if not isinstance(value, Mapping):
            return value
        tree = cast("Mapping[str, Any]", value)
        teacher, scores = tree.get("teacher"), tree.get("pair_scores", {})
        teacher = {"kind": teacher} if isinstance(teacher, str) else teacher
        if not isinstance(teacher, Mapping) or not isinstance(scores, Mapping):
            return tree
        if cast("Mapping[str, Any]", teacher).get("kind") not in MEASURED_TEACHERS:
            return tree
        own = {"by": "teacher"} | dict(cast("Mapping[str, Any]", scores))
        return dict(tree) | {"pair_scores": own}

    def save(self, path: str | Path) -> None:
        """Write what differs from the defaults as a YAML file that ``nncift run`` takes."""
        import yaml  # recipes from Python need none

        tree = self.model_dump(mode="json", exclude_defaults=True)
        Path(path).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Name the run directory by the data."""
        if not isinstance(value, dict):
            return value  # pyright: ignore[reportUnknownVariableType]
        tree = cast("dict[str, object]", value)
        if tree.get("run_dir"):
            return tree
        data = tree.get("data")
        given = data.candidates if isinstance(data, DataConfig) else ()
        if isinstance(data, dict):
            given = cast("dict[str, Any]", data).get("candidates") or ()
        return {**tree, "run_dir": f"runs/{name_of(given)}"}

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        secret = find_secret(self.model_dump(mode="json"))
        if secret is not None:
            raise ValueError(secret)
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for problem in (*self._teacher_problems(), *self._objective_problems()):
            raise ValueError(problem)
        return self

    def _teacher_problems(self) -> Iterator[str]:
        """Yield what other sections ask of the teacher in vain."""
        kind, objective = self.teacher.kind, self.selection.objective
        by_teacher = self.pair_scores.by == "teacher"
        if kind == COSINE and by_teacher:
            yield "pair_scores.by: cosine has no labels to score by; take the key out"
        if kind in MEASURED_TEACHERS and not by_teacher:
            yield (
                f"pair_scores.by: network learns a teacher's labels, and {kind} scores everything "
                "by itself; take the key out"
            )
        if kind in LOSS_DROPS and not self.data.targets:
            yield f"data.targets: {kind} compares losses before and after it knows them"
        by_field = kind == "deita" and self.selection.weight_by is not None
        reads_profiles = kind in ("ifd", "consistency", "deita") and not by_field
        if reads_profiles and self.profiles.model is None:
            yield f"profiles.model: {kind} is made of the profiles; take the key out"
        if kind in POINTWISE_TEACHERS and objective not in ("top_k", "random"):
            yield (
                f"teacher.kind {kind} scores examples, not pairs, so selection.objective must be "
                f"top_k (given: {objective})"
            )
        if by_teacher and self.data.existing:
            yield (
                "pair_scores.by: teacher takes labels for scores, and data.existing are never "
                "labelled; set by to network, or take data.existing out"
            )

    def _objective_problems(self) -> Iterator[str]:
        """Yield what the objective lacks, and what is given that it does not read."""
        objective, data = self.selection.objective, self.data
        needs_targets = "mutual_information" in objective or objective == "round_robin"
        if needs_targets and not data.targets:
            yield (
                f"selection.objective: {objective} needs data.targets; "
                "give targets, or use facility_location"
            )
        if objective in CONDITIONAL and not data.existing:
            yield (
                f"selection.objective: {objective} needs data.existing, what the model already has"
            )
        if data.existing and self.objective not in CONDITIONAL:
            yield (
                f"data.existing: {objective} reads no existing data; use "
                f"{' or '.join(CONDITIONAL)}, or take the key out"
            )
        if data.targets and objective in WITHOUT_TARGETS:
            yield (
                f"data.targets: {objective} reads no targets; use graph_cut_mutual_information, or "
                "take the key out"
            )
        by_pairs = self.network.kind == "pair" and self.pair_scores.by == "network"
        if objective == "pair_coverage" and not by_pairs:
            yield (
                "selection.objective pair_coverage reads the pair part of a network's scores: it "
                "needs network.kind pair and pair_scores.by network; or take facility_location"
            )

    @property
    def unread(self) -> list[str]:
        """The keys that are changed, and that nobody reads where no network is trained.

        A key that asks for what is done anyway, all labels and none held out, is not among them.
        """
        unread: list[str] = []
        for name, keys in NETWORK_KEYS.items():
            if name == "pair_scores" and self.pair_scores.by == "network":
                continue
            section: Section = getattr(self, name)
            for key, same in keys.items():
                default = type(section).model_fields[key].default
                if getattr(section, key) not in (default, same):
                    unread.append(f"{name}.{key}")
        return [*unread, *(["network"] if self.network != NetworkConfig() else [])]

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """What no candidate may hold words of: ``data.benchmarks`` and all test sets."""
        tests = (pattern for files in self.evaluation.tests.values() for pattern in files)
        return tuple(dict.fromkeys((*self.data.benchmarks, *tests)))

    @property
    def objective(self) -> Objective:
        """What runs: facility_location is its conditional form where there are existing data.

        With targets and no existing data it is its mutual information form.
        """
        if self.selection.objective == "facility_location" and self.data.existing:
            return "facility_location_conditional_gain"
        if self.selection.objective == "facility_location" and self.data.targets:
            return "facility_location_query_mutual_information"
        return self.selection.objective


Config = Recipe
