"""Freeze the results of the golden recipes anew.

    python -m tests.golden.freeze                # all of them
    python -m tests.golden.freeze delift_se      # one

Never run this to make a failing test green. A golden file changes only together with the reason why
the old ranking was wrong, or no longer wanted, in the same commit's message.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.golden.harness import golden_path, run_recipe
from tests.golden.recipes import RECIPES


def main(names: list[str]) -> None:
    """Run recipes and overwrite their files."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or list(RECIPES):
            begin = time.perf_counter()
            run_recipe(name, Path(folder) / name).write(golden_path(name))
            print(f"frozen: {name} ({time.perf_counter() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
