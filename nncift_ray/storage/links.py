"""Links in corpora: who made a folder does not decide which other files of a machine are read."""

from __future__ import annotations

import os
import posixpath
import re

from nncift_ray.errors import DataError

#: Folders of Hugging Face's cache: datasets--owner--name/snapshots/REVISION, with links to blobs.
HUB_SNAPSHOTS, HUB_BLOBS = "snapshots", "blobs"
_HUB_REPO = re.compile(r"/(datasets|models|spaces)--[^/]+$")


def check_link(folder: str, path: str) -> None:
    """Refuse what was found in a local folder, by listing it or by a glob, and lies elsewhere.

    Hugging Face's cache keeps the files of a snapshot in ``blobs`` beside it: that is no elsewhere.

    Raises:
        DataError: Naming the link and where it leads.
    """
    base, target = os.path.realpath(folder), os.path.realpath(path)
    homes = [base, *_blobs_of_snapshot(base)]
    if not any(os.path.commonpath([home, target]) == home for home in homes):
        raise DataError(
            f"'{path}' is a link that leads out of its folder, to '{target}'. Name that file or "
            "folder itself in the recipe if it is meant."
        )


def _blobs_of_snapshot(folder: str) -> list[str]:
    """Return where the files of a snapshot in Hugging Face's cache lie."""
    head, snapshots, _ = folder.rpartition(f"/{HUB_SNAPSHOTS}/")
    return [posixpath.join(head, HUB_BLOBS)] if snapshots and _HUB_REPO.search(head) else []
