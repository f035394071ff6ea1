"""The public protocol of "A Critical Look at Targeted Instruction Selection" as recipes.

    python -m benchmarks.critical_look write FOLDER          # ten recipes for a node of 8 GPUs
    python -m benchmarks.critical_look plan FOLDER           # hours and US dollars of each
    python -m benchmarks.critical_look page                  # critical_look.md, on stand-ins

Two pools (Tulu 2 with 197,000 rows, Dolci Instruct with 200,000), five tasks with a few queries
each, subsets of 500 to 10,000 rows, whole models fine-tuned with three seeds. A task's files are
FOLDER/data/TASK_queries.jsonl and TASK_test.jsonl, converted from the data that the paper's authors
publish. Source: arXiv 2602.14696 and its repository's README.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pages import markdown_table
from nncift_ray.evaluation.costs import EvaluationPlan, plan_evaluation
from nncift_ray.recipe.loading import load_config

PAGE = Path(__file__).with_suffix(".md")
#: Source of the hub and rows, by pool.
POOLS = {
    "tulu": ("hf:Harvard-DCML/tulu-v2-197K-processed", 197_000),
    "dolci": ("hf:Harvard-DCML/dolci-instruct-sft-200K-processed", 200_000),
}
TASKS = ("bbh", "codex", "gsm8k", "tydiqa", "mmlu_pro")
BUDGETS = (500, 1_000, 2_500, 5_000, 10_000)
SEEDS = (0, 1, 2)
#: What the page's plan takes for a pool's row and a task: letters of prompt and answer, rows.
STAND_IN_CHARS, STAND_IN_QUERIES, STAND_IN_TESTS = (600, 1_000), 50, 1_000
RECIPE = """\
# Critical Look (arXiv 2602.14696): {pool} for {task}, on one node of 8 GPUs. Not run by us.
run_dir: runs/critical_look_{pool}_{task}
data:
  candidates: ["{source}"]
  targets: [{folder}/data/{task}_queries.jsonl]
teacher:
  kind: delift
  model: meta-llama/Llama-2-7b-hf
  engine: vllm
  dtype: bfloat16
  less:  # the warm-up on 10,000 rows
    warmup_fraction: {warmup:.4f}
    batch_size: 128
    pool: {{num_gpus: 1, num_actors: 8}}
embedder:
  model: sentence-transformers/gtr-t5-base
  pool: {{num_gpus: 1, num_actors: 8}}
profiles:
  pool: {{num_gpus: 1, num_actors: 8}}
labels:
  label_pairs: 200000
  group_pairs: 512
  pool: {{num_gpus: 1, num_actors: 8, shard_rows: 4096}}
selection:
  objective: facility_location
  budget: 10000
evaluation:
  tests: {{{task}: [{folder}/data/{task}_test.jsonl]}}
  methods: [initial, random, cosine, rds_plus, less, landmarks, nn_cift+delift]
  budgets: [{budgets}]
  random_seeds: 3
  modes: [tuned]
  metrics: [nll, exact_match]
  model: meta-llama/Llama-2-7b-hf
  engine: vllm
  tuning:
    method: full
    num_epochs: 2
    learning_rate: 2.0e-5
    lr_warmup_fraction: 0.03
    batch_size: 128
    max_length: 2048
    pool: {{num_gpus: 1, num_actors: 1}}
  generation:
    max_tokens: 512
    temperature: 0
    pool: {{num_gpus: 1, num_actors: 8}}
"""


def write_recipes(folder: Path) -> list[Path]:
    """Write a recipe for each pool and task."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for pool, (source, num_rows) in POOLS.items():
        shares = ", ".join(f"{count / num_rows:.6f}" for count in BUDGETS)
        for task in TASKS:
            paths.append(folder / f"{pool}_{task}.yaml")
            text = RECIPE.format(pool=pool, task=task, source=source, folder=folder,
                                 warmup=10_000 / num_rows, budgets=shares)  # fmt: skip
            paths[-1].write_text(text, encoding="utf-8")
    return paths


