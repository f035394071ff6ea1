"""Run a recipe on a cluster that loses nodes, and compare it with a run that loses none."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.chaos.cluster import MARKET, ON_DEMAND, SPOT, SpotCluster
from benchmarks.chaos.counted_run import BEGUN, DONE
from nncift_ray.runtime.output import MANIFEST_NAME

POLL_SECONDS = 0.2
CARD_NAME = "README.md"
END_SECONDS = 60  # for a driver that was asked to end


@dataclass(frozen=True)
class Death:
    """When nodes die, and how many."""

    stage: str
    fraction: float  # of the stage's shards, done by then
    all_nodes: bool
    is_announced: bool = False  # one at work is drained, long before it is taken


@dataclass(frozen=True)
class Plan:
    """Which nodes die and when; the pauses that make room for it."""

    deaths: tuple[Death, ...] = ()
    shortage_seconds: float = 10.0  # with no replacement, after all nodes died
    shard_seconds: float = 2.0  # that each shard takes beyond its work
    limit_seconds: float = 1800.0  # after which a run is taken for one that hangs


@dataclass(frozen=True)
class Record:
    """What became of a run."""

    seconds: float
    exit_code: int
    num_kills: int  # nodes
    kills_by_stage: dict[str, int]
    shards_by_stage: dict[str, int]  # distinct ones that were finished
    num_begun: int  # attempts at shards
    num_lost: int  # attempts that were begun and not finished
    num_redone: int  # attempts at shards that an earlier attempt had finished
    repeated_items: int  # of all attempts at a shard but one
    num_items: int
    digests: dict[str, str]  # SHA-256 of the exported files


def draw_deaths(num_by_stage: Mapping[str, int], seed: int) -> tuple[Death, ...]:
    """Draw so many moments of each stage; at one of each stage's all nodes die at once."""
    draw = random.Random(seed)
    deaths: list[Death] = []
    for stage, number in num_by_stage.items():
        fractions = sorted(draw.uniform(0.05, 0.85) for _ in range(number))
        flood = draw.randrange(number)
        deaths += [Death(stage, at, order == flood) for order, at in enumerate(fractions)]
    return tuple(deaths)


def spot_recipe(recipe: dict[str, Any], run_dir: Path, address: str) -> dict[str, Any]:
    """Return a recipe with scoring and embedding on spot nodes, the rest on the head.

    What the recipe says of a pool is kept.
    """
    pool = {"labels": {MARKET: SPOT}, "num_cpus": 1, "num_actors": [1, 4]}
    tree = {**recipe, "run_dir": str(run_dir)}
    for section in ("embedder", "labels", "pair_scores"):
        own = tree.get(section, {})
        tree[section] = {**own, "pool": {**pool, **own.get("pool", {})}}
    cluster = {"address": address, "labels": {MARKET: ON_DEMAND}}
    tree["cluster"] = {**tree.get("cluster", {}), **cluster}
    return tree


class Mark(NamedTuple):
    """What a worker began or ended."""

    shard: tuple[str, int, int]  # stage, start, stop
    node: str
    process: int
    attempt: str
    time: float


@dataclass(frozen=True)
class Tally:
    """What the workers of a run left as marks."""

    folder: Path

    def marks(self, kind: str, stage: str = "*") -> list[Mark]:
        """Return the marks of a kind, in the order in which they were left."""
        marks: list[Mark] = []
        for path in self.folder.glob(f"{stage}.*.{kind}"):
            name, start, stop, node, process, attempt, _ = path.name.split(".")
            shard = (name, int(start), int(stop))
            marks.append(Mark(shard, node, int(process), attempt, path.stat().st_mtime))
        return sorted(marks, key=lambda mark: mark.time)

    def at_work(self, stage: str) -> list[Mark]:
        """Return what is begun and not ended."""
        begun = self.marks(BEGUN, stage)
        ended = {mark.attempt for mark in self.marks(DONE, stage)}
        return [mark for mark in begun if mark.attempt not in ended]

    def shards_done(self, stage: str = "*") -> dict[str, int]:
        """Count the distinct finished shards of each stage."""
        shards = {mark.shard for mark in self.marks(DONE, stage)}
        return dict(Counter(name for name, _, _ in shards))

    def is_due(self, death: Death, num_shards: int) -> bool:
        """Whether so many whole shards are done, and one is being worked on: of one shard, none."""
        done = self.shards_done(death.stage).get(death.stage, 0)
        return bool(self.at_work(death.stage)) and done >= int(death.fraction * num_shards)

    def count(self) -> dict[str, Any]:
        """Count attempts, and what was done more than once; a ``Record``'s fields."""
        done = [mark.shard for mark in self.marks(DONE)]
        attempts = Counter(mark.shard for mark in self.marks(BEGUN))
        sizes = {shard: shard[2] - shard[1] for shard in attempts}
        return {
            "shards_by_stage": self.shards_done(),
            "num_begun": attempts.total(),
            "num_lost": attempts.total() - len(done),
            "num_redone": len(done) - len(set(done)),
            "repeated_items": sum((n - 1) * sizes[shard] for shard, n in attempts.items()),
            "num_items": sum(sizes.values()),
        }


