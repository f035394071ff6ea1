"""The Hugging Face hub: its data sets as sources, and the data set of a run put there.

A source is ``hf:owner/name[/config][:split][@revision]``. A token is the environment's (HF_TOKEN),
which huggingface_hub reads; nothing here does, so none comes into a manifest or a log.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from nncift_ray.errors import DataError

# datasets and huggingface_hub leave types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

PREFIX = "hf:"
BATCH_ROWS = 1_024
_SOURCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[^:@/]+))?(:(?P<split>[\w.]+))?(@(?P<revision>.+))?"
)


def resolve_source(pattern: str) -> tuple[str, int]:
    """Return a source with its split and commit named, and the bytes of the data set's files.

    Raises:
        DataError: If the pattern is none, the hub cannot be reached or has no such data set, or
            there are several configs or splits and none is named.
    """
    name = _parse(pattern)
    with _explained(pattern):
        from datasets import load_dataset
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(name["repo"], revision=name["revision"], files_metadata=True)
        found = load_dataset(name["repo"], name["config"], revision=info.sha, streaming=True)
    splits = [str(split) for split in cast("dict[str, Any]", found)]
    split = name["split"] or (splits[0] if len(splits) == 1 else None)
    if split not in splits:
        has = "has no such split" if split else "has several splits"
        raise DataError(
            f"'{pattern}' {has} ({', '.join(splits)}): name one, e.g. "
            f"'{_join(name | {'split': splits[0]})}'"
        )
    size = sum(each.size or 0 for each in info.siblings or ())
    return _join(name | {"split": split, "revision": info.sha}), size


def commit_of(source: str) -> str:
    """Return the commit of a source that ``resolve_source`` returned."""
    return f"commit:{_parse(source)['revision']}"


def iter_batches(source: str) -> Iterator[pa.RecordBatch]:
    """Stream the rows of a source that ``resolve_source`` returned; nothing is kept on disk."""
    name = _parse(source)
    with _explained(source):
        from datasets import load_dataset

        rows: Any = load_dataset(
            name["repo"],
            name["config"],
            split=name["split"],
            revision=name["revision"],
            streaming=True,
        )
        for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
            yield from cast("pa.Table", table).to_batches()


def push_folder(folder: Path, repo: str, message: str, *, private: bool) -> str:
    """Upload a folder as a data set of the hub, made if there is none; return its address.

    Raises:
        DataError: If the hub cannot be reached, or refuses.
    """
    with _explained(f"{PREFIX}{repo}", writes=True):
        from huggingface_hub import HfApi

        api = HfApi()
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type="dataset", commit_message=message
        )
    return str(url)


def check_repo(repo: str) -> None:
    """Refuse what is no name of a data set.

    Raises:
        DataError: Saying how one looks.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise DataError(f"'{repo}' is no data set of the hub: write owner/name")


def _parse(pattern: str) -> dict[str, Any]:
    match = _SOURCE.fullmatch(pattern)
    if match is None:
        raise DataError(
            f"'{pattern}' is no source of the hub: write hf:owner/name[/config][:split][@revision]"
        )
    return match.groupdict()


def _join(name: dict[str, Any]) -> str:
    marks = {"config": "/", "split": ":", "revision": "@"}
    parts = [f"{mark}{name[key]}" for key, mark in marks.items() if name[key]]
    return f"{PREFIX}{name['repo']}{''.join(parts)}"


@contextmanager
def _explained(source: str, *, writes: bool = False) -> Generator[None]:
    """Say of a failure at the hub what it was and what to do."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors

    try:
        yield
    except (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.LocalTokenNotFoundError):
        may = "may write there" if writes else "may read it"
        raise DataError(
            f"'{source}': the hub has no such data set, or it is private or gated: set HF_TOKEN "
            f"to a token that {may}"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"'{source}': the data set has no such revision") from None
    except FileNotFoundError as error:
        raise DataError(f"'{source}' cannot be read: {error}") from error
    except ValueError as error:
        if "onfig" not in str(error):
            raise DataError(f"'{source}' cannot be read: {error}") from error
        configs = " ".join(str(error).split("Example of usage")[0].split())
        raise DataError(f"'{source}': {configs} Write it as hf:owner/name/CONFIG") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, DatasetsError, OSError) as error:
        raise _unreachable(source, error, writes=writes) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in {"httpx", "httpcore"}:
            raise
        raise _unreachable(source, error, writes=writes) from error


def _unreachable(source: str, error: Exception, *, writes: bool) -> DataError:
    first = str(error).strip().split("\n")[0] or type(error).__name__
    if writes:
        return DataError(
            f"'{source}': the hub did not take it ({first}). Nothing is lost: run the command "
            "again, or copy export/dataset to where there is network"
        )
    name = _parse(source)
    given = "".join(f", {key}={name[key]!r}" for key in ("revision",) if name[key])
    config = f", {name['config']!r}" if name["config"] else ""
    return DataError(
        f"'{source}': the hub cannot be read from here ({first}). Where it can, save the data: "
        f"`python -c \"from datasets import load_dataset; load_dataset('{name['repo']}'{config}, "
        f"split='{name['split'] or 'train'}'{given}).save_to_disk('saved')\"`; then copy the "
        "folder here and give its path in place of the name"
    )
