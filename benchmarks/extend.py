"""Seconds of ``nncift extend`` against a run over everything, and what drift says of two corpora.

    python -m benchmarks.extend --data ../shared/data --json

A run on ``--old`` rows of T0, gone on from with ``--new`` more of T0, then with as many of GSM8K; a
full run over old and new T0 rows; and the union scored by the parent's network, to compare picks.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.extend import extend
from nncift_ray.pipeline import Blueprint, run
from nncift_ray.recipe.loading import make_config
from nncift_ray.recipe.sections import Config
from nncift_ray.runs import Run
from nncift_ray.runtime.driver import execute_here, run_stage
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput
from nncift_ray.runtime.progress import SilentReporter
from nncift_ray.runtime.ray_pool import ray_session

HERE = Path(__file__).parent
NAME = "extend_t0_cpu"
SHUFFLE_SEED = 0
PINNED = ("project", "score_pairs", "select")


def main() -> None:
    """Measure, write the page, print the JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--old", type=int, default=1500)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--keep", type=Path, help="Work in this folder and keep it.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.keep or Path(folder)
        found = measure(arguments.data, work, arguments.old, arguments.new)
    (arguments.out / f"{NAME}.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / f"{NAME}.md").write_text(page(found))
    if arguments.json:
        print(json.dumps(found))


def measure(data: Path, work: Path, num_old: int, num_new: int) -> dict[str, Any]:
    """Run everything and return the figures; Ray is started once, outside what is timed."""
    files = write_corpora(data, work, num_old, num_new)
    with ray_session(recipe(work / "parent", files["old"]).cluster):
        parent = recipe(work / "parent", files["old"])
        seconds: dict[str, float] = {}
        timed(seconds, "parent", lambda: run(parent, reporter=SilentReporter()))
        grown = timed(seconds, "extend", lambda: go_on(work, files["new"], "grown"))
        other = timed(seconds, "extend_other", lambda: go_on(work, files["other"], "other"))
        union = recipe(work / "union", files["old"], files["new"])
        whole = timed(seconds, "full", lambda: run(union, reporter=SilentReporter()))
    pinned = score_with(Run.open(str(work / "parent")).outputs["fit"], union, whole.outputs)
    picks = [set(outputs["select"].read("ranking")["example_id"].to_pylist())
             for outputs in (grown.outputs, pinned, whole.outputs)]  # fmt: skip
    return {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "num_old": parent_rows(grown.outputs) - num_new_rows(grown.outputs),
        "num_new": num_new_rows(grown.outputs),
        "seconds": seconds,
        "extend_speedup": seconds["full"] / seconds["extend"],
        "stage_seconds": {
            "extend": stage_seconds(grown.outputs, inherited=("label", "fit")),
            "full": stage_seconds(whole.outputs),
        },
        "teacher_requests": {"extend": 0, "full": whole.outputs["label"].num_rows("measurements")},
        "num_picks": len(picks[0]),
        "picks_as_with_the_same_network": len(picks[0] & picks[1]),
        "picks_as_with_new_labels": len(picks[0] & picks[2]),
        "drift_same_corpus": drift_of(grown.outputs),
        "drift_other_corpus": drift_of(other.outputs),
    }


def write_corpora(data: Path, work: Path, num_old: int, num_new: int) -> dict[str, str]:
    """Write shuffled rows of T0 to an old and a new file, and rows of GSM8K to a third."""
    with gzip.open(data / "t0_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = lines.readlines()
    random.Random(SHUFFLE_SEED).shuffle(rows)
    other = (data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {
        "old": rows[:num_old],
        "new": rows[num_old : num_old + num_new],
        "other": other[:num_new],
    }
    work.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (work / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    return {name: str(work / f"{name}.jsonl") for name in parts}


def recipe(run_dir: Path, *candidates: str) -> Config:
    """Return the recipe of all runs: DELIFT (SE) labels, facility location, a tenth."""
    return make_config(
        {
            "run_dir": str(run_dir),
            "data": {"candidates": list(candidates), "group_by": "task"},
            "teacher": {"kind": "delift_se"},
            "embedder": {"model": "embedded:all-minilm-l6-v2"},
            "selection": {"objective": "facility_location", "budget": 0.1},
        }
    )


def go_on(work: Path, file: str, name: str) -> Any:
    """Extend the parent with a file."""
    return extend(str(work / "parent"), [file], run_dir=str(work / name), reporter=SilentReporter())


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """Do something and note how long it took."""
    started = time.monotonic()
    result = work()
    seconds[name] = time.monotonic() - started
    return result


def score_with(
    networks: StageOutput, config: Config, outputs: dict[str, StageOutput]
) -> dict[str, StageOutput]:
    """Project, score and select a finished run's corpus with other networks."""
    blueprint = Blueprint(config)
    found = {**outputs, "fit": networks}
    for name in PINNED:
        stage = blueprint.steps[name](found)
        found[name] = run_stage(
            stage, Location.of(config.run_dir), execute=execute_here, reporter=SilentReporter()
        )
    return found


def parent_rows(outputs: dict[str, StageOutput]) -> int:
    """Count the candidates of the union."""
    return outputs["deduplicate"].num_rows("candidates")


def num_new_rows(outputs: dict[str, StageOutput]) -> int:
    """Count the new candidates."""
    return outputs["deduplicate"].manifest.num_rows("candidates")


def stage_seconds(
    outputs: dict[str, StageOutput], inherited: tuple[str, ...] = ()
) -> dict[str, float]:
    """Return the seconds of the stages that a run did itself."""
    return {
        name: output.manifest.wall_seconds
        for name, output in outputs.items()
        if name not in inherited
    }


def drift_of(outputs: dict[str, StageOutput]) -> dict[str, Any]:
    """Return what the drift stage found."""
    return outputs["drift"].manifest.facts()


def page(found: dict[str, Any]) -> str:
    """Write the figures as a page."""
    seconds, stages = found["seconds"], found["stage_seconds"]
    names = dict.fromkeys([*stages["full"], *stages["extend"]])
    rows = "\n".join(
        f"| {name} | {_seconds(stages['extend'].get(name))} "
        f"| {_seconds(stages['full'].get(name))} |"
        for name in names
    )
    drift = "\n".join(
        f"| {title} | {facts['median_distance']['new']:.3f} | "
        f"{facts['median_distance']['reference']:.3f} | {facts['distance']['farther']:.2f} | "
        f"{facts['distance']['ks']:.2f} | "
        f"{max(share['new'] for share in facts['ranges']):.1%} | "
        f"{max(share['reference'] for share in facts['ranges']):.1%} | "
        f"{'due' if facts['due'] else 'not due'} |"
        for title, facts in (
            ("more of T0", found["drift_same_corpus"]),
            ("GSM8K", found["drift_other_corpus"]),
        )
    )
    return f"""# Going on from a run: {found["num_old"]:,} rows of T0 and {found["num_new"]:,} more

`python -m benchmarks.extend --json`, commit {found["commit"]}, {found["machine"]}. Ray was started
before the clock; DELIFT (SE) labels, facility location, a tenth of the candidates.

| seconds | extend | run over everything |
|---|---:|---:|
{rows}
| all | {seconds["extend"]:.1f} | {seconds["full"]:.1f} |

`nncift extend` takes 1/{found["extend_speedup"]:.1f} of the time and asks the teacher nothing;
the full run asks it {found["teacher_requests"]["full"]:,} times (here a cosine each, so labels are
as cheap as they get).

Of {found["num_picks"]} picks {found["picks_as_with_the_same_network"]} are those of a run over
everything with the same network, whose embedder padded its batches otherwise;
{found["picks_as_with_new_labels"]} are those of the full run, which drew other labels and trained
another network.

Drift: median distance to the nearest labelled example, the chance that a new example is farther
from it than an unlabelled one of the labelled corpus, and the largest share of activations out of
the labelled range.

| new data | distance | corpus | farther | KS | out of range | corpus | labels |
|---|---:|---:|---:|---:|---:|---:|---|
{drift}
"""


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