@contextmanager
def driver(
    recipe: dict[str, Any], folder: Path, address: str, shard_seconds: float
) -> Generator[tuple[subprocess.Popen[bytes], Tally]]:
    """Start a run's driver with its run directory, tally and log below a folder; end it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, tally = folder / "recipe.yaml", Tally(folder / "tally")
    path.write_text(yaml.safe_dump(spot_recipe(recipe, folder / "run", address)))
    command = [sys.executable, "-m", "benchmarks.chaos.counted_run", str(path)]
    command += [str(tally.folder), str(shard_seconds)]
    with (folder / "log.txt").open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        yield child, tally
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(END_SECONDS)


def disturbed_run(
    cluster: SpotCluster,
    recipe: dict[str, Any],
    folder: Path,
    plan: Plan,
    num_shards: Mapping[str, int] | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Run a recipe while spot nodes die and come back; return what became of it.

    Args:
        cluster: Has as many spot nodes before as afterwards.
        recipe: Without run directory and cluster.
        folder: Gets run directory, log and tally.
        plan: What dies when.
        num_shards: Of each stage, in the undisturbed run; needed where nodes die.
        say: Hears of deaths.
    """
    size, before, started = cluster.num_spot, cluster.num_kills, time.monotonic()
    kills: Counter[str] = Counter()
    ahead = list(plan.deaths)
    with driver(recipe, folder, cluster.address, plan.shard_seconds) as (child, tally):
        while child.poll() is None and time.monotonic() - started < plan.limit_seconds:
            time.sleep(POLL_SECONDS)
            if ahead and tally.is_due(ahead[0], (num_shards or {})[ahead[0].stage]):
                death = ahead.pop(0)
                number = size if death.all_nodes else 1
                what = "given notice" if death.is_announced else "lost"
                say(f"{time.monotonic() - started:6.0f} s  {death.stage}: {number} nodes {what}")
                kills[death.stage] += number
                if death.is_announced:
                    cluster.drain_node(tally.marks(BEGUN, death.stage)[-1].node)
                else:
                    cluster.kill_nodes(number)
                    time.sleep(plan.shortage_seconds if death.all_nodes else 0)
                while cluster.num_spot < size:
                    cluster.add_node()
    return Record(
        seconds=time.monotonic() - started,
        exit_code=child.returncode,
        num_kills=cluster.num_kills - before,
        kills_by_stage=dict(kills),
        digests=digests_of(folder / "run" / "export"),
        **tally.count(),
    )


def kill_in_the_middle(
    cluster: SpotCluster,
    recipe: dict[str, Any],
    folder: Path,
    plan: Plan,
    num_shards: Mapping[str, int],
) -> float:
    """Begin a run; at the plan's first death kill driver, head and all nodes. Returns seconds."""
    started, death = time.monotonic(), plan.deaths[0]
    with driver(recipe, folder, cluster.address, plan.shard_seconds) as (child, tally):
        while not tally.is_due(death, num_shards[death.stage]):
            if child.poll() is not None or time.monotonic() - started > plan.limit_seconds:
                raise RuntimeError((folder / "log.txt").read_text())
            time.sleep(POLL_SECONDS)
        child.send_signal(signal.SIGKILL)
        cluster.kill_all()
    return time.monotonic() - started


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every exported file.

    Without what tells the time: the export stage's own folder, which lies in the same place, and
    the dataset's card.
    """
    own = {manifest.parent for manifest in folder.rglob(MANIFEST_NAME)}
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != CARD_NAME and own.isdisjoint(path.parents)
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
