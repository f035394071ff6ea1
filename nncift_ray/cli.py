"""The command line: ``nncift run | plan | stage | status | show-config | doctor``.

Exit codes: 0 done, 1 unexpected, 2 recipe or usage, 3 data, 4 model, 5 stage, 6 storage,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import nncift_ray
from nncift_ray.config import Config, dump_config, load_config
from nncift_ray.errors import NnciftError

INTERRUPTED = 130
SECONDS_PER_MINUTE, SECONDS_PER_HOUR = 60, 3600

app = typer.Typer(
    name="nncift",
    help="Choose the instruction data that teaches a language model most (NN-CIFT on Ray).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Recipe = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. selection.budget=0.2."
    ),
]


@contextmanager
def _explained() -> Generator[None]:
    """Turn the errors a user can mend into one message and the right exit code."""
    try:
        yield
    except NnciftError as error:
        errors.print(Text(f"{type(error).__name__}: {error}", style="red"))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


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
    with _explained():
        config = load_config(recipe, set_ or [])
        if dry_run:
            _print_plan(config)
            return
        _run_until(config, None)


@app.command(epilog="Examples:  nncift plan recipe.yaml   |   nncift plan recipe.yaml --json")
def plan(
    recipe: Recipe,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run would do, how long it may take and cost; start nothing."""
    with _explained():
        _print_plan(load_config(recipe, set_ or []), as_json=as_json)


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
    with _explained():
        _run_until(load_config(recipe, set_ or []), name)


@app.command(epilog="Examples:  nncift status runs/mine   |   nncift status runs/mine --json")
def status(
    run_dir: Annotated[str, typer.Argument(help="A run directory, or its recipe.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which stages of a run are finished, begun or missing."""
    with _explained():
        from nncift_ray.pipeline import read_status

        if run_dir.endswith((".yaml", ".yml")):
            run_dir = load_config(run_dir).run_dir
        found = read_status(run_dir)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found)))
            return
        table = Table(title=Text(found.run_dir), title_justify="left")
        for column in ("stage", "state", "items", "shards", "worker s", "bad rows"):
            table.add_column(column, justify="left" if column in ("stage", "state") else "right")
        styles = {"done": "green", "begun": "yellow", "missing": "dim"}
        for row in found.stages:
            table.add_row(
                row.name,
                Text(row.state, styles[row.state]),
                f"{row.num_items:,}",
                str(row.num_shards),
                f"{row.seconds:,.1f}",
                f"{row.num_failures:,}",
            )
        console.print(table)


@app.command(
    "show-config", epilog="Example:  nncift show-config recipe.yaml -s teacher.kind=delift"
)
def show_config(recipe: Recipe, set_: Overrides = None) -> None:
    """Print the whole recipe, defaults and overrides included, as YAML."""
    with _explained():
        typer.echo(dump_config(load_config(recipe, set_ or [])), nl=False)


@app.command(epilog="Examples:  nncift doctor   |   nncift doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine can run, and what to install for the rest."""
    from nncift_ray.pipeline.doctor import examine

    with _explained():
        findings = examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        table = Table(show_header=False, box=None)
        for finding in findings:
            mark = Text("ok", "green") if finding.ok else Text("--", "yellow")
            table.add_row(mark, finding.name, Text(finding.found), Text(finding.remedy, "yellow"))
        console.print(table)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Choose the instruction data that teaches a language model most (NN-CIFT on Ray)."""
    if version:
        typer.echo(nncift_ray.__version__)
        raise typer.Exit


def _run_until(config: Config, last_stage: str | None) -> None:
    # Ray and torch take seconds to import: a wrong recipe fails before, and --help is quick.
    from nncift_ray.pipeline import run as run_pipeline
    from nncift_ray.report.terminal import summary_table
    from nncift_ray.stages.progress import LineReporter, TerminalReporter

    reporter = TerminalReporter(console) if console.is_terminal else LineReporter(_write_line)
    try:
        if last_stage is None:
            result = run_pipeline(config, reporter=reporter)
        else:
            result = run_pipeline(config, reporter=reporter, until=last_stage)
    finally:
        if isinstance(reporter, TerminalReporter):
            reporter.close()
    if result.report_data is not None:
        console.print(summary_table(result.report_data))
    if result.subset is not None and result.report is not None:
        _write_line(f"subset: {result.subset}")
        _write_line(f"report: {result.report}")


def _write_line(line: str) -> None:
    typer.echo(line)


def _print_plan(config: Config, *, as_json: bool = False) -> None:
    from nncift_ray.pipeline import make_plan

    made = make_plan(config)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(made)))
        return
    about = "" if made.corpus.exact else "about "
    console.print(Text(f"run directory  {made.run_dir}"))
    targets = f", {made.corpus.num_targets:,} targets" if made.corpus.num_targets else ""
    console.print(f"corpus         {about}{made.corpus.num_candidates:,} candidates{targets}")
    console.print(f"objective      {made.objective}, {made.budget}")
    table = Table()
    for column, side in (
        ("stage", "left"),
        ("state", "left"),
        ("what", "left"),
        ("shards left", "right"),
        ("est. time", "right"),
        ("est. price", "right"),
    ):
        table.add_column(column, justify="right" if side == "right" else "left")
    for row in made.stages:
        table.add_row(
            row.name,
            Text(row.state, "green" if row.state == "done" else ""),
            row.amount,
            "?" if row.num_shards is None else str(row.num_shards),
            "" if row.state == "done" else _duration(row.seconds),
            "" if row.state == "done" else f"${row.cost_usd:,.2f}",
        )
    table.add_section()
    table.add_row("all", "", "", "", _duration(made.seconds), f"${made.cost_usd:,.2f}")
    console.print(table)
    console.print(
        f"Times are guesses for one {made.hardware} actor a stage; set "
        "cluster.teacher_tokens_per_second and the prices for better ones. Nothing was started."
    )
    for notice in made.notices:
        console.print(Text(f"note: {notice}"))


def _duration(seconds: float) -> str:
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds / SECONDS_PER_MINUTE:.0f} min"
    return f"{seconds / SECONDS_PER_HOUR:.1f} h"


def main(run_app: Callable[[], Any] = app) -> None:
    """Run the command line."""
    # Hugging Face's own bars and Ray's usage question have no place in a run's output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(run_app())


if __name__ == "__main__":
    main()
