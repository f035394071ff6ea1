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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.machine import describe_commit, describe_machine
from benchmarks.pages import markdown_table
from benchmarks.rivals import picks
from benchmarks.rivals.cells import (
    DEFAULT,
    DELIFT,
    GATED,
    RANDOM,
    SOUND_RANDOM,
    SOURCE_RANDOM,
    draw,
)
from benchmarks.rivals.page import LEVEL, Difference, comparisons, difference_text, holm
from benchmarks.rivals.pools import (
    DEMO,
    LONG_TAIL,
    PLANTED,
    T0_RARE,
    T0_TAIL,
    WRONG,
    Pool,
    PoolRow,
    examples,
    make_pool,
    planted_tests,
)
from benchmarks.rivals.tuning import UpperModel

PIECE, BALANCED = "quality, then cosine", "sound rows, families in turn"
NUM_RANDOM, TESTS_A_FAMILY = 4, 10
PAGE = Path("benchmarks/rivals_draws_cpu.md")


@dataclass(frozen=True)
class Study:
    """Draws of a pool, and whose picks are compared in them."""

    shape: str
    title: str
    seeds: range
    default: str
    rivals: tuple[str, ...]
    #: Never tested: a piece swapped, and what only an oracle can draw.
    later: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """What is tested: the default and its rivals."""
        return (self.default, *self.rivals)

    @property
    def rarer(self) -> bool:
        """Whether sizes differ, so that the rarer half has a column of its own."""
        return self.shape in (LONG_TAIL, T0_TAIL)


SIMPLE = ("cosine", "rds_plus")
ORACLES = (SOUND_RANDOM, BALANCED)
STUDIES = {
    DEMO: Study(
        DEMO, "planted faults, families of one size", range(2, 18),
        DELIFT, ("nn_cift+delift_se", *SIMPLE, "quality, then random"), (PIECE, *ORACLES),
    ),
    LONG_TAIL: Study(
        LONG_TAIL, "planted faults, families whose sizes fall as 1/rank", range(2, 18),
        DELIFT, ("nn_cift+delift_se", *SIMPLE, "quality, then random"), (PIECE, *ORACLES),
    ),
    "long_tail_again": Study(
        LONG_TAIL, "other draws of the same", range(18, 34),
        DEFAULT, (DELIFT, "nn_cift+delift_se", *SIMPLE, "quality, then random"),
        (GATED, *ORACLES),
    ),
    T0_TAIL: Study(
        T0_TAIL, "24 T0 templates whose sizes fall as 1/rank, no target", range(2, 18),
        DEFAULT, (DELIFT, "nn_cift+delift_se", *SIMPLE, "quality, then random"),
        (GATED, BALANCED),
    ),
    T0_RARE: Study(
        T0_RARE, "T0, one of eight rare templates is the target", range(2, 18),
        DELIFT, ("nn_cift+delift_se", *SIMPLE), (DEFAULT, SOURCE_RANDOM),
    ),
    "t0_rare_again": Study(
        T0_RARE, "other draws of the same", range(18, 34),
        DEFAULT, (DELIFT, "nn_cift+delift_se", *SIMPLE), (SOURCE_RANDOM,),
    ),
}  # fmt: skip


def tune(study: Study, seeds: Iterable[int], data: Path, work: Path) -> None:
    """Pick from each pool and tune on what was picked, one pool after the other."""
    torch.set_num_threads(1)
    model, shape = UpperModel(), study.shape
    for seed in seeds:
        pool = make_pool(shape, seed, data)
        chosen = work / "picks" / f"{shape}-{seed}"
        named = (*study.methods, *study.later)
        recipes = dict.fromkeys((DELIFT, *(name for name in named if name in picks.RECIPES)))
        if not all((chosen / f"{name}.json").exists() for name in (*study.methods, *recipes)):
            arguments = [shape, str(seed), "--data", str(data), "--work", str(work), "--only"]
            picks.main([*arguments, *recipes])
        drawn = by_chance(pool, seed)
        wanted = [name for name in named if name not in drawn]
        subsets = {
            name: json.loads((chosen / f"{name}.json").read_text(encoding="utf-8"))["rows"]
            for name in wanted
        }
        subsets |= {name: rows for name, rows in drawn.items() if name in study.later}
        every = range(len(pool.candidates))
        subsets |= {f"{RANDOM} {n}": draw(pool, every, n) for n in range(NUM_RANDOM)}
        rows = model.read(examples(pool.candidates))
        tests = test_rows(pool, seed)
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


