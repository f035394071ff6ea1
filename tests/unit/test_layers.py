"""The layers of pyproject.toml hold, and every part of the package is in them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
STAGE_NAME = re.compile(r"^    name: ClassVar\[str\] = ", re.MULTILINE)  # abstract stages have none


def test_imports_keep_to_the_layers() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["nncift_ray", "nncift_ray.stages"])
def test_every_part_of_a_package_has_a_layer(package: str) -> None:
    contracts = [" ".join(c["layers"]).split() for c in CONTRACTS if c["type"] == "layers"]
    folder = ROOT / package.replace(".", "/")
    parts = {p.stem for p in folder.glob("[a-z]*.py")}
    parts |= {p.parent.name for p in folder.glob("*/__init__.py")}
    assert parts
    assert any({f"{package}.{part}" for part in parts} <= set(layers) for layers in contracts)


def test_every_stage_is_held_apart_from_the_others() -> None:
    files = (ROOT / "nncift_ray" / "stages").glob("*/*.py")
    stages = {
        f"nncift_ray.stages.{path.parent.name}.{path.stem}"
        for path in files
        if STAGE_NAME.search(path.read_text(encoding="utf-8"))
    }
    apart = next(c for c in CONTRACTS if c["type"] == "independence")["modules"]
    assert len(stages) > 20
    assert stages <= set(apart)
