"""Fine-tune on every method's picks, compare, write the page.

    python -m benchmarks.rivals.picks demo 1 --data DATA --work WORK    # once a pool and draw
    python -m benchmarks.rivals tune --data DATA --work WORK --draws demo:1 demo:2 --until 10:15
    python -m benchmarks.rivals page --data DATA --work WORK            # also while tuning goes on

A cell (a subset, a seed of tuning) is a file; what exists is not computed again. Draws of seed 0
are for decisions and on no page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.machine import describe_commit
from benchmarks.rivals.cells import WAVES, Cell, cells_of
from benchmarks.rivals.page import write_page
from benchmarks.rivals.pools import DRAWN_ONCE, examples, make_pool
from benchmarks.rivals.tuning import Row, UpperModel

WAIT_SECONDS = 20


class Tuner:
    """Computes the cells of a draw that are not there yet."""

    def __init__(self, model: UpperModel, name: str, data: Path, work: Path) -> None:
        """Make the pool; its rows are read when the first cell is missing."""
        pool_name, seed = name.split(":")
        self.pool = make_pool(pool_name, int(seed), data)
        stem = f"{pool_name}-{seed}"
        self._model, self._cells, self._picks = model, work / "cells" / stem, work / "picks" / stem
        self._rows: list[Row] = []
        self._test: list[Row] = []

    def missing(self, wave: int) -> list[tuple[Cell, Path]]:
        """Return the cells of a wave without a file."""
        named = ((c, self._cells / f"{c.method}.{c.number}.json") for c in self._wave(wave))
        return [(cell, path) for cell, path in named if not path.exists()]

    def _wave(self, wave: int) -> Iterator[Cell]:
        return cells_of(self.pool, self._picks, wave)

    def compute(self, cell: Cell, path: Path) -> None:
        """Tune, test, write."""
        if not self._rows:
            self._rows = self._model.read(examples(self.pool.candidates))
            self._test = self._model.read(examples(self.pool.test))
        wall, used = time.time(), time.process_time()
        train = [self._rows[row] for row in cell.rows]
        nll = self._model.tune_and_test(train, self._test, seed=cell.number)
        record = {
            "method": cell.method,
            "number": cell.number,
            "rows": cell.rows,
            "nll": [round(each, 5) for each in nll.tolist()],
            "tokens": sum(len(row.ids_T) for row in train),
            "cpu_seconds": round(time.process_time() - used, 2),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record), encoding="utf-8")
        part.rename(path)
        print(
            f"{path.parent.name} {path.stem}: {nll.mean():.3f}, {time.time() - wall:.0f} s",
            flush=True,
        )


def tune(data: Path, work: Path, draws: Sequence[str], until: str) -> None:
    """Compute cells wave by wave, draws in order, until the time of day."""
    torch.set_num_threads(1)
    model = UpperModel()
    tuners = [Tuner(model, name, data, work) for name in draws]
    while time.strftime("%H:%M") < until:
        todo = [
            (tuner, *each)
            for wave in range(len(WAVES))
            for tuner in tuners
            for each in tuner.missing(wave)
        ]
        if todo:
            tuner, cell, path = todo[0]
            tuner.compute(cell, path)
        else:
            time.sleep(WAIT_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals")
    parser.add_argument("do", choices=["tune", "page"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--draws", nargs="*", default=[f"{name}:1" for name in DRAWN_ONCE])
    parser.add_argument("--until", default="24:00", help="time of day at which tuning ends")
    parser.add_argument("--commit", default=describe_commit(), help="on which it ran")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"\d\d:\d\d", options.until):
        parser.error("--until is a time of day such as 10:15")
    if options.do == "tune":
        tune(options.data, options.work, options.draws, options.until)
    else:
        write_page(options.data, options.work, options.commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
