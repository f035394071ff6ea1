"""A full disk, and a process that dies while it writes: nothing half is taken for whole."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from nncift_ray.errors import StorageError
from nncift_ray.runtime.driver import execute_here, finished_shards, run_stage, stage_folder
from nncift_ray.runtime.files import TEMPORARY_MARK, Location
from nncift_ray.runtime.output import MANIFEST_NAME, StageManifest, StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.session import users_error
from tests.unit.runtime.die_writing import NUM_ITEMS, SHARD_ITEMS
from tests.unit.runtime.faulty_disk import FULL_DEVICE, on_full_disk
from tests.unit.runtime.test_driver import SquareStage

SQUARES = [number**2 for number in range(NUM_ITEMS)]
PLENTY = 10**9

needs_full_device = pytest.mark.skipif(
    not Path(FULL_DEVICE).exists(), reason=f"no {FULL_DEVICE} on this system"
)


def run(location: Location) -> tuple[StageOutput, int]:
    """Run the stage; returns its output and how many shards were done."""
    stage = SquareStage(NUM_ITEMS, SHARD_ITEMS)
    output = run_stage(stage, location, execute=execute_here, reporter=SilentReporter())
    return output, len(stage.calls)


def folder_below(location: Location) -> Location:
    return stage_folder(SquareStage(NUM_ITEMS, SHARD_ITEMS), location)


def digests(output: StageOutput) -> list[str]:
    return [part.sha256 for _, part in output.table_parts("squares")]


def bytes_used(folder: Path) -> int:
    """Return how much room an undisturbed run needs."""
    location = on_full_disk(folder, PLENTY)
    run(location)
    return PLENTY - location.fs.room  # pyright: ignore[reportAttributeAccessIssue]


@needs_full_device
def test_wherever_the_disk_is_full_the_error_says_so_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    needed = bytes_used(tmp_path / "whole")
    whole = digests(run(Location.of(str(tmp_path / "whole")))[0])
    num_kept: set[int] = set()
    for step in range(24):
        home = tmp_path / str(step)
        full = on_full_disk(home, needed * step // 24)
        with pytest.raises(StorageError, match=f"{home}/.*no space is left.*Make room") as got:
            run(full)
        assert got.value.exit_code == StorageError.exit_code
        assert StageOutput.open(folder_below(full)) is None
        kept = len(finished_shards(folder_below(full)))
        output, num_done = run(Location.of(str(home)))
        assert digests(output) == whole
        assert num_done == NUM_ITEMS // SHARD_ITEMS - kept
        num_kept.add(kept)
    assert num_kept == {0, 1, 2, 3}


@pytest.mark.parametrize("victim", [MANIFEST_NAME, "shards/", "squares/"])
def test_a_process_killed_with_half_a_file_written_leaves_no_such_file(
    tmp_path: Path, victim: str
) -> None:
    command = [sys.executable, "-m", "tests.unit.runtime.die_writing", str(tmp_path), victim]
    died = subprocess.run(command, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    folder = folder_below(Location.of(str(tmp_path)))
    halves = [file for file in folder.list_files(recursive=True) if TEMPORARY_MARK in file.name]
    assert [half for half in halves if victim in half.path and half.size()]
    assert StageOutput.open(folder) is None
    kept = len(finished_shards(folder))
    output, num_done = run(Location.of(str(tmp_path)))
    assert output.read("squares")["square"].to_pylist() == SQUARES
    assert num_done == NUM_ITEMS // SHARD_ITEMS - kept
    assert kept == (NUM_ITEMS // SHARD_ITEMS if victim == MANIFEST_NAME else 0)
    left = output.folder.list_files(recursive=True)
    assert not [file for file in left if TEMPORARY_MARK in file.name]


def test_no_beginning_of_a_manifest_reads_as_a_manifest(tmp_path: Path) -> None:
    data = (run(Location.of(str(tmp_path)))[0].folder / MANIFEST_NAME).read_bytes()
    for length in range(0, len(data.rstrip()), 7):
        with pytest.raises(StorageError, match="not a record"):
            StageManifest.read(data[:length], "here")


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_place_that_cannot_be_written_is_told_with_a_remedy(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"taken.*cannot be written.*Give run_dir a folder"):
        Location.of(f"{tmp_path}/taken{below}").make_folder()


def test_a_full_disk_of_a_training_worker_is_the_users_error() -> None:
    class Failed(Exception):
        worker_failures: ClassVar = {0: OSError(errno.ENOSPC, "No space left on device")}

    assert isinstance(users_error(cast(Any, Failed())), StorageError)
    Failed.worker_failures = {0: OSError(errno.EIO, "broken")}
    assert users_error(cast(Any, Failed())) is None
