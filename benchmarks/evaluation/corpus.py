"""Cut the study's corpora out of T0 and GSM8K: pool, target and two test sets, no row in two.

python -m benchmarks.evaluation.corpus --data FOLDER --out corpora/study
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

from nncift_ray.corpus.examples import make_example_id

SEED = 0
MAX_CHARACTERS = 480  # of prompt and response: two cores train on some 300 tokens a second
POOL_T0, POOL_GSM8K, TARGET, TEST_GSM8K, TEST_T0 = 700, 300, 100, 100, 100

Record = dict[str, Any]


def main() -> None:
    """Write pool.jsonl, target.jsonl, test_gsm8k.jsonl and test_t0.jsonl."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the three source files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    given = parser.parse_args()
    for name, rows in cut(given.data).items():
        write(given.out / f"{name}.jsonl", rows)
        print(f"{given.out / name}.jsonl: {len(rows)} rows")


def cut(data: Path) -> dict[str, list[Record]]:
    """Draw each corpus; the same every time."""
    t0 = draw(read(data / "t0_train.jsonl.gz"), ("prompt", "completion"), POOL_T0 + TEST_T0)
    train = draw(read(data / "gsm8k_train.jsonl"), ("question", "answer"), POOL_GSM8K + TARGET)
    test = draw(read(data / "gsm8k_test.jsonl"), ("question", "answer"), TEST_GSM8K)
    return {
        "pool": t0[:POOL_T0] + train[:POOL_GSM8K],
        "target": train[POOL_GSM8K:],
        "test_gsm8k": test,
        "test_t0": t0[POOL_T0:],
    }


def draw(rows: list[Record], keys: tuple[str, str], number: int) -> list[Record]:
    """Return so many distinct short rows in a seeded order."""
    distinct = {make_example_id(row[keys[0]], row[keys[1]]): row for row in rows}
    short = [
        row
        for row in distinct.values()
        if row[keys[1]].strip() and len(row[keys[0]]) + len(row[keys[1]]) <= MAX_CHARACTERS
    ]
    return random.Random(SEED).sample(short, number)


def read(path: Path) -> list[Record]:
    """Read a JSONL file, gzipped or not."""
    if not path.is_file():
        raise SystemExit(f"{path} is not there; give the folder of the source files with --data")
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open()
    with opened as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: list[Record]) -> None:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
