"""The planted pools drawn anew many times: what one draw with its two tunings cannot show.

    python -m benchmarks.rivals.draws tune long_tail --work WORK  # what has no file yet
    python -m benchmarks.rivals.draws page --work WORK

A method gives one subset of a pool, and subsets differ by chance, so what counts is the number of
pools. Each is picked from and tuned on once; all tests are over the pools' means, paired. Writes
``rivals_draws_cpu.md`` and ``.json``. The rules are in docs/is-my-subset-better.md.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.rivals import picks
from benchmarks.rivals.cells import DEFAULT, RANDOM, SOUND_RANDOM, draw
from benchmarks.rivals.page import LEVEL, Difference, difference_text
from benchmarks.rivals.pools import DEMO, PLANTED, Pool, PoolRow, examples, make_pool, planted_tests
from benchmarks.rivals.tuning import UpperModel
from nncift_ray.evaluation.compare import holm

SEEDS = range(2, 18)
RECIPES = (DEFAULT, "nn_cift+delift_se")
METHODS = (*RECIPES, "cosine", "rds_plus", "quality, then random")
#: Looked at afterwards, so never tested: a piece swapped, and what only an oracle can draw.
PIECE, BALANCED = "quality, then cosine", "sound rows, families in turn"
LATER = (PIECE, SOUND_RANDOM, BALANCED)
NUM_RANDOM, TESTS_A_FAMILY = 4, 10
PAGE = Path("benchmarks/rivals_draws_cpu.md")


def tune(shape: str, seeds: Iterable[int], work: Path) -> None:
    """Pick from each pool and tune on what was picked, one pool after the other."""
    torch.set_num_threads(1)
    model = UpperModel()
    for seed in seeds:
        pool = make_pool(shape, seed, work)
        chosen = work / "picks" / f"{shape}-{seed}"
        if not all((chosen / f"{name}.json").exists() for name in METHODS):
            arguments = [shape, str(seed), "--data", str(work), "--work", str(work), "--only"]
            picks.main([*arguments, *RECIPES])
        subsets = {
            name: json.loads((chosen / f"{name}.json").read_text(encoding="utf-8"))["rows"]
            for name in (*METHODS, PIECE)
        }
        subsets |= oracles(pool, seed)
        every = range(len(pool.candidates))
        subsets |= {f"{RANDOM} {n}": draw(pool, every, n) for n in range(NUM_RANDOM)}
        rows = model.read(examples(pool.candidates))
        tests = planted_tests(shape, seed, TESTS_A_FAMILY)
        test = model.read(examples(tests))
        for name, subset in subsets.items():
            path = _cell_path(work, shape, seed, name)
            if path.exists():
                continue
            nll = model.tune_and_test([rows[row] for row in subset], test, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record(pool, tests, subset, nll)), encoding="utf-8")
            print(f"{path.parent.name} {name}: done", flush=True)


def _cell_path(work: Path, shape: str, seed: int, name: str) -> Path:
    return work / "draws" / f"{shape}-{seed}" / f"{name}.json"


def oracles(pool: Pool, seed: int) -> dict[str, list[int]]:
    """Return what is drawn with the faults known: sound rows, and sound rows of each family."""
    sound = [row for row, each in enumerate(pool.candidates) if not each.fault]
    by_family: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(sound).tolist():
        by_family.setdefault(pool.candidates[row].source, []).append(row)
    turns = [row for rows in zip_longest(*by_family.values()) for row in rows if row is not None]
    drawn = list(draw(pool, sound, seed))
    return {SOUND_RANDOM: drawn, BALANCED: turns[: pool.budget]}


def record(
    pool: Pool, tests: Sequence[PoolRow], subset: Sequence[int], nll: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Return what is kept of a cell; ``rare`` is of the half of the families with fewer rows."""
    picked = [pool.candidates[row] for row in subset]
    by_size = [name for name, _ in Counter(row.source for row in pool.candidates).most_common()]
    rare = by_size[len(by_size) // 2 :]
    return {
        "nll": float(nll.mean()),
        "rare": float(
            np.mean([each for each, row in zip(nll, tests, strict=True) if row.source in rare])
        ),
        "test_rows": len(nll),
        "wrong": float(np.mean([row.fault == "wrong" for row in picked])),
        "families": len({row.source for row in picked}),
    }


def write_page(work: Path, commit: str) -> None:
    """Compare the methods with random rows and with each other, over the pools that are done."""
    names = [*METHODS, *LATER, *(f"{RANDOM} {n}" for n in range(NUM_RANDOM))]
    paths = {seed: [work / "draws" / f"{seed}.{name}.json" for name in names] for seed in SEEDS}
    done = [seed for seed in SEEDS if all(path.exists() for path in paths[seed])]
    cells = [[json.loads(path.read_text(encoding="utf-8")) for path in paths[s]] for s in done]
    value_PM = np.array([[cell["nll"] for cell in row] for row in cells])
    random_PS = value_PM[:, -NUM_RANDOM:]
    to_random, to_default = (value_PM.T - each for each in (random_PS.mean(axis=1), value_PM[:, 0]))
    p_random, p_default = _holm(to_random[: len(METHODS)]), _holm(to_default[1 : len(METHODS)])
    adjusted = [*zip(p_random, [1.0, *p_default], strict=True), *[(1.0, 1.0)] * len(LATER)]
    table = []
    for m, (name, (p, p_beside)) in enumerate(zip(names, adjusted, strict=False)):
        beside = "" if m == 0 else difference_text(_paired(to_default[m]), p_beside)
        table.append([name, *_shown(cells, [m]), difference_text(_paired(to_random[m]), p), beside])
    drawn = [*_shown(cells, range(-NUM_RANDOM, 0)), "", ""]
    head = ["method", "NLL", "wrong picks", "families", "- random", "- default"]
    tested = [*table[: len(METHODS)], [RANDOM, *drawn]]
    spread = float(np.mean(random_PS.std(axis=1, ddof=1)))
    text = f"""# rivals_draws_cpu

The planted pool drawn anew {len(done)} times (generator seeds {done[0]} to {done[-1]}; some 465
candidates, 46 picks, {cells[0][0]["test_rows"]} clean test rows each): one fine-tuning a subset, {NUM_RANDOM} random subsets a pool. NLL of
the test rows, nats a response token, **lower is better**; differences are means over pools with 95 % intervals of
Student's t over pools, * Holm p < {LEVEL}. Rules, fixed before: [is-my-subset-better](../docs/is-my-subset-better.md).

Machine: {describe_machine()}, shared with other work. Commit {commit}. `python -m benchmarks.rivals.draws tune --work WORK`, then `page`.

{markdown_table(head, tested)}

Random subsets of one pool spread by {spread:.3f}.

Looked at afterwards, so not tested: the default's gate before a cosine, and what an oracle draws that knows the
faults, at random and in turn from the families.

{markdown_table(head, table[len(METHODS) :])}
"""  # noqa: E501
    PAGE.write_text(text, encoding="utf-8")
    values = dict(zip(names, value_PM.T.round(4).tolist(), strict=True))
    kept = {"commit": commit, "seeds": done, "nll": values, "random_spread": round(spread, 4)}
    PAGE.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _shown(cells: Sequence[Sequence[Mapping[str, float]]], which: Iterable[int]) -> list[str]:
    """Return mean NLL, share of wrong picks and families of some subsets of every pool."""
    nll, wrong, families = (
        np.mean([[row[m][key] for m in which] for row in cells])
        for key in ("nll", "wrong", "families")
    )
    return [f"{nll:.3f}", f"{wrong:.0%}", f"{families:.1f}"]


def _holm(differences: Iterable[np.ndarray[Any, Any]]) -> list[float]:
    found = holm([_paired(each).p for each in differences])
    return [1.0 if p is None else p for p in found]


def _paired(difference_P: np.ndarray[Any, Any]) -> Difference:
    return Difference(
        float(difference_P.mean()), float(stats.sem(difference_P)), len(difference_P) - 1
    )


def main() -> None:
    """Tune, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals.draws")
    parser.add_argument("do", choices=["tune", "page"])
    parser.add_argument("shape", nargs="?", choices=PLANTED, default=DEMO)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--commit", default=describe_commit(), help="on which it ran")
    options = parser.parse_args()
    if options.do == "tune":
        tune(options.shape, options.seeds, options.work)
    else:
        write_page(options.work, options.commit)


if __name__ == "__main__":
    main()
