"""Run a recipe on a cluster that loses nodes, and compare it with a run that loses none."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos.cluster import MARKET, ON_DEMAND, SPOT, SpotCluster
from benchmarks.chaos.counted_run import BEGUN, DONE

POLL_SECONDS = 0.5
#: Stages whose actors live on spot nodes.
ON_SPOT = ("embed", "label", "score_pairs")


@dataclass(frozen=True)
class Plan:
    """Which nodes die and when."""

    every_seconds: float  # between two deaths, drawn from half to one and a half of it
    seed: int = 0
    all_at_once_every: int = 4  # of so many deaths one takes every spot node
    shortage_seconds: float = 10.0  # with no replacement, after such a death
    most: int = 1_000_000  # deaths; 0 for an undisturbed run


@dataclass(frozen=True)
class Record:
    """What became of a run."""

    seconds: float
    exit_code: int
    num_kills: int
    kills_by_stage: dict[str, int]
    num_shards: int  # distinct ones that were finished
    num_begun: int  # attempts
    lost_attempts: int  # begun and not finished
    repeated_items: int  # of shards that had been finished or begun before
    num_items: int
    digests: dict[str, str]  # SHA-256 of the exported files


def spot_recipe(recipe: dict[str, Any], run_dir: Path, address: str) -> dict[str, Any]:
    """Return a recipe with scoring and embedding on spot nodes, the rest on the head."""
    pool = {"labels": {MARKET: SPOT}, "num_cpus": 1, "num_actors": [1, 4]}
    tree = {**recipe, "run_dir": str(run_dir)}
    for section in ("embedder", "labels", "pair_scores"):
        own = tree.get(section, {})
        tree[section] = {**own, "pool": {**own.get("pool", {}), **pool}}
    tree["cluster"] = {"address": address, "labels": {MARKET: ON_DEMAND}}
    return tree


def disturbed_run(
    cluster: SpotCluster,
    recipe: dict[str, Any],
    folder: Path,
    plan: Plan,
    say: Callable[[str], None] = print,
) -> Record:
    """Run a recipe while spot nodes die and come back; return what became of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, tally, log = folder / "recipe.yaml", folder / "tally", folder / "log.txt"
    path.write_text(yaml.safe_dump(spot_recipe(recipe, folder / "run", cluster.address)))
    draw, size, before = random.Random(plan.seed), cluster.num_spot, cluster.num_kills
    kills: Counter[str] = Counter()
    started = time.monotonic()
    with log.open("wb") as out:
        command = [sys.executable, "-m", "benchmarks.chaos.counted_run", str(path), str(tally)]
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            next_death = started + draw.uniform(0.5, 1.5) * plan.every_seconds
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                if time.monotonic() < next_death or sum(kills.values()) >= plan.most:
                    continue
                stage = current_stage(tally)
                if stage in ON_SPOT:
                    is_flood = (sum(kills.values()) + 1) % plan.all_at_once_every == 0
                    cluster.kill_nodes(size if is_flood else 1)
                    kills[stage] = kills[stage] + (size if is_flood else 1)
                    say(f"{time.monotonic() - started:6.0f} s  {stage}: "
                        f"{'all nodes' if is_flood else 'a node'} lost")  # fmt: skip
                    time.sleep(plan.shortage_seconds if is_flood else 0)
                    while cluster.num_spot < size:
                        cluster.add_node()
                next_death = time.monotonic() + draw.uniform(0.5, 1.5) * plan.every_seconds
        finally:
            if child.poll() is None:
                child.kill()
    seconds = time.monotonic() - started
    return Record(
        seconds=seconds,
        exit_code=child.returncode,
        num_kills=cluster.num_kills - before,
        kills_by_stage=dict(kills),
        digests=digests_of(folder / "run" / "export"),
        **count(tally),
    )


def current_stage(tally: Path) -> str:
    """Return the stage of the shard that was begun last."""
    marks = tally.glob(f"*.{BEGUN}") if tally.is_dir() else iter(())
    newest = max(marks, key=lambda mark: mark.stat().st_mtime_ns, default=None)
    return "" if newest is None else newest.name.split(".")[0]


def count(tally: Path) -> dict[str, int]:
    """Count attempts, and what was done more than once."""
    begun = [mark.name.split(".") for mark in tally.glob(f"*.{BEGUN}")]
    done = {tuple(mark.name.split(".")[:3]) for mark in tally.glob(f"*.{DONE}")}
    finished = sum(1 for _ in tally.glob(f"*.{DONE}"))
    attempts = Counter((stage, start, stop) for stage, start, stop, *_ in begun)
    return {
        "num_shards": len(done),
        "num_begun": len(begun),
        "lost_attempts": len(begun) - finished,
        "repeated_items": sum(
            (times - 1) * (int(stop) - int(start)) for (_, start, stop), times in attempts.items()
        ),
        "num_items": sum(int(stop) - int(start) for _, start, stop in attempts),
    }


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every exported file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
