"""Reading a recipe must be quick: it loads none of the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY_FOR_A_WORKER = {"torch", "ray", "vllm", "transformers", "sentence_transformers", "matplotlib"}
#: What an actor has to import before its first row, by what its stage is unpickled from.
OF_WORKERS = {
    "embedders": HEAVY_FOR_A_WORKER,
    "engines.models": HEAVY_FOR_A_WORKER,
    "teachers": HEAVY_FOR_A_WORKER,
    "corpus.ingest": HEAVY_FOR_A_WORKER | {"numba"},
    "labels.step": HEAVY_FOR_A_WORKER | {"numba"},
    "corpus.export": HEAVY_FOR_A_WORKER | {"numba"},
    "profiles.step": HEAVY_FOR_A_WORKER,
    "scores.step": HEAVY_FOR_A_WORKER,
    "plan": HEAVY_FOR_A_WORKER | {"numba", "scipy", "faiss", "datasets"},
    "library": HEAVY_FOR_A_WORKER | {"numba", "scipy", "faiss", "datasets"},
}
HEAVY = {"torch", "ray", "vllm", "transformers", "sentence_transformers", "pyarrow", "numba"}


def _loaded_by(module: str) -> set[str]:
    program = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    return {name.partition(".")[0] for name in json.loads(output.stdout)}


@pytest.mark.parametrize("module", ["nncift_ray", "nncift_ray.recipe.loading", "nncift_ray.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not _loaded_by(module) & HEAVY


@pytest.mark.parametrize("module", OF_WORKERS)
def test_a_worker_imports_no_more_than_its_stage_needs(module: str) -> None:
    assert not _loaded_by(f"nncift_ray.{module}") & OF_WORKERS[module]


def test_the_check_sees_what_is_loaded() -> None:
    assert "pyarrow" in _loaded_by("nncift_ray.runtime.schemas")
