"""Finding models: in a package, a local folder or on the hub.

"auto" never stops a run for want of a network: where the paper's model cannot be had quickly, a
small model from a package takes its place and a notice says so.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nncift_ray.engines.embedded import (
    EMBEDDED,
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    Role,
    find_embedded,
    names_of,
)
from nncift_ray.errors import ModelError

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
