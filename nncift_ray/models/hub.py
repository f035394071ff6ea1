"""The model hub: what its local cache holds, and fetching what it does not.

Only JSON, text and safetensors are ever fetched: never a pickle, never the copies of the weights in
other formats. What counts as whole in the cache is judged by the same patterns.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nncift_ray.errors import ModelError

HUB_TIMEOUT_SECONDS = 3.0
HUB_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
HUB_SKIPPED = ("onnx/*", "openvino/*", "*/onnx/*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Say whether a revision is a full commit hash, which no later push can move."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_offline() -> bool:
    """Say whether the user forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a hub model that is whole in the local cache, or None; asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=True,
                allow_patterns=list(HUB_FILES),
                ignore_patterns=list(HUB_SKIPPED),
            )
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    whole = (path / "config.json").is_file() and any(path.rglob("*.safetensors"))
    return path if whole else None


def download_snapshot(name: str, revision: str | None = None) -> Path:
    """Fetch a hub model, or what the cache lacks of it; the folder's name is the commit.

    Raises:
        ModelError: If the hub cannot be asked, or has no such model or revision.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=list(HUB_SKIPPED),
        )
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        httpx.HTTPError,  # with a commit for revision, no connection shows up as this
        OSError,
        ValueError,
    ) as error:
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{name}{at} is not on this machine and cannot be fetched from the hub "
            f"({_first_line(error)})"
        ) from error
    return Path(path)


def hub_answers(name: str) -> bool:
    """Ask the hub about a model, with little patience."""
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


def _first_line(error: Exception) -> str:
    lines: list[str] = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
