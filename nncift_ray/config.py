"""The recipe: one frozen tree from YAML, overridden by the command line, checked before Ray starts.

Only the keys of the shortest recipe have no default::

    run_dir: runs/mine
    data: {candidates: [corpus.jsonl], targets: [benchmark.jsonl]}   # targets optional
    teacher: {kind: delift_se}
    selection: {objective: facility_location, budget: 0.1}           # fraction, count, {tokens: 5M}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nncift_ray.errors import ConfigError

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_COUNT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMBG]?)\s*$", re.IGNORECASE)
BUILT_IN_TEACHERS = ("delift_se", "delift", "less", "selectit")
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_SIGNED = re.compile(
    r"[?&](x-amz-signature|x-amz-credential|awsaccesskeyid|sig|signature|token)=", re.I
)
_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


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


class DataConfig(Section):
    """What to choose from, and what to become good at.

    Attributes:
        candidates: Files, globs or folders to choose from.
        targets: What the model should be good at; the candidates themselves when empty.
        layout: Layout of all files, or "auto" to find it per file.
        columns: Explicit mapping for other layouts, e.g. {prompt: q, response: a}.
        max_chars: A longer prompt or response makes a row an error.
        max_failed_fraction: Stop when a larger share of the records is unusable.
        group_by: Field of the original record that names a source or task in the report; the file
            name when null.
        subtask_by: Field of a target's original record that names its subtask; the objective top_k
            takes the best of the subtasks (LESS). All targets are one subtask when null.
    """

    candidates: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = ()
    layout: Literal[
        "auto", "alpaca", "prompt_completion", "question_answer", "sharegpt", "messages"
    ] = "auto"
    columns: dict[str, str] | None = None
    max_chars: int = Field(default=200_000, ge=1)
    max_failed_fraction: float = Field(default=0.5, ge=0, le=1)
    group_by: str | None = None
    subtask_by: str | None = None

    @field_validator("candidates", "targets")
    @classmethod
    def _unsigned(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(_SIGNED.search(path) for path in value):
            raise ValueError(
                "a signed address holds a secret that would be written to every row's source; "
                "give a plain address, and credentials by the environment"
            )
        return value

    @field_validator("candidates", "targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.columns is not None and self.layout != "auto":
            raise ValueError("give either layout or columns, not both: columns is itself a layout")
        if self.subtask_by is not None and not self.targets:
            raise ValueError("subtask_by names a field of targets, and there are none")
        if self.columns is not None and not {"prompt", "response"} <= set(self.columns):
            raise ValueError("columns needs the keys 'prompt' and 'response'")
        return self


class PoolConfig(Section):
    """How many actors a stage has and what each holds. Never changes a result.

    Attributes:
        num_actors: A number, [min, max] to autoscale between, or null to use what the cluster has.
        num_cpus: CPUs of an actor; null: all of a local machine, or 4 on a cluster.
        num_gpus: GPUs of an actor; null: 1 where the cluster has any and the stage can use it.
        resources: Custom Ray resources of an actor, e.g. {spot_gpu: 1}.
        shard_rows: Rows (pairs when labelling) a shard: what a lost worker costs at most.
    """

    num_actors: int | tuple[int, int] | None = None
    num_cpus: float | None = Field(default=None, gt=0)
    num_gpus: float | None = Field(default=None, ge=0)
    resources: dict[str, float] = {}
    shard_rows: int | None = Field(default=None, ge=1)

    @field_validator("num_actors")
    @classmethod
    def _positive(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        low, high = value if isinstance(value, tuple) else (value or 1, value or 1)
        if low < 1 or high < low:
            raise ValueError("num_actors is a number from 1, or [min, max] with 1 <= min <= max")
        return value


class EmbedderConfig(Section):
    """The sentence embedder whose vectors the network reads.

    Attributes:
        model: "auto" (BAAI/bge-large-en-v1.5, or the packaged model when the hub cannot be
            reached), a hub id, a local folder, or "embedded:all-minilm-l6-v2".
        revision: Revision of a hub model.
        dtype: How vectors are stored.
        pool: Actors.
    """

    model: str = "auto"
    revision: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    pool: PoolConfig = PoolConfig()


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

    Attributes:
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


class NetworkConfig(Section):
    """The InfluenceNetwork and its training (defaults: NN-CIFT, arXiv 2502.09969).

    Attributes:
        num_hidden: Hidden units.
        num_epochs: Most epochs, where they make ``min_steps`` optimiser steps or more.
        min_steps: A small sample gets more epochs (and patience) until they would make this many
            steps; 0 keeps to the paper's epochs.
        batch_size: Pairs a step, over all workers together.
        learning_rate: Adam's.
        patience: Epochs without a better held-out loss before training stops.
        seed: Seed of initial weights and batch order.
        num_workers: Ray Train workers (CPU); another number changes the last bits of the weights.
    """

    num_hidden: int = Field(default=100, ge=1)
    num_epochs: int = Field(default=20, ge=1)
    min_steps: int = Field(default=20_000, ge=0)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    patience: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=1, ge=1)


class PairScoresConfig(Section):
    """The all-pairs stage.

    Attributes:
        mode: "exact" scores every pair.
        top_k: Helpers kept of every row.
        column_tile: Columns scored at a time: the bound of a worker's memory. Never changes a
            result.
        pool: Actors.
    """

    mode: Literal["exact"] = "exact"
    top_k: int = Field(default=64, ge=1)
    column_tile: int = Field(default=65_536, ge=16)
    pool: PoolConfig = PoolConfig()


class TokenBudget(Section):
    """A budget in tokens, as the embedder's tokenizer counts them."""

    tokens: int

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> int:
        return parse_count(value)


