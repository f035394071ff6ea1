"""A Ray head with a job server on loopback and a token, in a home of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
MARKET = "ray.io/market-type"
START_SECONDS, END_SECONDS = 150, 120
#: Ray's workers take ports from 10002 to 19999.
FIRST_PORT, LAST_PORT = 20_000, 32_000


@dataclass(frozen=True)
class Head:
    """Where it is, and the environment that its users have."""

    address: str
    environment: Mapping[str, str]
    folder: Path
    token: str
    #: Of Ray's own files; short, since the names of its sockets are limited to 107 characters.
    sessions: Path

    def nncift(self, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run the command line as this head's user."""
        return subprocess.run(
            [sys.executable, "-m", "nncift_ray.cli", *arguments],
            env=dict(self.environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line as this head's user; what it prints can be read line by line."""
        return subprocess.Popen(
            [sys.executable, "-m", "nncift_ray.cli", *arguments],
            env=dict(self.environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextlib.contextmanager
def ray_head(folder: Path, token: str) -> Iterator[Head]:
    """Start a head below a folder and end it, and no other Ray, afterwards."""
    secret = folder / ".ray" / "auth_token"
    secret.parent.mkdir(parents=True)
    secret.write_text(token)
    secret.chmod(0o600)
    environment, sessions = _environment(folder), Path(tempfile.mkdtemp(prefix="ray"))
    port, server_port, agent_port, client_port = free_ports(4)
    command = [
        *(str(TOOLS / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", str(port)),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(server_port)),
        # Their usual ports are fixed, and another Ray of this machine may have them.
        *("--dashboard-agent-listen-port", str(agent_port)),
        *("--ray-client-server-port", str(client_port)),
        *("--num-cpus", "4", "--object-store-memory", str(200 * 1024**2)),
        *("--temp-dir", str(sessions), "--labels", f"{MARKET}=on-demand"),
    ]
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    head = Head(f"http://127.0.0.1:{server_port}", environment, folder, token, sessions)
    try:
        _wait_until_up(head, process)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        shutil.rmtree(sessions, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    return inherited | {
        "HOME": str(folder),
        "PATH": f"{TOOLS}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": str(START_SECONDS),
        # Ray's workers would starve beside other work at their usual niceness of 15.
        "RAY_worker_niceness": "0",
        # A job's workers have its own environment: those started ahead would serve nobody.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # At its end there is nobody left whom a drained node would spare.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def free_ports(count: int) -> list[int]:
    """Return free ports outside the range that Ray's workers use."""
    found: list[int] = []
    for port in range(FIRST_PORT + os.getpid() % 1000 * 10, LAST_PORT):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def _wait_until_up(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    host, port = head.address.removeprefix("http://").split(":")
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.5)
    raise RuntimeError((head.folder / "head.log").read_text())