def write_stand_ins(folder: Path, num_rows: int, task: str) -> list[str]:
    """Write files of a pool's and a task's size; return the keys that make a recipe read them."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    sizes = {"pool": num_rows, f"{task}_queries": STAND_IN_QUERIES, f"{task}_test": STAND_IN_TESTS}
    for name, count in sizes.items():
        with (data / f"{name}.jsonl").open("w", encoding="utf-8") as out:
            for number in range(count):
                first = f"{name} {number} "
                row = {"prompt": first.ljust(STAND_IN_CHARS[0], "a"),
                       "response": first.ljust(STAND_IN_CHARS[1], "b")}  # fmt: skip
                out.write(json.dumps(row) + "\n")
    return [f"data.candidates=[{data / 'pool.jsonl'}]"]


def plan(recipe: Path, keys: Sequence[str] = ()) -> EvaluationPlan:
    """Return what `nncift evaluate --dry-run` says of a recipe on GPUs, for one seed."""
    return plan_evaluation(load_config(recipe, list(keys)), hardware="gpu")


def cost_lines(made: EvaluationPlan) -> list[list[str]]:
    """Return a line a method's selection, and one of all teaching and testing by size."""
    sums: dict[str, list[float]] = {}
    for row in made.rows:
        size = row.what.rpartition(" ")[0].rpartition(" ")[2]
        name = row.what
        if size.replace(".", "").isdigit():
            count = float(size) / 100 * made.num_candidates  # which is itself an estimate
            name = f"teach and test, {min(BUDGETS, key=lambda one: abs(one - count)):,} rows"
        known = sums.setdefault(name, [0.0, 0.0, 0.0])
        for at, value in enumerate((row.num_tokens / 1e6, row.seconds / 3600, row.cost_usd)):
            known[at] += value
    return [[name, f"{tokens:,.0f}", f"{hours:,.1f}", f"{price:,.0f}"]
            for name, (tokens, hours, price) in sums.items()]  # fmt: skip


def write_page() -> None:
    """Plan one recipe on stand-ins, and write what to run beside the empty table."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = write_recipes(Path(scratch))[0]
        made = plan(recipe, write_stand_ins(Path(scratch), POOLS["tulu"][1], TASKS[0]))
    total = made.total
    costs = markdown_table(
        ["step", "million tokens", "GPU hours", "US dollars"],
        [*cost_lines(made), ["all", f"{total.num_tokens / 1e6:,.0f}",
                             f"{total.seconds / 3600:,.1f}", f"{total.cost_usd:,.0f}"]],
    )  # fmt: skip
    empty = markdown_table(
        ["pool, task, method", *(f"{count:,}" for count in BUDGETS)],
        [["not run", *("" for _ in BUDGETS)]],
    )
    chars = "{:,} + {:,}".format(*STAND_IN_CHARS)
    PAGE.write_text(
        f"""# critical_look

The public protocol of "A Critical Look at Targeted Instruction Selection" (arXiv 2602.14696) as
recipes: two pools (Tulu 2 with 197,000 rows, Dolci Instruct with 200,000), five tasks with a few
queries each, subsets of 500 to 10,000 rows, Llama-2-7B fine-tuned whole with three seeds.

**Nobody has run this yet: the table is empty.** NLL and exact match of `nncift evaluate` stand for
the paper's scores (its programs also run code and read multiple choice). `less` takes the mean over
targets, where the paper's best takes turns. A whole model is trained on one GPU, some 110 GB: with
80 GB add `-s evaluation.tuning.method=lora`.

## What to run

A task's files are `runs/critical_look/data/TASK_queries.jsonl` and `TASK_test.jsonl`, converted
from what the paper's authors publish.

```bash
python -m benchmarks.critical_look write runs/critical_look    # ten recipes
python -m benchmarks.critical_look plan runs/critical_look     # what each costs, by your files
for seed in {" ".join(map(str, SEEDS))}; do    # subsets are shared
  nncift evaluate runs/critical_look/tulu_gsm8k.yaml -s evaluation.tuning.seed=$seed
  cp -r runs/critical_look_tulu_gsm8k/evaluation seed_$seed
done
```

## Results

{empty}

## What it costs

As `nncift evaluate --dry-run` guesses it for one pool, task and seed, at its prices, on stand-ins:
{STAND_IN_QUERIES} queries, {STAND_IN_TESTS:,} test rows, rows of {chars} letters.
Eight actors share the selections' hours; other seeds repeat the lines of teaching only.

{costs}

Times 2 pools and 5 tasks, with {len(SEEDS)} times the teaching: at most
{10 * (total.cost_usd + (len(SEEDS) - 1) * teaching_cost(made)):,.0f} US dollars.
Embeddings, states and gradients are counted for each task; a pool's run directory holds them once.
""",
        encoding="utf-8",
    )


def teaching_cost(made: EvaluationPlan) -> float:
    """Return the price of all but the selections."""
    return sum(row.cost_usd for row in made.rows if not row.what.startswith("select by"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write recipes, plan them, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.critical_look")
    parser.add_argument("do", choices=["write", "plan", "page"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/critical_look"))
    options = parser.parse_args(arguments)
    if options.do == "page":
        write_page()
        return 0
    for recipe in write_recipes(options.folder):
        if options.do == "plan":
            total = plan(recipe).total
            print(f"{recipe}: {total.seconds / 3600:,.1f} h, {total.cost_usd:,.0f} US dollars")
        else:
            print(f"nncift evaluate {recipe}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
