"""``nncift run | stage``: what starts work."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from nncift_ray.cli.planning import print_plan
from nncift_ray.cli.shared import Overrides, Recipe, app, console, explained, write_line
from nncift_ray.config import Config, load_config

if TYPE_CHECKING:
    from nncift_ray.pipeline import RunResult
    from nncift_ray.stages.driving.progress import Reporter


@app.command(
    epilog="Examples:  nncift run recipe.yaml   |   nncift run recipe.yaml "
    "-s selection.budget=0.2 -s run_dir=runs/b   |   nncift run recipe.yaml --dry-run"
)
def run(
    recipe: Recipe,
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and start nothing.")] = False,
) -> None:
    """Run a recipe to a ranked subset and a report; run it again to go on after an interruption."""
    with explained():
        config = load_config(recipe, set_ or [])
        if dry_run:
            print_plan(config)
            return
        _run_until(config, None)


@app.command(
    epilog="Examples:  nncift stage embed recipe.yaml   |   nncift stage label recipe.yaml "
    "-s labels.pool.num_actors=4"
)
def stage(
    name: Annotated[str, typer.Argument(help="The last stage to run, e.g. embed or fit.")],
    recipe: Recipe,
    set_: Overrides = None,
) -> None:
    """Run one stage, and before it whatever it needs that is not finished."""
    with explained():
        _run_until(load_config(recipe, set_ or []), name)


def _run_until(config: Config, last_stage: str | None) -> None:
    # Ray and torch take seconds to import: a wrong recipe fails before, and --help is quick.
    from nncift_ray.pipeline import run as run_pipeline

    with progress() as reporter:
        if last_stage is None:
            result = run_pipeline(config, reporter=reporter)
        else:
            result = run_pipeline(config, reporter=reporter, until=last_stage)
    print_result(result)


@contextmanager
def progress() -> Generator[Reporter]:
    """Show progress: bars on a terminal, else plain lines."""
    from nncift_ray.stages.driving.progress import LineReporter, TerminalReporter

    reporter = TerminalReporter(console) if console.is_terminal else LineReporter(write_line)
    try:
        yield reporter
    finally:
        if isinstance(reporter, TerminalReporter):
            reporter.close()


def print_result(result: RunResult) -> None:
    """Print what a run ended with."""
    from nncift_ray.report.terminal import summary_table

    if result.report_data is not None:
        console.print(summary_table(result.report_data))
    if result.subset is not None and result.report is not None:
        write_line(f"subset: {result.subset}")
        write_line(f"report: {result.report}")
