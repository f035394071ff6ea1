"""Run a recipe and read what a user would: all that these tests know of the package is here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml

from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.teachers import Measurement, MeasurementFailure
from tests.golden.corpus import FILES, write_corpus
from tests.golden.recipes import (
    CANDIDATES,
    NUM_ROWS,
    NUM_ROWS_OF,
    TARGETS,
    TINY_MODEL,
    recipe_tree,
)
from tests.tiny_models import make_tiny_llama

__all__ = ["Golden", "Measurement", "MeasurementFailure", "golden_path", "run_recipe"]

HERE = Path(__file__).parent
ADDED_KEY = "_nncift"  # of a record in subset.jsonl: rank, gain, id and source
FILES_OUT = (
    "subset.jsonl",
    "subset.parquet",
    "alpaca.json",
    "messages.jsonl",
    "sharegpt.json",
    "dataset_info.json",
    "axolotl.yaml",
    "dataset/data/train.parquet",
    "ids.txt",
)  # beside them only a card, which tells times
GAIN = re.compile(rb'"gain": [^,}]+')


@dataclass(frozen=True)
class Golden:
    """What is frozen of a run.

    Attributes:
        machine: What rounding depends on.
        picks: Gain of every pick by its id, in the order of ranks.
        files: SHA-256 of each exported file, by its path below the export folder; gains, and the
            folder that the corpus lies in, are left out of what is hashed.
    """

    machine: dict[str, str]
    picks: dict[str, float]
    files: dict[str, str]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Golden:
        return cls(**json.loads(path.read_text()))


def golden_path(name: str) -> Path:
    """Return where a recipe's results are frozen."""
    return HERE / f"{name}.json"


def run_recipe(name: str, folder: Path) -> Golden:
    """Run a recipe in an empty folder, in this process."""
    folder = folder.resolve()
    corpus, run_dir, recipe = folder / "corpus", folder / "run", folder / "recipe.yaml"
    write_corpus(corpus, NUM_ROWS_OF.get(name, NUM_ROWS))
    paths: dict[str, str | list[str]] = {
        CANDIDATES: [str(corpus / file) for file in FILES],
        TARGETS: [str(corpus / "targets.jsonl")],
        TINY_MODEL: str(make_tiny_llama(folder / "model")),
    }
    recipe.write_text(yaml.safe_dump(recipe_tree(name, paths, str(run_dir))))
    run(load_config(recipe, ["cluster=local"]))
    return read_run(run_dir, corpus)


def read_run(run_dir: Path, corpus: Path) -> Golden:
    """Read a finished run from the files that a user is told of."""
    export = run_dir / "export"
    lines = (export / "subset.jsonl").read_text().splitlines()
    added = sorted((json.loads(line)[ADDED_KEY] for line in lines), key=lambda each: each["rank"])
    return Golden(
        machine(),
        {each["example_id"]: each["gain"] for each in added},
        {name: _digest(export / name, corpus) for name in FILES_OUT},
    )


def machine() -> dict[str, str]:
    """Say what rounding depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": (models or [platform.machine()])[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _digest(path: Path, corpus: Path) -> str:
    content = _table_content(path) if path.suffix == ".parquet" else path.read_bytes()
    content = GAIN.sub(b'"gain": 0', content.replace(str(corpus).encode(), b"corpus"))
    return hashlib.sha256(content).hexdigest()


def _table_content(path: Path) -> bytes:
    """Return a table's columns and rows: its bytes also say which pyarrow wrote them."""
    table = pq.read_table(path)
    rows: list[Any] = table.to_pylist()
    return "\n".join([str(table.schema.names), *map(json.dumps, rows)]).encode()