Fraction = Annotated[float, Field(gt=0, lt=1)]
Objective = Literal[
    "facility_location",
    "facility_location_mutual_information",
    "facility_location_query_mutual_information",
    "top_k",
]


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


class EvaluationConfig(Section):
    """Evaluations to run on the subset; none in this version."""

    methods: tuple[()] = ()


class ClusterConfig(Section):
    """Where to run.

    Attributes:
        address: Ray address; null: RAY_ADDRESS if set, else a Ray of our own on this machine.
        worker_logs: Show what workers print.
        price_per_gpu_hour: US dollars, for `nncift plan` and the report.
        price_per_cpu_hour: US dollars.
        teacher_tokens_per_second: Speed of one teacher actor, for `nncift plan`; null: a guess by
            hardware.
    """

    address: str | None = None
    worker_logs: bool = False
    price_per_gpu_hour: float = Field(default=2.5, ge=0)
    price_per_cpu_hour: float = Field(default=0.04, ge=0)
    teacher_tokens_per_second: float | None = Field(default=None, gt=0)


class ReportConfig(Section):
    """The HTML report.

    Attributes:
        title: Heading; the run directory's name when null.
        num_picks: Picks shown with what they cover.
    """

    title: str | None = None
    num_picks: int = Field(default=12, ge=1, le=200)


class Config(Section):
    """A whole recipe."""

    run_dir: str = Field(min_length=1)
    data: DataConfig
    teacher: TeacherConfig
    selection: SelectionConfig
    embedder: EmbedderConfig = EmbedderConfig()
    labels: LabelsConfig = LabelsConfig()
    network: NetworkConfig = NetworkConfig()
    pair_scores: PairScoresConfig = PairScoresConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _targets_where_needed(self) -> Self:
        if "mutual_information" in self.selection.objective and not self.data.targets:
            raise ValueError(
                f"selection.objective: {self.selection.objective} needs data.targets; "
                "give targets, or use facility_location"
            )
        return self

    @model_validator(mode="after")
    def _selectit_ranks(self) -> Self:
        if self.teacher.kind == "selectit" and self.selection.objective != "top_k":
            raise ValueError(
                "teacher.kind selectit scores examples, not pairs, so selection.objective must be "
                f"top_k (given: {self.selection.objective})"
            )
        return self

    @property
    def objective(self) -> Objective:
        """What runs: facility_location with targets is its mutual information form."""
        if self.selection.objective == "facility_location" and self.data.targets:
            return "facility_location_query_mutual_information"
        return self.selection.objective


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and apply ``key.path=value`` overrides (values are YAML).

    Raises:
        ConfigError: Naming the key and the remedy; nothing has been started then.
    """
    tree = _read_yaml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    return make_config(tree, str(path))


def make_config(tree: Mapping[str, Any], origin: str = "config") -> Config:
    """Check a tree of plain values.

    Raises:
        ConfigError: With one line for every key that is wrong.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(cast("Mapping[str, Any]", item)) for item in error.errors()]
        raise ConfigError(f"{origin}:\n  " + "\n  ".join(dict.fromkeys(lines))) from None


def dump_config(config: Config) -> str:
    """Write the whole recipe, defaults included, as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping of unique keys."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = cast(object, self.construct_object(key_node, deep=True))  # pyright: ignore
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is given twice, {key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the recipe cannot be read ({error})") from error
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys {', '.join(_keys(Config))}")
    return cast("dict[str, Any]", tree)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write key.path=value, e.g. selection.budget=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section")
        node = cast("dict[str, Any]", child)
    node[last] = value


def _keys(section: type[BaseModel]) -> list[str]:
    return list(section.model_fields)


def _section_at(path: Sequence[object]) -> type[BaseModel] | None:
    """Return the section class that a key path leads to."""
    section: type[BaseModel] = Config
    for key in path:
        field = section.model_fields.get(str(key))
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return None
        section = kind
    return section


def _explain(item: Mapping[str, Any]) -> str:
    """Turn one pydantic error into a line with key path, what is wrong and the remedy."""
    path = [str(part) for part in cast("Sequence[object]", item["loc"])]
    # Members of a union show up as extra path entries that are no keys of the recipe.
    shown = ".".join(part for part in path if re.fullmatch(r"\w+", part))
    section = _section_at(path[:-1])
    if item["type"] == "extra_forbidden" and section is not None:
        known = _keys(section)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{shown}: unknown key; {hint}Keys here: {', '.join(known)}"
    if item["type"] == "missing":
        return f"{shown}: is required"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = item.get("input")
    suffix = f" (given: {given!r})" if isinstance(given, str | int | float) and shown else ""
    return f"{shown}: {message}{suffix}" if shown else message