def test_rows(pool: Pool, seed: int) -> list[PoolRow]:
    """Return the test rows of a draw, none with a candidate's prompt."""
    if pool.name in PLANTED:
        return planted_tests(pool.name, seed, TESTS_A_FAMILY)
    prompts = {row.prompt for row in pool.candidates}
    return [row for row in pool.test if row.prompt not in prompts]


def by_chance(pool: Pool, seed: int) -> dict[str, list[int]]:
    """Return what is drawn of what is right: sound rows, those of each family, of the source."""
    right = [n for n, row in enumerate(pool.candidates) if row.source == pool.right_source]
    sound = [row for row, each in enumerate(pool.candidates) if not each.fault]
    by_family: dict[str, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(sound).tolist():
        by_family.setdefault(pool.candidates[row].source, []).append(row)
    turns = [row for rows in zip_longest(*by_family.values()) for row in rows if row is not None]
    return {
        SOUND_RANDOM: list(draw(pool, sound, seed)),
        BALANCED: turns[: pool.budget],
        SOURCE_RANDOM: list(draw(pool, right, seed)),
    }


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
        "wrong": float(np.mean([row.fault == WRONG for row in picked])),
        "families": len({row.source for row in picked}),
    }


class Drawn:
    """What the draws of a pool taught: a value a pool, in the order of their seeds."""

    def __init__(self, study: Study, work: Path) -> None:
        """Read the pools of which every subset has been tuned on."""
        self.study = study
        random = [f"{RANDOM} {n}" for n in range(NUM_RANDOM)]
        self.subsets = [*study.methods, *study.later, *random]
        paths = {
            seed: [_cell_path(work, study.shape, seed, each) for each in self.subsets]
            for seed in study.seeds
        }
        self.seeds = [seed for seed in study.seeds if all(path.exists() for path in paths[seed])]
        self._cells = [
            [json.loads(path.read_text(encoding="utf-8")) for path in paths[seed]]
            for seed in self.seeds
        ]
        self.nll = dict(zip(self.subsets, self._values("nll").T, strict=True))
        self.random_SP = np.array([self.nll[name] for name in self.subsets[-NUM_RANDOM:]])
        self.num_tests = int(self._values("test_rows").max(initial=0))

    def _values(self, key: str) -> np.ndarray[Any, Any]:
        values = [[cell[key] for cell in row] for row in self._cells]
        return np.array(values).reshape(len(values), len(self.subsets))

    def against(self, other_P: np.ndarray[Any, Any], names: Iterable[str]) -> dict[str, Difference]:
        """Return the differences to what is known of every pool."""
        return {name: _paired(self.nll[name] - other_P) for name in names}

    def to_random(self) -> dict[str, Difference]:
        """Return the differences to the mean of a pool's random subsets, tested ones first."""
        names = (*self.study.methods, *self.study.later)
        return self.against(self.random_SP.mean(axis=0), names)

    @property
    def tested(self) -> dict[str, Difference]:
        """The differences to random of what is tested."""
        return {name: self.to_random()[name] for name in self.study.methods}

    def to_default(self) -> dict[str, tuple[Difference, float]]:
        """Return the differences to the default; adjusted p of what is tested, 1 of the rest."""
        study = self.study
        found = self.against(self.nll[study.default], (*study.rivals, *study.later))
        adjusted = holm({name: found[name].p for name in study.rivals})
        return {name: (each, adjusted.get(name, 1.0)) for name, each in found.items()}

    def _shown(self, subsets: Sequence[str]) -> list[str]:
        """Return mean NLL, share of wrong picks and families of some subsets of every pool."""
        which = [self.subsets.index(name) for name in subsets]
        forms = {"nll": ".3f"} | ({"rare": ".3f"} if self.study.rarer else {})
        forms |= {"wrong": ".0%", "families": ".1f"}
        return [format(self._values(key)[:, which].mean(), form) for key, form in forms.items()]

    def tables(self) -> tuple[str, str]:
        """Return the table of what is tested and that of what was looked at beside it."""
        to_random, to_default = self.to_random(), self.to_default()
        adjusted = holm({name: each.p for name, each in self.tested.items()})
        rare = ["rarer half"] if self.study.rarer else []
        head = ["method", "NLL", *rare, "wrong picks", "families", "- random", "- default"]
        lines = [
            [name, *self._shown([name]), difference_text(each, adjusted.get(name)),
             difference_text(*to_default[name]) if name in to_default else ""]
            for name, each in to_random.items()
        ]  # fmt: skip
        random = [RANDOM, *self._shown(self.subsets[-NUM_RANDOM:]), "", ""]
        tested, later = lines[: len(adjusted)], lines[len(adjusted) :]
        return markdown_table(head, [*tested, random]), markdown_table(head, later)

    def summary(self, data: Path, name: str) -> dict[str, Any]:
        """Return the object of this pool, in the form of those in ``rivals_cpu.json``."""
        pools = [make_pool(self.study.shape, seed, data) for seed in self.seeds]
        wrong = [np.mean([row.fault == WRONG for row in pool.candidates]) for pool in pools]
        found = source = self.tested
        if SOURCE_RANDOM in self.study.later:
            source = self.against(self.nll[SOURCE_RANDOM], self.study.methods)
        compared = comparisons(found, source, self.to_default(), self.nll, self.study.default)
        return (
            {"name": name, "default": self.study.default}
            | compared
            | {
                "default_vs_sound_random": None,
                "picks_wrong": float(self._values("wrong")[:, 0].mean()),
                "pool_wrong": float(np.mean(wrong)),
                "draws": len(self.seeds),
                "random_subsets": self.random_SP.size,
                "test_rows": self.num_tests,
            }
        )


