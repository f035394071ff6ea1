"""The driver dies by SIGKILL in every stage in turn; the same command finishes as if it had not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nncift_ray.config import load_config
from nncift_ray.pipeline import RunResult, run
from nncift_ray.pipeline.blueprint import GRADIENT_STAGES, PARTITION_STAGES, STAGE_NAMES
from nncift_ray.stages.progress import SilentReporter
from nncift_ray.storage.output import MANIFEST_NAME, SHARD_FOLDER
from tests.e2e.recipes import NUM_PAIRS, write_recipe

SECONDS_TO_LIVE = 280
# Stages of several shards die after their first, the others when they have begun. Those left out
# are one shard of bookkeeping each, and go through the same driver.
MOMENTS = [
    ("ingest", "1"),
    ("embed", "1"),
    ("label", "1"),
    ("fit", "start"),
    ("score_pairs", "1"),
    ("export", "start"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> RunResult:
    config = load_config(recipe, [f"run_dir={recipe.parent / 'undisturbed'}"])
    return run(config, reporter=SilentReporter())


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(
    recipe: Path, undisturbed: RunResult
) -> None:
    run_dir = recipe.parent / "run"
    finished: dict[str, dict[str, int]] = {}
    for stage, moment in MOMENTS:
        command = [sys.executable, "-m", "tests.e2e.die_at", str(recipe), stage, moment]
        died = subprocess.run(command, timeout=SECONDS_TO_LIVE, check=False)  # noqa: S603
        assert died.returncode == -signal.SIGKILL, f"in {stage} at {moment}"
        finished[stage] = shard_times(run_dir, stage)
    result = run(load_config(recipe), reporter=SilentReporter())
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
    absent = ("index", "teacher_scores", *GRADIENT_STAGES, *PARTITION_STAGES)
    assert again.skipped == [name for name in STAGE_NAMES if name not in absent]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_while_a_users_own_teacher_measures_goes_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, teacher="tests.e2e.deadly_teacher:DeadlyTeacher")
    command = [sys.executable, "-m", "tests.e2e.die_at", str(recipe), "label", "inside"]
    died = subprocess.run(command, timeout=SECONDS_TO_LIVE, check=False)  # noqa: S603
    assert died.returncode == -signal.SIGKILL
    assert not list((tmp_path / "run" / "label").glob(f"*/{MANIFEST_NAME}"))
    result = run(load_config(recipe), reporter=SilentReporter(), until="utility")
    labels = result.outputs["utility"].read("labels")
    assert labels.num_rows == NUM_PAIRS
    assert result.outputs["label"].manifest.num_failures == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_actors_and_shards_select_the_same(recipe: Path, undisturbed: RunResult) -> None:
    run_dir = recipe.parent / "other_shape"
    overrides = [
        f"run_dir={run_dir}",
        "embedder.pool={num_actors: 2, num_cpus: 1, shard_rows: 600}",
        "labels.pool={num_actors: 2, num_cpus: 1, shard_rows: 500}",
        "pair_scores.pool={num_actors: 1, shard_rows: 5000}",
        "pair_scores.column_tile=100",
    ]
    result = run(load_config(recipe, overrides), reporter=SilentReporter())
    ranking = result.outputs["select"].read("ranking")
    assert ranking.equals(undisturbed.outputs["select"].read("ranking"))
    shutil.rmtree(run_dir)
