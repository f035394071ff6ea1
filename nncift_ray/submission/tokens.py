"""Ray's token: where it is found, in Ray's own order, and who would see it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from nncift_ray.errors import JobError

REMEDY = (
    "Take the token of the cluster (on its head node: `ray get-auth-token`; on Kubernetes: the "
    "Secret with the RayCluster's name) and put it into ~/.ray/auth_token, readable by you alone, "
    "or name its file in RAY_AUTH_TOKEN_PATH"
)


def find_token(environment: Mapping[str, str], home: Path) -> str | None:
    """Return the token that Ray would use, or None where there is none or it is switched off.

    Looked for in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, in ~/.ray/auth_token.

    Raises:
        JobError: If RAY_AUTH_TOKEN_PATH names no readable file, or RAY_AUTH_MODE asks for a token
            and there is none.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    token = environment.get("RAY_AUTH_TOKEN", "").strip() or _from_files(environment, home)
    if not token and mode == "token":
        raise JobError(f"RAY_AUTH_MODE asks for a token, and there is none. {REMEDY}.")
    return token or None


def _from_files(environment: Mapping[str, str], home: Path) -> str:
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else home / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return ""
        raise JobError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read ({error}). {REMEDY}.") from None
    if named and not token:
        raise JobError(f"RAY_AUTH_TOKEN_PATH: {path} is empty. {REMEDY}.")
    return token


def goes_unencrypted(address: str) -> bool:
    """Whether a token sent to an address could be read on the way."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