def write_page(data: Path, work: Path, commit: str) -> None:
    """Compare the methods with random rows and with each other, over the pools that are done."""
    drawn = {name: Drawn(study, work) for name, study in STUDIES.items()}
    drawn = {name: each for name, each in drawn.items() if len(each.seeds) > 1}
    text = f"""# rivals_draws_cpu

Pools drawn anew: one fine-tuning a subset, {NUM_RANDOM} random subsets a pool. NLL of the test rows, nats a response token,
**lower is better**; differences are means over pools with 95 % intervals of Student's t over pools, * Holm p < {LEVEL}.
Rules, fixed before: [is-my-subset-better](../docs/is-my-subset-better.md). The first method of a table is the default. A
second table has what is not tested: a piece swapped, and what an oracle draws that knows the faults, at random and in
turn from the families, or the source. `rarer half`: NLL of the half of the families that have fewer rows.

Machine: {describe_machine()}, shared with other work. Commit {commit}.
`python -m benchmarks.rivals.draws tune {"|".join(STUDIES)} --data DATA --work WORK`, then `page`.

{"".join(_section(*each) for each in drawn.items())}"""  # noqa: E501
    PAGE.write_text(text.rstrip() + "\n", encoding="utf-8")
    kept = [
        each.summary(data, name)
        | {
            "seeds": each.seeds,
            "nll_by_seed": {name: nll.round(4).tolist() for name, nll in each.nll.items()},
        }
        for name, each in drawn.items()
    ]
    found = {"commit": commit, "pools": kept}
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _section(name: str, drawn: Drawn) -> str:
    study, (tested, later) = drawn.study, drawn.tables()
    spread = float(np.mean(drawn.random_SP.std(axis=0, ddof=1)))
    return f"""## {name}: {study.title}

{len(drawn.seeds)} of {len(study.seeds)} pools, seeds {drawn.seeds[0]} to {drawn.seeds[-1]}; {drawn.num_tests} test rows; random subsets of one spread by {spread:.3f}.

{tested}

{later}

"""  # noqa: E501


def _paired(difference_P: np.ndarray[Any, Any]) -> Difference:
    return Difference(
        float(difference_P.mean()), float(stats.sem(difference_P)), len(difference_P) - 1
    )


def main() -> None:
    """Tune, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals.draws")
    parser.add_argument("do", choices=["tune", "page"])
    parser.add_argument("study", nargs="?", choices=STUDIES, default=DEMO)
    parser.add_argument("--seeds", nargs="*", type=int, help="only these")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--commit", default=describe_commit(), help="on which it ran")
    options = parser.parse_args()
    if options.do == "tune":
        study = STUDIES[options.study]
        tune(study, options.seeds or study.seeds, options.data, options.work)
    else:
        write_page(options.data, options.work, options.commit)


if __name__ == "__main__":
    main()
