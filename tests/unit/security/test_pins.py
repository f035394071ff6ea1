"""What the pin files may not bring: packages that fetch code and run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PINS = sorted((ROOT / "requirements").glob("*.txt"))


def names(text: str) -> set[str]:
    return {
        found.lower() for found in re.findall(r"^([A-Za-z0-9][\w.-]*?)\s*(?:\[|==)", text, re.M)
    }


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_no_pin_brings_native_code_from_a_model_hub(path: Path) -> None:
    found = names(path.read_text(encoding="utf-8"))
    assert found, "no pins were read"
    assert "kernels" not in found


def test_a_pin_of_it_would_be_seen() -> None:
    assert "kernels" in names("torch==2.11.0\nkernels==0.12.0\n")
    assert "kernels" not in names("liger-kernels==1.0\n# kernels==0.12.0\n")
