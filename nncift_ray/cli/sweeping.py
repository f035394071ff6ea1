"""``nncift sweep``: how many labels, and how large a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import Overrides, Recipe, app, console, explained, write_line
from nncift_ray.config import load_config
from nncift_ray.errors import ConfigError

if TYPE_CHECKING:
    from nncift_ray.pipeline.sweep import SweepPlan

Number = TypeVar("Number", int, float)


@app.command(
    epilog="Examples:  nncift sweep recipe.yaml   |   nncift sweep recipe.yaml "
    "--label-fraction 0.01,0.02,0.05 --hidden 32,100,256 --depth 1,2 --seeds 3   |   "
    "nncift sweep recipe.yaml --hidden 50,100 --dry-run"
)
def sweep(
    recipe: Recipe,
    set_: Overrides = None,
    label_fraction: Annotated[
        str | None,
        typer.Option(
            metavar="F,F,...",
            help="Fractions of the rows and of the columns to train on; by default four parts of "
            "what the recipe labels.",
        ),
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(metavar="H,H,...", help="Hidden units; by default the recipe's.")
    ] = None,
    depth: Annotated[
        str, typer.Option(metavar="D,D,...", help="Hidden layers. Only networks of 1 can score.")
    ] = "1",
    seeds: Annotated[int, typer.Option(help="Networks of each setting.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; start nothing.")] = False,
) -> None:
    """Train on parts of the labels with networks of several sizes; plot the error of each.

    Labels are made once and kept; so is every network that was measured.
    """
    with explained():
        config = load_config(recipe, set_ or [])
        fractions = _numbers("--label-fraction", label_fraction, float)
        widths, depths = _numbers("--hidden", hidden, int), _numbers("--depth", depth, int)

        from nncift_ray.pipeline.sweep import SweepGrid, plan_sweep
        from nncift_ray.pipeline.sweep import sweep as run_sweep
        from nncift_ray.report.sweep_table import sweep_table
        from nncift_ray.stages.driving.progress import LineReporter, TerminalReporter

        plan = plan_sweep(config, SweepGrid(fractions, widths, depths or (1,), seeds))
        if dry_run:
            _print_plan(plan)
            return
        reporter = TerminalReporter(console) if console.is_terminal else LineReporter(write_line)
        try:
            result = run_sweep(plan, reporter=reporter)
        finally:
            if isinstance(reporter, TerminalReporter):
                reporter.close()
        console.print(sweep_table(result.cells))
        write_line(f"table: {result.csv}, {result.parquet}")
        write_line(f"plot: {result.plot}")


def _numbers(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> tuple[Number, ...] | None:
    """Read numbers parted by commas.

    Raises:
        ConfigError: Naming the option and the part that is no number.
    """
    if text is None:
        return None
    numbers: list[Number] = []
    for part in text.split(","):
        try:
            numbers.append(kind(part.strip()))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise ConfigError(
                f"{option} {text}: {part.strip()!r} is none of the {wanted} parted by commas that "
                "are wanted, e.g. " + ("32,100" if kind is int else "0.01,0.05")
            ) from None
    return tuple(numbers)


def _print_plan(plan: SweepPlan) -> None:
    from nncift_ray.pipeline import make_plan

    table = Table(title=Text(f"{len(plan.cells)} networks"), title_justify="left")
    for name in ("block", "fraction", "hidden", "depth", "seeds"):
        table.add_column(name, justify="left" if name == "block" else "right")
    seeds_of: dict[tuple[str, float, int, int], int] = {}
    for cell in plan.cells:
        key = (cell.block, cell.fraction, cell.num_hidden, cell.depth)
        seeds_of[key] = seeds_of.get(key, 0) + 1
    for (block, fraction, num_hidden, depth), count in seeds_of.items():
        table.add_row(block, f"{fraction:g}", f"{num_hidden:,}", str(depth), str(count))
    console.print(table)
    for row in make_plan(plan.config).stages:
        if row.name in ("sample", "label"):
            console.print(Text(f"{row.name:<7} {row.state}: {row.amount}"))
    for notice in plan.notices:
        console.print(Text(f"note: {notice}"))
    console.print("Nothing was started.")
