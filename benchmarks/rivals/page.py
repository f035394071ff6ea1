"""The page and its JSON, from the cells that exist."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.machine import describe_machine
from benchmarks.pages import markdown_table
from benchmarks.rivals.cells import (
    DEFAULT,
    DELIFT,
    FULL,
    GATED,
    INITIAL,
    RANDOM,
    SOUND_RANDOM,
    SOURCE_RANDOM,
    WAVES,
)
from benchmarks.rivals.picks import NEED_TARGETS, RIVALS
from benchmarks.rivals.pools import DRAWN_ONCE, T0_TAIL, Pool, describe, make_pool
from nncift_ray.evaluation.results import holm as adjust_by_holm

FOLDER = Path(__file__).parents[1]
SEED, LEVEL, GOAL, POWER = 1, 0.05, 0.05, 0.8
REFERENCES = (INITIAL, RANDOM, SOURCE_RANDOM, SOUND_RANDOM, FULL)
#: How the names of what is no rival begin, but DELIFT with one piece swapped.
PIECES = ("default ", "quality, then ")
#: Rows of the first table: our own recipes, then rivals from the cheapest on.
ORDER = (
    DEFAULT, GATED, DELIFT, "nn_cift+delift_se", "paper+delift", "paper+delift_se",
    "longest", "cosine", "rds_plus", "ifd", "consistency", "deita", "selectit", "loss_drop",
    "loss_drop_in_context", "less", "landmarks",
)  # fmt: skip
#: Rows of the table of DELIFT's pieces: what is said, whose NLL, minus whose.
SWAPS = (
    ("random rows of the source", SOURCE_RANDOM, RANDOM),
    ("random sound rows (an oracle)", SOUND_RANDOM, RANDOM),
    ("quality, then random", "quality, then random", RANDOM),
    ("labels and network, no quality", "default without quality", RANDOM),
    ("all of it", DELIFT, RANDOM),
    ("quality taken out", "default without quality", DELIFT),
    ("network swapped for a cosine", "quality, then cosine", DELIFT),
    ("coverage swapped for pair_coverage", "default by pair_coverage", DELIFT),
    ("selection swapped for random", "quality, then random", DELIFT),
)
#: Pools of the other page that came after the first five.
LATER = ("long_tail_again", T0_TAIL, "t0_rare_again")
QUARTER = 0.25  # of the pool's share of wrong answers: what a default may pick at most


@dataclass(frozen=True)
class Difference:
    """A difference of NLL, lower is better, and what chance does to it."""

    value: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        if self.error == 0:
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        half = float(stats.t.ppf(1 - LEVEL / 2, self.freedom)) * self.error
        return self.value - half, self.value + half


def to_subsets(method_TN: np.ndarray, random_SN: np.ndarray) -> Difference:
    """Return a method's mean NLL minus that of random subsets, the method as one more subset.

    Args:
        method_TN: NLL of its subset after each seed of tuning, by test row.
        random_SN: NLL after each random subset, S of at least 2, by test row.
    """
    num_subsets, num_rows = random_SN.shape
    by_row_N = method_TN.mean(axis=0) - random_SN.mean(axis=0)
    between = random_SN.mean(axis=1).var(ddof=1)
    variance = by_row_N.var(ddof=1) / num_rows + between * (1 + 1 / num_subsets)
    return Difference(float(by_row_N.mean()), sqrt(variance), num_subsets - 1)


def between_groups(first_SN: np.ndarray, second_SN: np.ndarray) -> Difference:
    """Return the mean NLL of some random subsets minus that of others, each drawn apart."""
    by_row_N = first_SN.mean(axis=0) - second_SN.mean(axis=0)
    spread = sum(each.mean(axis=1).var(ddof=1) / len(each) for each in (first_SN, second_SN))
    error = sqrt(by_row_N.var(ddof=1) / len(by_row_N) + spread)
    return Difference(float(by_row_N.mean()), error, min(len(first_SN), len(second_SN)) - 1)


def to_method(rival_TN: np.ndarray, own_TN: np.ndarray, seed_variance: float) -> Difference:
    """Return a rival's mean NLL minus our own; both subsets are given, seeds are chance."""
    by_row_N = rival_TN.mean(axis=0) - own_TN.mean(axis=0)
    seeds = seed_variance * (1 / len(rival_TN) + 1 / len(own_TN))
    error = sqrt(by_row_N.var(ddof=1) / len(by_row_N) + seeds)
    return Difference(float(by_row_N.mean()), error, len(by_row_N) - 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values."""
    adjusted = adjust_by_holm(list(p_values.values()))
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True) if p is not None}


def subsets_needed(between: float, row_variance: float, num_rows: int, num_methods: int) -> float:
    """Return how many random subsets show GOAL nats with power POWER; inf: no number does."""
    for count in range(2, 201):
        critical = stats.t.ppf(1 - LEVEL / 2 / num_methods, count - 1) + stats.norm.ppf(POWER)
        if critical * sqrt(between * (1 + 1 / count) + row_variance / num_rows) <= GOAL:
            return count
    return inf


def shown(between: float, row_variance: float, count: int, num_rows: int, methods: int) -> float:
    """Return the difference, nats, that is shown with power POWER."""
    critical = stats.t.ppf(1 - LEVEL / 2 / methods, count - 1) + stats.norm.ppf(POWER)
    return float(critical * sqrt(between * (1 + 1 / count) + row_variance / num_rows))


class PoolResult:
    """What is known of a pool."""

    def __init__(self, pool: Pool, work: Path, seed: int = SEED) -> None:
        """Read the cells and the picks."""
        self.pool = pool
        cells, rows = defaultdict[str, list[Any]](list), dict[str, list[int]]()
        for path in sorted((work / "cells" / f"{pool.name}-{seed}").glob("*.json")):
            cell = json.loads(path.read_text(encoding="utf-8"))
            cells[cell["method"]].append(cell["nll"])
            rows.setdefault(cell["method"], []).extend(cell["rows"])
        self.nll = {name: np.array(each) for name, each in cells.items()}
        self.rows = rows
        facts = describe(pool)
        self.one_source = facts["of_right_source"] == facts["candidates"]
        self.num_faults = sum(facts["faults"].values())
        picks = (work / "picks" / f"{pool.name}-{seed}").glob("*.json")
        found = [json.loads(path.read_text(encoding="utf-8")) for path in picks]
        self.seconds = {each["method"]: each["seconds"] for each in found}
        tuned = [name for name in self.nll if name not in REFERENCES]
        tuned.sort(key=lambda name: (name != DEFAULT, float(self.nll[name].mean())))
        self.methods = [name for name in tuned if not name.startswith(PIECES)]
        self.pieces = [name for name in tuned if name.startswith(PIECES)]

    @property
    def can_compare(self) -> bool:
        """Whether random subsets have been tuned on."""
        return len(self.nll.get(RANDOM, ())) > 1

    def against(self, reference: str, names: Sequence[str] = ()) -> dict[str, Difference]:
        """Return the difference of methods (all but pieces) to the subsets of a reference."""
        if len(self.nll.get(reference, ())) < 2:
            return {}
        other = self.nll[reference]
        return {name: to_subsets(self.nll[name], other) for name in names or self.methods}

    def from_source(self) -> dict[str, Difference]:
        """Return the differences to random of the source: to random where all rows are of it."""
        return self.against(RANDOM if self.one_source else SOURCE_RANDOM)

    def swap(self, name: str, other: str, digits: int = 3) -> str:
        """Return the text of a difference of the table of pieces; "-" where one is not known."""
        if min(len(self.nll.get(name, ())), len(self.nll.get(other, ()))) < 1:
            return "-"
        if other == DELIFT:
            return difference_text(self.to_default([name], DELIFT)[name][0], None, digits)
        compare = between_groups if name in REFERENCES else to_subsets
        return difference_text(compare(self.nll[name], self.nll[other]), None, digits)

    def to_default(
        self, names: Sequence[str], default: str = DEFAULT
    ) -> dict[str, tuple[Difference, float]]:
        """Return the difference of some methods to the default, with its adjusted p."""
        if default not in self.nll:
            return {}
        repeated = [each for each in self.nll.values() if len(each) > 1]
        within = [
            each.mean(axis=1).var(ddof=1)
            for name, each in self.nll.items()
            if name not in REFERENCES and len(each) > 1
        ]
        # Where no method has a second seed, random subsets differ by more than seeds do.
        spread = within or [each.mean(axis=1).var(ddof=1) for each in repeated]
        seeds = float(np.mean(spread))
        found = {
            name: to_method(self.nll[name], self.nll[default], seeds)
            for name in names
            if name != default
        }
        adjusted = holm({name: each.p for name, each in found.items()})
        return {name: (each, adjusted[name]) for name, each in found.items()}

    def share(self, name: str, fault: str | None = None) -> float:
        """Return the share of faults among a method's picks."""
        faults = [self.pool.candidates[row].fault for row in self.rows[name]]
        return sum(f == fault if fault else bool(f) for f in faults) / max(1, len(faults))

    def summary(self) -> dict[str, Any]:
        """Return the object of the JSON."""
        random, faults = self.against(RANDOM), describe(self.pool)["faults"]
        wrong = "wrong" in faults
        compared = comparisons(random, self.from_source(), self.to_default(self.methods), self.nll)
        return (
            {"name": self.pool.name}
            | compared
            | {
                "default_vs_sound_random": plain(self.against(SOUND_RANDOM), DEFAULT),
                "picks_wrong": self.share(DEFAULT, "wrong")
                if wrong and DEFAULT in self.rows
                else None,
                "pool_wrong": faults["wrong"] / len(self.pool.candidates) if wrong else None,
                "random_subsets": len(self.nll.get(RANDOM, ())),
                "test_rows": len(self.pool.test),
            }
        )


def comparisons(
    random: Mapping[str, Difference],
    source: Mapping[str, Difference],
    beside: Mapping[str, tuple[Difference, float]],
    nll: Mapping[str, np.ndarray],
    default: str = DEFAULT,
) -> dict[str, Any]:
    """Return what the JSON says of the default beside random rows and rivals, and of each method.

    Args:
        random: Differences of all methods to random rows.
        source: Those to random rows of the source.
        beside: Those of rivals to the default, and their adjusted p.
        nll: All values of each method.
        default: Which of them is the default.
    """
    return {
        "default_vs_random": plain(random, default),
        "default_vs_source_random": plain(source, default),
        "beaten_by": [name for name, (each, p) in beside.items() if each.value < 0 and p < LEVEL],
        "methods": {
            name: {"nll": float(nll[name].mean())} | (plain(random, name) or {}) for name in random
        },
    }


def plain(differences: Mapping[str, Difference], name: str) -> dict[str, float] | None:
    """Return a difference, its interval and its p adjusted over all of them."""
    if name not in differences:
        return None
    low, high = differences[name].interval
    adjusted = holm({other: each.p for other, each in differences.items()})
    found = {"difference": differences[name].value, "low": low, "high": high}
    return {key: round(value, 4) for key, value in found.items()} | {"p_holm": adjusted[name]}


def write_page(data: Path, work: Path, commit: str) -> None:
    """Write rivals_cpu.md and .json beside the other pages."""
    results = [PoolResult(make_pool(name, SEED, data), work) for name in DRAWN_ONCE]
    known = [result for result in results if result.can_compare]
    found = {
        "machine": describe_machine(),
        "commit": commit,
        "pools": [*(result.summary() for result in known), *_drawn_anew()],
        "missing": _missing(results),
    }
    text = json.dumps(found, indent=1) + "\n"
    (FOLDER / "rivals_cpu.json").write_text(text, encoding="utf-8")
    page = "\n\n".join([_head(found, known), *map(_section, known), _foot(found)]) + "\n"
    (FOLDER / "rivals_cpu.md").write_text(page, encoding="utf-8")


def _drawn_anew() -> list[dict[str, Any]]:
    """Return the pool that only the other page has, in the form of those of this one."""
    pools = json.loads((FOLDER / "rivals_draws_cpu.json").read_text(encoding="utf-8"))["pools"]
    unread = ("seeds", "nll_by_seed")
    return [
        {key: value for key, value in pool.items() if key not in unread}
        for pool in pools
        if pool["name"] in LATER
    ]


def _head(found: Mapping[str, Any], known: Sequence[PoolResult]) -> str:
    verdicts = [
        [
            each["name"],
            _cell(each["default_vs_random"]),
            "the same"
            if each["default_vs_source_random"] == each["default_vs_random"]
            else _cell(each["default_vs_source_random"]),
            _cell(each["default_vs_sound_random"]),
            ", ".join(each["beaten_by"]) or "none",
            _percent(each["picks_wrong"]),
            _percent(each["pool_wrong"]),
        ]
        for each in found["pools"]
    ]
    header = ["pool", "default - random", "- random of the source", "- random of sound rows"]
    table = markdown_table([*header, "beaten by", "wrong picks", "wrong in the pool"], verdicts)
    return f"""# rivals_cpu

NLL of held-out rows, nats a response token, after fine-tuning SmolLM2-135M-Instruct on what each
method picks, minus that after random picks: **lower is better**; 95 % intervals; * Holm p < 0.05
over a pool's methods. Rules, fixed before: [is-my-subset-better](../docs/is-my-subset-better.md).

{_overview(known)}

{_wrapped(_overview_notes(known))}

{_wrapped(_goal(found["pools"]))}

The default is `{DEFAULT}`: facility location on squared cosines (its query form with targets),
repeats held back; `..., quality` has the gate of SmolLM2-135M beside it. It became the default
after the other methods had been seen here, for what it did on draws of another pool. `{DELIFT}`,
the default before: 500 labels (demo: 1,000), pair network, the same objective, quality;
`paper+...`: the paper's network, no quality. `less` (all rows), `landmarks` (gradients of 64 rows)
and `loss_drop` train adapters of rank 8 for two epochs, on a fifth of the pool or the targets.

{table}

## What the differences come from

The recipe with DELIFT, one piece at a time, minus random picks (first five rows) or minus all of
it; 95 % intervals, not adjusted.

{_swaps(known)}

Machine: {found["machine"]}, shared with other work. Commit {found["commit"]}.

```bash
python -m benchmarks.rivals.picks demo 1 --data DATA --work WORK    # once a pool
python -m benchmarks.rivals tune --data DATA --work WORK
python -m benchmarks.rivals page --data DATA --work WORK
```"""


def _overview_notes(known: Sequence[PoolResult]) -> str:
    shares = [
        f"{each.pool.name} {each.num_faults / len(each.pool.candidates):.0%}"
        for each in known
        if each.num_faults
    ]
    return (
        "`seconds` of one processor, mean over pools. `faults`: the share of planted ones among "
        f"the picks, mean over the pools that have them ({', '.join(shares)}). In a pool of one "
        "source, random of the source is random."
    )


def _overview(known: Sequence[PoolResult]) -> str:
    """Return the table of methods by pools."""
    head = [f"{each.nll[RANDOM].mean():.2f}±{each.nll[RANDOM].mean(axis=1).std(ddof=1):.2f}"
            for each in known]  # fmt: skip
    lines: list[list[str]] = [["random: NLL", *head, "0", _mean_faults(known, RANDOM)]]
    for name in (SOURCE_RANDOM, SOUND_RANDOM, FULL):
        cells = [_reference_cell(each, name) for each in known]
        lines.append([name, *cells, "0", _mean_faults(known, name)])
    ran = {name for each in known for name in each.methods}
    for name in [each for each in ORDER if each in ran]:
        seconds = [each.seconds[name] for each in known if each.seconds.get(name) is not None]
        lines.append(
            [
                f"**{name}**" if name == DEFAULT else name,
                *(_overview_cell(each, name) for each in known),
                _seconds(float(np.mean(seconds)) if seconds else None),
                _mean_faults(known, name),
            ]
        )
    return markdown_table(
        ["method", *(each.pool.name for each in known), "seconds", "faults"], lines
    )


def _overview_cell(result: PoolResult, name: str) -> str:
    if name not in result.nll:
        needs = name in NEED_TARGETS and not result.pool.targets
        return "needs targets" if needs else "not run"
    random = result.against(RANDOM)
    adjusted = holm({other: each.p for other, each in random.items()})
    return difference_text(random[name], adjusted[name], digits=2)


def _reference_cell(result: PoolResult, name: str) -> str:
    if name == SOURCE_RANDOM and result.one_source:
        return "= random"
    if name == FULL and name in result.nll:
        return f"{result.nll[FULL].mean() - result.nll[RANDOM].mean():+.2f}"
    return "-" if name == FULL else result.swap(name, RANDOM, digits=2)


def _mean_faults(known: Sequence[PoolResult], name: str) -> str:
    shares = [each.share(name) for each in known if each.num_faults and name in each.rows]
    return _percent(float(np.mean(shares)) if shares else None)


def _swaps(known: Sequence[PoolResult]) -> str:
    lines = [[label, *(each.swap(name, other) for each in known)] for label, name, other in SWAPS]
    return markdown_table(["piece", *(each.pool.name for each in known)], lines)


def _goal(found: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the goal is reached that was fixed before."""
    pools = {each["name"]: each for each in found}

    def beats(each: Mapping[str, Any], reference: str) -> bool:
        one = each[reference]
        return bool(one and one["difference"] < 0 and one["p_holm"] < LEVEL)

    won = [name for name, each in pools.items()
           if beats(each, "default_vs_random") and not each["beaten_by"]]  # fmt: skip
    within = [name for name in ("gsm8k_wrong", "demo") if name in pools
              and beats(pools[name], "default_vs_source_random")]  # fmt: skip
    clean = all(each["picks_wrong"] <= QUARTER * each["pool_wrong"]
                for each in pools.values() if each["pool_wrong"])  # fmt: skip
    draws = [f"{name} ({pools[name]['draws']} draws)" for name in LATER if name in pools]
    later = (
        f"{' and '.join(draws)} "
        "([page](rivals_draws_cpu.md)) were added after the first five had been seen, their rules "
        "committed before they were run. "
        if draws
        else ""
    )
    return (
        "**The goal, fixed before:** on three of five pools the default beats random and no rival "
        f"beats it: {len(won)} of {len(pools)}{': ' if won else ''}{', '.join(won)}. "
        f"{later}It beats "
        f"random within the source on gsm8k_wrong and demo: {', '.join(within) or 'on neither'}. "
        "Its wrong picks are at most a quarter of the pool's share: "
        f"{'everywhere' if clean else 'not everywhere'}."
    )


def _section(result: PoolResult) -> str:
    pool, random = result.pool, result.against(RANDOM)
    source = {} if result.one_source else result.from_source()
    beaten = result.to_default(result.methods)
    adjusted = holm({name: each.p for name, each in random.items()})
    lines: list[list[Any]] = []
    for name in [each for each in REFERENCES if each in result.nll]:
        nll = result.nll[name].mean(axis=1)
        spread = f"±{nll.std(ddof=1):.3f}" if len(nll) > 1 else ""
        picked = _percent(result.share(name)) if name != INITIAL else ""
        lines.append([name, f"{nll.mean():.3f}{spread}", len(nll), "", "", "", picked, ""])
    for name in result.methods:
        lines.append(
            [
                f"**{name}**" if name == DEFAULT else name,
                f"{result.nll[name].mean():.3f}",
                len(result.nll[name]),
                difference_text(random[name], adjusted[name]),
                difference_text(source[name], None) if name in source else "",
                difference_text(*beaten[name]) if name in beaten else "",
                _percent(result.share(name)),
                _seconds(result.seconds.get(name)),
            ]
        )
    header = ["method", "NLL", "tunings", "- random", "- random of the source"]
    table = markdown_table([*header, "- default", "faults", "seconds"], lines)
    return f"## {pool.name}\n\n{_about(result)}\n\n{table}"


def _about(result: PoolResult) -> str:
    facts, subsets = describe(result.pool), result.nll[RANDOM]
    between = float(subsets.mean(axis=1).var(ddof=1))
    num = max(1, len(result.methods))
    rows = [
        (result.nll[name].mean(axis=0) - subsets.mean(axis=0)).var(ddof=1)
        for name in result.methods
    ]
    row_variance = float(np.mean(rows)) if rows else 0.0
    count, tests = len(subsets), len(result.pool.test)
    needed = subsets_needed(between, row_variance, 10 * tests, num)
    planted = ", ".join(f"{count} {name}" for name, count in facts["faults"].items()) or "none"
    return (
        f"{facts['candidates']} candidates ({facts['of_right_source']} of the right source; "
        f"planted faults: {planted}), {facts['budget']} picks, {facts['targets']} targets, "
        f"{tests} test rows. Spread between random subsets {sqrt(between):.3f}, of differences "
        f"between rows {sqrt(row_variance):.3f}: with {count} random subsets and {num} methods "
        f"{shown(between, row_variance, count, tests, num):.2f} nats show with 80 % power; "
        f"{GOAL} nats would, with ten times the test rows, from "
        f"{'no number of random subsets on' if needed == inf else f'{needed} random subsets on'}."
    )


def _missing(results: Sequence[PoolResult]) -> list[str]:
    lines = [f"pool draws other than seed {SEED}"]
    for result in results:
        if not result.can_compare:
            lines.append(f"{result.pool.name}: nothing yet")
        elif DEFAULT not in result.nll:
            lines.append(f"{result.pool.name}: the recipes' picks")
        else:
            count = len(result.nll[RANDOM])
            seeds = min(len(result.nll[name]) for name in result.methods)
            wanted = [name for name in RIVALS if result.pool.targets or name not in NEED_TARGETS]
            if absent := [name for name in wanted if name not in result.nll]:
                lines.append(f"{result.pool.name}: methods not run: {', '.join(absent)}")
            if count < WAVES[-1][0] or seeds < WAVES[-1][2]:
                lines.append(
                    f"{result.pool.name}: {count} of {WAVES[-1][0]} random subsets, "
                    f"at least {seeds} of {WAVES[-1][2]} seeds of fine-tuning a method"
                )
    return lines


def _foot(found: Mapping[str, Any]) -> str:
    missing = "\n".join(f"- {line}" for line in found["missing"])
    return (
        "`seconds`: of one processor, of what a method rests on; - where a part was not measured. "
        "`faults`: share of the picks that are planted faults.\n\n## Missing\n\n" + missing
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def difference_text(difference: Difference, adjusted: float | None, digits: int = 3) -> str:
    """Return a difference and its interval; a star where the adjusted p is significant."""
    low, high = difference.interval
    star = "*" if adjusted is not None and adjusted < LEVEL else ""
    return f"{difference.value:+.{digits}f}{star} ({low:+.2f} to {high:+.2f})"


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    star = "*" if found["p_holm"] < LEVEL else ""
    return f"{found['difference']:+.3f}{star} ({found['low']:+.2f} to {found['high']:+.2f})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
