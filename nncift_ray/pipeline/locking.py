"""Two runs never work in one local run directory, and anybody can see whether one does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import IO

from nncift_ray.errors import StorageError
from nncift_ray.storage.filesystem import Location

LOCK_NAME = ".lock"
ATTEMPTS, PAUSE_SECONDS = 5, 0.1


@contextlib.contextmanager
def locked(run_dir: Location) -> Generator[None]:
    """Keep two runs out of one local run directory; the lock dies with its process.

    Raises:
        StorageError: If another process holds it.
    """
    if not run_dir.is_local:
        yield
        return
    with open(f"{run_dir.path}/{LOCK_NAME}", "ab") as file:
        if not _take(file):
            raise StorageError(
                f"{run_dir}: another run is working in this run directory. Wait for it, or give "
                "this one another run_dir."
            )
        yield


def _take(file: IO[bytes]) -> bool:
    """Lock a file; somebody who only looks (``is_locked``) is gone at the next attempt."""
    import fcntl  # not on every platform; needed on local disks only

    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS)
        else:
            return True
    return False


def is_locked(run_dir: Location) -> bool | None:
    """Whether a run is working in a directory now; None where that cannot be seen.

    Object stores have no locks, and a lock of another machine shows only on a shared disk that
    passes locks on.
    """
    if not run_dir.is_local:
        return None
    import fcntl

    try:
        file = open(f"{run_dir.path}/{LOCK_NAME}", "rb")
    except FileNotFoundError:
        return False
    except PermissionError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
