"""Other libraries, in a venv of their own that is made on demand and never touches ours."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncift_ray.engines.models import cache_dir
from nncift_ray.selection.problem import SparseScores

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers.txt"
RUNNER = HERE / "peer.py"
INSTALL_SECONDS, RUN_SECONDS = 900, 1800


class PeerMissingError(Exception):
    """A library could not be installed or could not run; says why."""


@dataclass(frozen=True)
class PeerRun:
    """What a library picked, and its seconds of the processor and of the clock."""

    picks: np.ndarray
    cpu_seconds: float
    wall_seconds: float


def run_peer(name: str, matrix: SparseScores | np.ndarray, budget: int) -> PeerRun:
    """Run a library on lists or on a matrix, in a process of its own.

    Raises:
        PeerMissingError: If it cannot be installed or fails.
    """
    python = _python()
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "matrix.npz", Path(folder) / "result.npz"
        if isinstance(matrix, SparseScores):
            shape = np.array([matrix.num_rows, matrix.num_columns])
            np.savez(
                given, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, shape=shape
            )
        else:
            np.savez(given, dense=matrix)
        _run([python, str(RUNNER), name, str(given), str(budget), str(result)], RUN_SECONDS)
        with np.load(result) as found:
            return PeerRun(found["picks"], float(found["cpu"]), float(found["wall"]))


def _python() -> str:
    """Return the interpreter of the peers' venv, made once for each state of the requirements."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / "benchmarks" / f"selection-peers-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)]
        _run(install, INSTALL_SECONDS)
        (folder / "complete").touch()
    return str(python)


def _run(command: list[str], seconds: int) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own files and the interpreter made for them
            command, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise PeerMissingError(f"more than {seconds} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerMissingError(f"{last} (Python {sys.version_info.major}.{sys.version_info.minor})")
