"""The files that a row passes through on the default way are those that the documentation lists."""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nncift_ray
from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import make_config
from nncift_ray.runtime.driver import execute_here
from nncift_ray.runtime.progress import SilentReporter

# What is defined while a file is imported is no row's way: the steps' files are imported before.
STEPS = ("network.step", "scores.index_step", "selection.step", "report.page")
PACKAGE = Path(nncift_ray.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
#: What drives any step, finds models and shows results: no row of theirs is computed there.
BESIDE_THE_WAY = {"engines", "recipe", "report", "runtime", "errors.py", "jit.py"}


def listed_files() -> set[str]:
    text = PAGE.read_text(encoding="utf-8")
    way = text[text.index("<!-- way of a row -->") : text.index("<!-- end -->")]
    return set(re.findall(r"`([\w/]+\.py)`", way))


def test_a_row_passes_through_the_files_that_the_page_lists(tmp_path: Path) -> None:
    rows = [{"prompt": f"Add {i} and {i % 7}.", "completion": str(i + i % 7)} for i in range(40)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = make_config(
        {
            "run_dir": str(tmp_path / "run"),
            "data": {"candidates": [str(tmp_path / "corpus.jsonl")]},
            "embedder": {"model": "embedded:all-minilm-l6-v2"},
            "selection": {"budget": 0.1},
        }
    )
    for name in STEPS:
        importlib.import_module(f"nncift_ray.{name}")
    called: set[CodeType] = set()

    def note_code(frame: FrameType, event: str, _: Any) -> None:
        called.add(frame.f_code)

    # Not a profiler, which is told of returns and of every call of C, too.
    threading.settrace(note_code)
    sys.settrace(note_code)
    try:
        run(config, execute=execute_here, reporter=SilentReporter())
    finally:
        sys.settrace(None)
        threading.settrace(None)  # pyright: ignore[reportArgumentType]
    paths = {Path(code.co_filename) for code in called if code.co_name != "<module>"}
    passed = {path.relative_to(PACKAGE).as_posix() for path in paths if PACKAGE in path.parents}
    way = {name for name in passed if name.split("/")[0] not in BESIDE_THE_WAY}
    assert way == listed_files()
