"""The command line: ``nncift run | plan | stage | status | query | extend | ...``.

Exit codes: 0 done, 1 unexpected, 2 recipe or usage, 3 data, 4 model, 5 stage, 6 storage, 7 job
server, 130 interrupted, 143 stopped (SIGTERM).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import nncift_ray
from nncift_ray.cli import (
    evaluating,
    explaining,
    growing,
    looking,
    planning,
    querying,
    running,
    submitting,
    sweeping,
)
from nncift_ray.cli.shared import app

__all__ = [
    "app",
    "evaluating",
    "explaining",
    "growing",
    "looking",
    "main",
    "planning",
    "querying",
    "running",
    "submitting",
    "sweeping",
]


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Choose the instruction data that teaches a language model most (NN-CIFT on Ray)."""
    if version:
        typer.echo(nncift_ray.__version__)
        raise typer.Exit


def main(run_app: Callable[[], Any] = app) -> None:
    """Run the command line."""
    # Hugging Face's own bars and Ray's usage question have no place in a run's output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(run_app())
