"""What a job takes along: the package, the checked recipe, and a working tree, in one zip.

Ray's own packing of a folder would do for the tree, but not for the recipe, which is no longer the
file on disk once overrides are applied; and one archive can be looked through before it leaves.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import nncift_ray
from nncift_ray.errors import JobError

PACKAGE = "nncift_ray"
RECIPE_NAME = "nncift_job/recipe.yaml"
MAX_UPLOAD_BYTES = 100 * 1024**2  # what Ray's job server takes
NUM_LARGEST_SHOWN = 5
#: Folders that are never sent: environments, caches, histories, results, and where secrets live.
NEVER_FOLDERS = frozenset(
    {
        *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "runs"),
        *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".ipynb_checkpoints"),
        *(".aws", ".azure", ".config", ".docker", ".gnupg", ".kube", ".ray", ".ssh"),
    }
)
#: Files that are never sent, by name: keys, tokens, what holds credentials.
NEVER_FILES = (
    *(".env", ".env.*", ".netrc", ".pypirc", ".git-credentials", "auth_token", "credentials"),
    *("*.key", "*.pem", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "*.pyc"),
)
#: A time that a zip can hold, so that equal files make equal archives and are uploaded once.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """An archive ready to be sent."""

    path: Path
    names: tuple[str, ...]
    num_bytes: int


def pack(
    archive: Path,
    *,
    recipe: str | None,
    tree: Path | None = None,
    wheel: Path | None = None,
    with_package: bool = True,
    excludes: Sequence[str] = (),
    secrets: Iterable[str] = (),
    max_bytes: int = MAX_UPLOAD_BYTES,
) -> Package:
    """Write a job's archive.

    Args:
        archive: Where to write it; ends in ``.zip``.
        recipe: The recipe's text, which becomes ``nncift_job/recipe.yaml``.
        tree: A folder whose files go along, as git lists them where it is a checkout.
        wheel: Of this package, to send in place of the one that runs here.
        with_package: Whether to send the package; not where the cluster's image holds it.
        excludes: Globs of names or paths in the tree that stay behind.
        secrets: Texts that no file may hold.
        max_bytes: Largest archive.

    Raises:
        JobError: If it would be too large, holds a secret, or a source is not what it should be.
    """
    contents: dict[str, bytes] = {}
    if tree is not None:
        contents |= _read_files(tree, list_tree(tree, excludes))
    if with_package and wheel is not None:
        contents = _without_package(contents) | _read_wheel(wheel)
    elif with_package and f"{PACKAGE}/__init__.py" not in contents:
        source = Path(nncift_ray.__file__).parent
        contents |= _read_files(source.parent, _walk(source.parent, source))
    if recipe is not None:
        contents[RECIPE_NAME] = recipe.encode()
    _refuse_secrets(contents, secrets)
    _write_zip(archive, contents)
    num_bytes = archive.stat().st_size
    if num_bytes > max_bytes:
        archive.unlink()
        raise JobError(_too_large(contents, num_bytes, max_bytes))
    return Package(archive, tuple(sorted(contents)), num_bytes)


def list_tree(tree: Path, excludes: Sequence[str] = ()) -> list[str]:
    """Return the files of a folder that go along, as paths in it.

    In a git checkout these are the files that git tracks or would take; elsewhere all files. What
    is in ``NEVER_FOLDERS`` and ``NEVER_FILES`` stays behind, and so do links that lead out.

    Raises:
        JobError: If it is no folder.
    """
    if not tree.is_dir():
        raise JobError(f"{tree}: no such folder; --working-dir is a folder whose files are sent")
    names = _list_with_git(tree)
    if names is None:
        names = _walk(tree, tree)
    inside = tree.resolve()
    return [
        name
        for name in names
        if not _stays_behind(name, excludes)
        and (tree / name).is_file()
        and (tree / name).resolve().is_relative_to(inside)
    ]


def _list_with_git(tree: Path) -> list[str] | None:
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(  # noqa: S603  (git, on a folder the user named)
            [*command, "--exclude-standard"], capture_output=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no checkout
    names = os.fsdecode(done.stdout).split("\0")
    return sorted({name for name in names if name})


def _walk(root: Path, below: Path) -> list[str]:
    names: list[str] = []
    for folder, folders, files in os.walk(below):
        folders[:] = sorted(name for name in folders if name not in NEVER_FOLDERS)
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in sorted(files)]
    return [name for name in names if not _stays_behind(name, ())]


def _stays_behind(name: str, excludes: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    if NEVER_FOLDERS & set(path.parts[:-1]):
        return True
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in NEVER_FILES):
        return True
    whole = [path, *path.parents][:-1]
    return any(
        fnmatch.fnmatch(part.name, pattern) or fnmatch.fnmatch(str(part), pattern.rstrip("/"))
        for part in whole
        for pattern in excludes
    )


def _read_files(root: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in names}


def _without_package(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in contents.items() if not name.startswith(f"{PACKAGE}/")}


def _read_wheel(wheel: Path) -> dict[str, bytes]:
    """Read the package out of a wheel; its dependencies are the cluster image's affair."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            names = [name for name in opened.namelist() if name.startswith(f"{PACKAGE}/")]
            found = {name: opened.read(name) for name in names if ".." not in name.split("/")}
    except (OSError, zipfile.BadZipFile) as error:
        raise JobError(f"{wheel}: not a wheel ({error}); make one with `pip wheel .`") from error
    if f"{PACKAGE}/__init__.py" not in found:
        raise JobError(f"{wheel}: holds no {PACKAGE}; --wheel is a wheel of this package")
    return found


def _refuse_secrets(contents: Mapping[str, bytes], secrets: Iterable[str]) -> None:
    needles = [secret.encode() for secret in secrets if secret]
    for name, data in contents.items():
        if any(needle in data for needle in needles):
            raise JobError(
                f"{name}: holds the cluster's token or a secret of the environment, and whoever "
                "may see the job would see it. Take it out of the file, or leave the file behind "
                "with --exclude."
            )


def _write_zip(archive: Path, contents: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, ZIP_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            opened.writestr(entry, contents[name])


def _too_large(contents: Mapping[str, bytes], num_bytes: int, max_bytes: int) -> str:
    return (
        f"the job's files come to {_mebibytes(num_bytes)} packed, and a job may send "
        f"{_mebibytes(max_bytes)}. The largest: {', '.join(_largest(contents))}. Leave files "
        "behind with --exclude or .gitignore; corpora belong on a disk that all nodes share, or "
        "s3:// or gs://."
    )


def _largest(contents: Mapping[str, bytes]) -> Iterator[str]:
    largest = sorted(contents, key=lambda name: -len(contents[name]))[:NUM_LARGEST_SHOWN]
    for name in largest:
        yield f"{name} ({_mebibytes(len(contents[name]))})"


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 1024**2:,.1f} MiB"
