"""What a benchmark says of where and on what it ran."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def describe_machine() -> str:
    """Return architecture, CPU count and processor; no host name."""
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {_processor()}"


def describe_commit() -> str:
    """Return the short commit, marked where the tree has changes of its own."""
    commit = _git("rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit} + changes" if _git("status", "--porcelain", "-uno") else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
