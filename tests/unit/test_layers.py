"""The layers of pyproject.toml hold, and every part of the package is in them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]


def test_imports_keep_to_the_layers() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_part_of_the_package_has_a_layer() -> None:
    layers = " ".join(next(c for c in CONTRACTS if c["type"] == "layers")["layers"]).split()
    folder = ROOT / "nncift_ray"
    parts = {p.stem for p in folder.glob("[a-z]*.py")}
    parts |= {p.parent.name for p in folder.glob("*/__init__.py")}
    assert parts
    assert {f"nncift_ray.{part}" for part in parts} <= set(layers)
