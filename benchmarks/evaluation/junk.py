"""Write a corpus with planted faults, targets and a test set of the same tasks, no item in two.

    python -m benchmarks.evaluation.junk --out corpora/junk

The corpus is the demo's: a third of it is wrong, empty or said before. Targets and test set are
clean. ``planted.jsonl`` says what each row is, for ``benchmarks.evaluation.page --planted``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from nncift_ray.demo.corpus import write_demo_corpus

SEED = 0
NUM_CANDIDATES, NUM_TARGETS, NUM_TESTS = 1000, 100, 100


def main() -> None:
    """Write candidates.jsonl, target.jsonl, test.jsonl and planted.jsonl."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    for path, number in write(parser.parse_args().out).items():
        print(f"{path}: {number} rows")


def write(out: Path) -> dict[Path, int]:
    """Write the files; return how many rows each has."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = write_demo_corpus(Path(folder), SEED, NUM_CANDIDATES, NUM_TARGETS + NUM_TESTS)
        held_out = made.targets.read_text(encoding="utf-8").splitlines(keepends=True)
        for path in (made.candidates, made.planted):
            shutil.copy(path, out / path.name)
    # They were shuffled, so each half has all the families.
    halves = {"target": held_out[:NUM_TARGETS], "test": held_out[NUM_TARGETS:]}
    for name, lines in halves.items():
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {path: len(path.read_text().splitlines()) for path in sorted(out.glob("*.jsonl"))}


if __name__ == "__main__":
    main()
