"""Matrices of labels: every helped example asked about with every helper in context.

    python -m benchmarks.influence.labels FOLDER --corpus mixed
    python -m benchmarks.influence.labels FOLDER --corpus mixed --teacher less   # of the same rows
    python -m benchmarks.influence.labels FOLDER --corpus mixed --teacher selectit   # likewise

A matrix of DELIFT is kept column by column: a stopped run goes on where it was. SelectIT rates
every row by itself, helpers first: ``selectit.npy`` beside the matrix.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.t0 import DATA
from nncift_ray.corpus.examples import Example, make_example_id
from nncift_ray.demo.corpus import CLEAN, make_demo_rows
from nncift_ray.engines.models import (
    EMBEDDED_EMBEDDER,
    EMBEDDED_LANGUAGE_MODEL,
    find_embedded,
)
from nncift_ray.engines.transformers import TransformersEngine
from nncift_ray.pipeline import run
from nncift_ray.recipe.sections import Config, EngineConfig
from nncift_ray.teachers.base import LabelRequest, Measurement, Teacher
from nncift_ray.teachers.delift import DeliftTeacher
from nncift_ray.teachers.selectit import SelectItTeacher

MAX_TOKENS = {"gsm8k": 130}  # of prompt and response; else 90, so that a matrix takes minutes
MIN_OF_TEMPLATE, NUM_TEMPLATES = 6, 18

Rows = Iterator[tuple[str, str, str]]  # source, prompt, response


def _t0(generator: random.Random) -> Rows:
    by_task: dict[str, list[tuple[str, str, str]]] = {}
    with gzip.open(DATA / "t0_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            row = (f"t0:{record['task']}", record["prompt"], record["completion"])
            by_task.setdefault(record["task"], []).append(row)
    tasks = sorted(by_task)
    generator.shuffle(tasks)
    for task in tasks[: 3 * NUM_TEMPLATES]:
        yield from generator.sample(by_task[task], min(len(by_task[task]), 3 * MIN_OF_TEMPLATE))


def _gsm8k(generator: random.Random) -> Rows:
    records = [json.loads(line) for line in (DATA / "gsm8k_train.jsonl").open(encoding="utf-8")]
    for record in generator.sample(records, 1000):
        yield "gsm8k", record["question"], record["answer"]


def _alpaca(generator: random.Random) -> Rows:
    records = json.loads((DATA / "alpaca_demo.json").read_text(encoding="utf-8"))
    for record in generator.sample(records, len(records)):
        given = f"\n{record['input']}" if record["input"] else ""
        yield "alpaca", record["instruction"] + given, record["output"]


def _toolcall(generator: random.Random) -> Rows:
    path = DATA / "sharegpt_toolcall_demo.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in generator.sample(records, len(records)):
        asked, answered = record["conversations"][:2]
        if answered["from"] in ("gpt", "function_call"):
            yield "toolcall", asked["value"], answered["value"]


def _demo(generator: random.Random) -> Rows:
    for row in make_demo_rows(generator.randrange(10**6), 300, 8)[0]:
        if row.kind == CLEAN:
            yield f"demo:{row.family}", row.prompt, row.completion


#: Of each corpus: (rows, where from) of what both sides are drawn from.
MIXED: dict[str, tuple[int, Callable[[random.Random], Rows]]] = {
    "t0": (98, _t0),
    "gsm8k": (48, _gsm8k),
    "alpaca": (70, _alpaca),
    "toolcall": (30, _toolcall),
    "demo": (58, _demo),
}


def draw_rows(corpus: str, seed: int, num_tokens: Callable[[str], int]) -> list[dict[str, str]]:
    """Return distinct short rows of a corpus in random order."""
    generator = random.Random(seed)
    parts = MIXED if corpus == "mixed" else {name: (304, MIXED[name][1]) for name in ("t0",)}
    found: dict[str, dict[str, str]] = {}
    for name, (count, read) in parts.items():
        limit, size = MAX_TOKENS.get(name, 90), len(found) + count
        for source, prompt, response in read(generator):
            length = num_tokens(response)
            if 2 <= length and length + num_tokens(prompt) <= limit and len(found) < size:
                row = {"source": source, "prompt": prompt, "response": response}
                found.setdefault(make_example_id(prompt, response), row)
    rows = list(found.values())
    generator.shuffle(rows)
    return rows


def main() -> None:
    """Make or complete one matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", choices=["mixed", "t0", "t0_gsm8k"], default="mixed")
    parser.add_argument("--rows", type=int, default=216)
    parser.add_argument("--helpers", type=int, default=80)
    parser.add_argument("--seed", type=int, default=20261130)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teacher", choices=["delift", "less", "selectit"], default="delift")
    options = parser.parse_args()
    if options.teacher == "less":
        label_by_less(options.folder / options.corpus, options.helpers, options.rows)
        return
    path, _ = find_embedded(EMBEDDED_LANGUAGE_MODEL, "language model")
    engine = TransformersEngine(
        path, EngineConfig(dtype="float32", batch_tokens=1024, template="paper"), device="cpu",
        num_threads=options.threads,
    )  # fmt: skip
    folder = options.folder / options.corpus
    if options.teacher == "selectit":
        rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        requests = [LabelRequest(example) for example in map(_example, rows)]
        np.save(folder / "selectit.npy", measure(SelectItTeacher([engine]), requests))
        return
    folder.mkdir(parents=True, exist_ok=True)

    def num_tokens(text: str) -> int:
        return len(engine.encode(text))

    corpus = "t0" if options.corpus == "t0_gsm8k" else options.corpus
    rows = draw_rows(corpus, options.seed, num_tokens)[: options.helpers + options.rows]
    if options.corpus == "t0_gsm8k":
        generator = random.Random(options.seed)
        targets = [row for row in _gsm8k(generator) if sum(map(num_tokens, row[1:])) <= 130]
        names = ("source", "prompt", "response")
        rows = rows[: options.helpers]
        rows += [dict(zip(names, row, strict=True)) for row in targets[: options.rows]]
    (folder / "rows.json").write_text(json.dumps(rows))
    examples = [_example(row) for row in rows]
    helpers, helped = examples[: options.helpers], examples[options.helpers :]
    teacher = DeliftTeacher(engine)
    alone = measure(teacher, [LabelRequest(one) for one in helped])
    for number, helper in enumerate(helpers):
        file = folder / f"helper-{number:03d}.npy"
        if not file.exists():
            with_helper = measure(teacher, [LabelRequest(one, helper) for one in helped])
            np.save(file, alone - with_helper)
            print(f"{options.corpus}: helper {number + 1} of {len(helpers)}", flush=True)


