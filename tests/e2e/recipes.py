"""A small corpus and a recipe for every stage, DELIFT with a tiny random model included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_models import make_tiny_llama

NUM_CANDIDATES, NUM_TARGETS, NUM_PAIRS = 300, 40, 120
# Small shards, so that every stage that can have several has several; one thread an actor, as the
# run in this process has: another number of threads rounds otherwise.
POOLS: dict[str, Any] = {
    "embedder": {"pool": {"num_cpus": 1, "shard_rows": 128}},
    "labels": {"pool": {"num_cpus": 1, "shard_rows": 40}},
    "pair_scores": {"pool": {"num_cpus": 1, "shard_rows": 128}},
    "profiles": {"pool": {"num_cpus": 1}},
}


def write_corpus(folder: Path) -> tuple[str, str]:
    """Write two candidate files and one target file, a few bad rows and copies among them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"prompt": f"Add {i} and {i % 9}.", "completion": f"That is {i + i % 9}."})
        for i in range(NUM_CANDIDATES)
    ]
    half = NUM_CANDIDATES // 2
    (folder / "a.jsonl").write_text("\n".join([*rows[:half], "{broken", rows[0]]) + "\n")
    (folder / "b.jsonl").write_text("\n".join([*rows[half:], '{"prompt": "no answer"}']) + "\n")
    targets = [
        json.dumps({"question": f"What is {i} + 3?", "answer": str(i + 3)})
        for i in range(NUM_TARGETS)
    ]
    (folder / "targets.jsonl").write_text("\n".join(targets) + "\n")
    return str(folder / "[ab].jsonl"), str(folder / "targets.jsonl")


def write_recipe(folder: Path, *, teacher: str = "delift") -> Path:
    """Write corpus, model and recipe to a folder and return the recipe."""
    candidates, targets = write_corpus(folder / "corpus")
    tree: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "data": {"candidates": [candidates], "targets": [targets]},
        "teacher": {"kind": teacher},
        "selection": {"objective": "facility_location", "budget": 0.1},
        "network": {"num_epochs": 3, "min_steps": 0},
        **POOLS,
        "embedder": {"model": "embedded:all-minilm-l6-v2", **POOLS["embedder"]},
        "labels": {"label_pairs": NUM_PAIRS, **POOLS["labels"]},
        "cluster": "ray",
    }
    if teacher == "delift":
        model = make_tiny_llama(folder / "model")
        tree["teacher"] |= {"model": str(model), "engine": "transformers", "max_length": 256}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def short_recipe(
    folder: Path, num_candidates: int, num_targets: int, shard_pairs: int
) -> dict[str, Any]:
    """Label all pairs and select by the labels: the short way to a subset."""
    data: dict[str, list[str]] = {}
    for name, count in (("candidates", num_candidates), ("targets", num_targets)):
        rows = [{"prompt": f"{name}: add {i}", "completion": str(i % 9)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data[name] = [str(folder / f"{name}.jsonl")]
    return {
        "data": data,
        "teacher": {"kind": "delift_se"},
        "embedder": {"model": "embedded:all-minilm-l6-v2"},
        "labels": {"group_pairs": shard_pairs, "pool": {"shard_rows": shard_pairs}},
        "pair_scores": {"by": "teacher", "top_k": 5},
        "selection": {"objective": "facility_location", "budget": 0.25},
    }
