"""The driver dies by SIGKILL; the same command, on other actors, ends as if it had not died."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nncift_ray.pipeline import Blueprint, RunResult, run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.output import MANIFEST_NAME, SHARD_FOLDER
from nncift_ray.runtime.progress import SilentReporter
from tests.e2e.recipes import NUM_PAIRS

SECONDS_TO_LIVE = 400
# In the actors that embed, in those that ask the teacher, and before Ray Train. All stages go
# through one driver, whose shards tests/unit/runtime/test_driver.py loses one by one.
MOMENTS = [("embed", "1"), ("label", "1"), ("fit", "start")]
# How many actors there are and what each is handed; none of it may change a row.
OTHER_SHAPE = [
    "embedder.pool={num_actors: 2, num_cpus: 1, shard_rows: 600}",
    "labels.pool={num_actors: 2, num_cpus: 1, shard_rows: 30}",
    "pair_scores.pool={num_actors: 1, shard_rows: 5000}",
    "pair_scores.column_tile=100",
]
FINISHED_BEFORE_LABELS = ("ingest", "deduplicate", "embed")


class Listener(SilentReporter):
    """Remembers which stages had nothing left to do."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def stage_skipped(self, name: str, num_items: int) -> None:
        self.skipped.append(name)


def shard_times(run_dir: Path, stage: str) -> dict[str, int]:
    """Return when each finished shard of a stage was recorded."""
    records = run_dir.glob(f"{stage}/*/{SHARD_FOLDER}/*.json")
    return {record.name: record.stat().st_mtime_ns for record in records}


def die_at(recipe: Path, stage: str, moment: str) -> None:
    """Run a recipe in a process that is killed on its way."""
    command = [sys.executable, "-m", "tests.e2e.die_at", str(recipe), stage, moment]
    died = subprocess.run(command, timeout=SECONDS_TO_LIVE, check=False)  # noqa: S603
    assert died.returncode == -signal.SIGKILL, f"in {stage} at {moment}"


@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("shared_ray")
def test_a_killed_run_goes_on_with_other_actors_and_ends_as_an_undisturbed_one(
    recipe: Path, undisturbed: RunResult
) -> None:
    run_dir = recipe.parent / "run"
    finished: dict[str, dict[str, int]] = {}
    for stage, moment in MOMENTS:
        die_at(recipe, stage, moment)
        finished[stage] = shard_times(run_dir, stage)
    assert finished["embed"]
    assert finished["label"]
    result = run(load_config(recipe, OTHER_SHAPE), reporter=SilentReporter())
    for stage, records in finished.items():
        assert records.items() <= shard_times(run_dir, stage).items(), f"{stage} was redone"
    for name in ("subset.jsonl", "alpaca.json", "messages.jsonl"):
        first, second = (
            Path(done.run_dir.path) / "export" / name for done in (undisturbed, result)
        )
        assert first.read_bytes() == second.read_bytes()
    ranking = result.outputs["select"].read("ranking")
    assert ranking.equals(undisturbed.outputs["select"].read("ranking"))
    again = Listener()
    run(load_config(recipe), reporter=again)
    assert again.skipped == list(Blueprint(load_config(recipe)).steps)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("shared_ray")
def test_a_run_killed_while_a_users_own_teacher_measures_goes_on(
    recipe: Path, undisturbed: RunResult, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    for stage in FINISHED_BEFORE_LABELS:  # they do not depend on the teacher, so they are reused
        shutil.copytree(Path(undisturbed.run_dir.path) / stage, run_dir / stage)
    tree = yaml.safe_load(recipe.read_text()) | {"run_dir": str(run_dir)}
    tree["teacher"] = {
        "kind": "tests.e2e.deadly_teacher:DeadlyTeacher",
        "options": {"victim": str(tmp_path / "victim")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    die_at(tmp_path / "recipe.yaml", "label", "inside")
    assert not list((run_dir / "label").glob(f"*/{MANIFEST_NAME}"))
    listener = Listener()
    result = run(load_config(tmp_path / "recipe.yaml"), reporter=listener, until="label")
    assert listener.skipped[: len(FINISHED_BEFORE_LABELS)] == list(FINISHED_BEFORE_LABELS)
    labels = result.outputs["label"].read("labels")
    assert labels.num_rows == NUM_PAIRS
    assert result.outputs["label"].manifest.num_failures == 0
