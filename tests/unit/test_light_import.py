"""Reading a recipe must be quick: it loads none of the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "ray", "vllm", "transformers", "sentence_transformers", "pyarrow", "numba"}


def _loaded_by(module: str) -> set[str]:
    program = f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    return {name.partition(".")[0] for name in json.loads(output.stdout)}


@pytest.mark.parametrize("module", ["nncift_ray", "nncift_ray.config", "nncift_ray.errors"])
def test_import_loads_nothing_heavy(module: str) -> None:
    assert not _loaded_by(module) & HEAVY


def test_the_check_sees_what_is_loaded() -> None:
    assert "pyarrow" in _loaded_by("nncift_ray.storage.schemas")
