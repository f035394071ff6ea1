"""``nncift evaluate``: does a subset teach a model more than a random one?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.planning import duration
from nncift_ray.cli.running import progress
from nncift_ray.cli.shared import Overrides, Recipe, app, console, explained, write_line
from nncift_ray.config import Config, load_config
from nncift_ray.errors import StageError

if TYPE_CHECKING:
    from nncift_ray.pipeline.evaluation.evaluating import EvaluationResult
    from nncift_ray.pipeline.evaluation.planning import EvaluationPlan, PlanRow

FAILURES_TOLD = 5


@app.command(
    epilog="Examples:  nncift evaluate recipe.yaml   |   nncift evaluate recipe.yaml --dry-run   "
    "|   nncift evaluate recipe.yaml -s 'evaluation.budgets=[0.1, 0.3]' "
    "-s 'evaluation.modes=[tuned]'"
)
def evaluate(
    recipe: Recipe,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print cells, hours and price; start nothing.")
    ] = False,
) -> None:
    """Teach a model with subsets of several methods and measure it on held-out rows.

    Compares methods x budgets x {in context, fine-tuned} x metrics, with confidence intervals
    against random subsets; run it again to go on after an interruption.
    """
    with explained():
        config = load_config(recipe, set_ or [])
        if dry_run:
            print_plan(config)
            return
        from nncift_ray.pipeline.evaluation.evaluating import evaluate as run_evaluation

        with progress() as reporter:
            result = run_evaluation(config, reporter=reporter)
        print_result(result)
        if result.failures:
            raise StageError(_describe_failures(result))


def print_plan(config: Config) -> None:
    """Print what an evaluation would do, as a table."""
    from nncift_ray.pipeline.evaluation.planning import plan_evaluation

    made = plan_evaluation(config)
    about = "" if made.exact else "about "
    tests = ", ".join(f"{name} ({rows:,} rows)" for name, rows in made.tests.items())
    console.print(Text(f"run directory  {made.run_dir}"))
    console.print(Text(f"candidates     {about}{made.num_candidates:,}"))
    console.print(Text(f"test sets      {tests}"))
    table = Table()
    for column in ("step", "what", "cells", "tokens", "est. time", "est. price"):
        table.add_column(column, justify="left" if column in ("step", "what") else "right")
    for row in made.rows:
        table.add_row(row.what, row.amount, str(row.num_cells or ""), *_amounts(row))
    table.add_section()
    table.add_row("all", "", f"{made.num_cells:,}", *_amounts(made))
    console.print(table)
    console.print(
        f"Times are guesses for one {made.hardware} actor a stage, from the very start: what is "
        "finished already costs nothing. Set cluster.teacher_tokens_per_second and the prices for "
        "better ones. Nothing was started."
    )
    for notice in made.notices:
        console.print(Text(f"note: {notice}"))


def _amounts(row: PlanRow | EvaluationPlan) -> tuple[str, str, str]:
    tokens = f"{row.num_tokens:,.0f}" if row.num_tokens else ""
    return tokens, duration(row.seconds), f"${row.cost_usd:,.2f}"


def print_result(result: EvaluationResult) -> None:
    """Print what an evaluation ended with."""
    from nncift_ray.report.evaluation_terminal import evaluation_tables

    console.print(evaluation_tables(result.files.data))
    write_line(f"tables: {result.files.folder}")
    write_line(f"page: {result.files.page}")


def _describe_failures(result: EvaluationResult) -> str:
    lines = [str(failure) for failure in result.failures[:FAILURES_TOLD]]
    more = len(result.failures) - FAILURES_TOLD
    if more > 0:
        lines.append(f"and {more} more reasons")
    num_parts = sum(len(failure.parts) for failure in result.failures)
    return (
        f"{num_parts} part(s) of the evaluation failed and are missing in its tables. The same "
        "command tries them again, and only them.\n  " + "\n  ".join(lines)
    )
