"""Write what a finished run measured as Markdown and JSON, to file with the benchmarks.

    python -m benchmarks.summarise_run runs/t0_delift --name t0_gsm8k_delift_cpu

Reads the run directory only; nothing is computed anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_commit, describe_machine
from nncift_ray.pipeline import RUN_RECORD
from nncift_ray.report.data import collect_mix, count_duplicates
from nncift_ray.runtime import schemas
from nncift_ray.runtime.files import Location
from nncift_ray.runtime.output import StageOutput

NUM_GROUPS = 12
MODELS = ("network", "additive_ridge", "mean", "zero", "random")
ORDERED = ("network", "additive_ridge", "cosine")


def read_run(run_dir: Path) -> dict[str, Any]:
    """Collect the figures of a finished run."""
    record = json.loads((run_dir / RUN_RECORD).read_text())
    outputs = {
        name: StageOutput.open(Location.of(str(run_dir)) / name / record["stages"][name])
        for name in record["stage_names"]
    }
    done = {name: output for name, output in outputs.items() if output is not None}
    examples, select = done["deduplicate"], done["select"]
    ranking = select.read("ranking", schema=schemas.RANKING)
    mix = collect_mix(
        examples, ranking["row_index"].to_numpy(), record["config"]["data"]["group_by"], select
    )
    measured = done["label"].read("measurements", schema=schemas.MEASUREMENTS)
    return {
        "commit": describe_commit(),
        "machine": describe_machine(),
        "environment": done["fit"].manifest.environment,
        "config": record["config"],
        "num_candidates": examples.num_rows("candidates"),
        "num_targets": examples.num_rows("targets"),
        "num_duplicates": count_duplicates(examples),
        "num_errors": sum(output.manifest.num_failures for output in done.values()),
        "num_picks": ranking.num_rows,
        "objective": select.manifest.settings["objective"],
        "objective_value": ranking["objective"][-1].as_py(),
        "random_objective": select.manifest.facts()["random_objective"],
        "upper_bound": select.manifest.facts()["upper_bound"],
        "share_of_best": select.manifest.facts()["share_of_best"],
        "optimizer": select.manifest.facts()["optimizer"],
        "stopped_by": select.manifest.facts()["stopped_by"],
        "num_requests": measured.num_rows,
        "request_tokens": sum(measured["num_tokens"].to_pylist()),
        "cached_tokens": sum(measured["num_cached_tokens"].to_pylist()),
        "minimal_tokens": sum(measured["num_minimal_tokens"].to_pylist()),
        "stages": [
            {
                "stage": name,
                "wall_seconds": round(output.manifest.wall_seconds, 1),
                "worker_seconds": round(output.manifest.worker_seconds, 1),
                "shards": len(output.manifest.shards),
                "bad_rows": output.manifest.num_failures,
            }
            for name, output in done.items()
        ],
        "fidelity": done["fit"].read("fidelity", schema=schemas.FIDELITY).to_pylist(),
        "groups": [
            {"group": row.group, "pool": row.pool, "subset": row.subset}
            for row in sorted(mix, key=lambda row: (-row.subset, row.group))
        ],
    }


def to_markdown(name: str, run: dict[str, Any]) -> str:
    """Lay the figures out as a page."""
    parts = [
        f"# {name}",
        f"{run['num_candidates']:,} candidates, {run['num_targets']:,} targets "
        f"({run['num_duplicates']} exact copies collapsed, {run['num_errors']} bad rows); "
        f"{run['num_picks']:,} picks by {run['objective']}; "
        f"objective {run['objective_value']:.1f}, a random subset {run['random_objective']:.1f}"
        f"{_of_best(run)}.",
        f"Machine: {run['machine']}. Commit {run['commit']}. Teacher: "
        f"{run['config']['teacher']['kind']}, {run['num_requests']:,} requests of "
        f"{run['request_tokens']:,} tokens, {run['cached_tokens']:,} of them from the cache"
        f"{_over_minimum(run)}.",
        "## Seconds by stage",
        _table(run["stages"], ["stage", "wall_seconds", "worker_seconds", "shards", "bad_rows"]),
        "## Fidelity by quadrant",
    ]
    for block in dict.fromkeys(row["block"] for row in run["fidelity"]):
        parts += [f"### {block}", _table(_fidelity_rows(run["fidelity"], block), None)]
    parts += ["## Groups most picked", _table(run["groups"][:NUM_GROUPS], None)]
    return "\n\n".join(parts) + "\n"


def _of_best(run: dict[str, Any]) -> str:
    """Say how near the picks are to the best; pages written before bounds were kept say nothing."""
    share = run.get("share_of_best")
    return "" if share is None else f", at least {share:.1%} of the best possible"


def _over_minimum(run: dict[str, Any]) -> str:
    if not run["minimal_tokens"]:
        return ""
    computed = run["request_tokens"] - run["cached_tokens"]
    return f" (computed over the least possible: {computed / run['minimal_tokens']:.2f})"


def _fidelity_rows(rows: list[dict[str, Any]], block: str) -> list[dict[str, Any]]:
    found = {(row["split"], row["model"]): row for row in rows if row["block"] == block}
    splits = dict.fromkeys(split for split, _ in found)
    table: list[dict[str, Any]] = []
    for split in splits:
        line: dict[str, Any] = {"split": split, "pairs": found[split, "network"]["num_pairs"]}
        known = [model for model in MODELS if (split, model) in found]
        for model in known:
            line[f"MSE {model}"] = f"{found[split, model]['scaled_mse']:.4f}"
        for model in [name for name in ORDERED if (split, name) in found]:
            for metric in ("r2", "spearman", "row_spearman", "interaction_correlation", "capture"):
                value = found[split, model][metric]
                line[f"{metric} {model}"] = "n/a" if value is None else f"{value:.2f}"
        table.append(line)
    return table


def _table(rows: list[dict[str, Any]], columns: list[str] | None) -> str:
    names = columns or list(rows[0])
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [" | ".join(str(row[name]) for name in names) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Keep the names of files, not where they lay."""
    data = config["data"] | {
        role: [Path(path).name for path in config["data"][role]]
        for role in ("candidates", "targets")
    }
    return config | {"run_dir": Path(config["run_dir"]).name, "data": data}


def main() -> None:
    """Write ``benchmarks/<name>.md`` and ``.json`` for a run directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    run = read_run(options.run_dir)
    run["config"] = _without_folders(run["config"])
    (options.folder / f"{options.name}.md").write_text(to_markdown(options.name, run))
    (options.folder / f"{options.name}.json").write_text(json.dumps(run, indent=1) + "\n")
    print(to_markdown(options.name, run))


if __name__ == "__main__":
    main()