def _example(row: Mapping[str, str]) -> Example:
    prompt, response = row["prompt"], row["response"]
    return Example(make_example_id(prompt, response), prompt, response)


#: Small enough for two cores; the adapter, the projection and the two gradients are LESS's own.
LESS = {
    "rank": 8,
    "alpha": 32,
    "num_epochs": 2,
    "projection_dim": 1024,
    "batch_size": 8,
    "warmup_fraction": 1.0,
}


def label_by_less(folder: Path, helpers: int, helped: int) -> None:
    """Label the first pairs of a matrix by LESS, into the folder ``NAME_less`` beside it."""
    out = folder.with_name(f"{folder.name}_less")
    out.mkdir(exist_ok=True)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    num_helpers = len(rows) - len(np.load(folder / "helper-000.npy"))
    rows = [*rows[:num_helpers][:helpers], *rows[num_helpers:][:helped]]
    num_helpers = min(num_helpers, helpers)
    ids = [make_example_id(row["prompt"], row["response"]) for row in rows]
    sides = {"candidates": rows[:num_helpers], "targets": rows[num_helpers:]}
    for name, part in sides.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    result = run(
        Config.model_validate(
            {
                "run_dir": str(out / "run"),
                "data": {name: [str(out / f"{name}.jsonl")] for name in sides},
                "teacher": {
                    "kind": "less",
                    "model": EMBEDDED_LANGUAGE_MODEL,
                    "template": "paper",
                    "less": LESS,
                },
                "embedder": {"model": EMBEDDED_EMBEDDER},
                "labels": {"fraction": 1.0, "holdout_pairs": 0},
                "profiles": {"model": None},  # labels need none
                "selection": {"objective": "top_k", "budget": 0.1},
            }
        ),
        until="label",
    )
    labels = result.outputs["label"].read("labels").to_pylist()
    known = {
        side: result.outputs["deduplicate"].read(side, ["example_id"])["example_id"].to_pylist()
        for side in sides
    }
    place = {name: at for at, name in enumerate(ids)}
    found = np.full((len(rows) - num_helpers, num_helpers), np.nan)
    for label in labels:
        helped = place[known["targets"][label["helped_index"]]] - num_helpers
        found[helped, place[known["candidates"][label["helper_index"]]]] = label["utility"]
    measured = np.isfinite(found)
    kept_I, kept_J = measured.any(axis=1), measured.any(axis=0)
    kept = [*np.flatnonzero(kept_J), *(num_helpers + np.flatnonzero(kept_I))]
    (out / "rows.json").write_text(json.dumps([rows[at] for at in kept]))
    for number, j in enumerate(np.flatnonzero(kept_J)):
        np.save(out / f"helper-{number:03d}.npy", found[kept_I, j])


def measure(teacher: Teacher, requests: list[LabelRequest]) -> np.ndarray:
    """Return what a teacher measures of each request; a failed one stops the benchmark."""
    found = teacher.measure(requests)
    bad = [one for one in found if not isinstance(one, Measurement)]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(found)} requests failed: {bad[0]}")
    return np.array([one.value for one in found if isinstance(one, Measurement)])


if __name__ == "__main__":
    main()
