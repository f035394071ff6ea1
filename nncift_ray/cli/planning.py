"""``nncift plan | show-config | doctor``: what may be asked before anything is started."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import Overrides, Recipe, app, console, explained
from nncift_ray.config import Config, dump_config, load_config

SECONDS_PER_MINUTE, SECONDS_PER_HOUR = 60, 3600


@app.command(epilog="Examples:  nncift plan recipe.yaml   |   nncift plan recipe.yaml --json")
def plan(
    recipe: Recipe,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a run would do, how long it may take and cost; start nothing."""
    with explained():
        print_plan(load_config(recipe, set_ or []), as_json=as_json)


@app.command(
    "show-config", epilog="Example:  nncift show-config recipe.yaml -s teacher.kind=delift"
)
def show_config(recipe: Recipe, set_: Overrides = None) -> None:
    """Print the whole recipe, defaults and overrides included, as YAML."""
    with explained():
        typer.echo(dump_config(load_config(recipe, set_ or [])), nl=False)


@app.command(epilog="Examples:  nncift doctor   |   nncift doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine can run, and what to install for the rest."""
    from nncift_ray.pipeline.doctor import examine

    with explained():
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


def print_plan(config: Config, *, as_json: bool = False) -> None:
    """Print what a run would do, as a table or as JSON."""
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
            "" if row.state == "done" else duration(row.seconds),
            "" if row.state == "done" else f"${row.cost_usd:,.2f}",
        )
    table.add_section()
    table.add_row("all", "", "", "", duration(made.seconds), f"${made.cost_usd:,.2f}")
    console.print(table)
    console.print(
        f"Times are guesses for one {made.hardware} actor a stage; set "
        "cluster.teacher_tokens_per_second and the prices for better ones. Nothing was started."
    )
    for notice in made.notices:
        console.print(Text(f"note: {notice}"))


def duration(seconds: float) -> str:
    """Say a time in the unit that fits it."""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds / SECONDS_PER_MINUTE:.0f} min"
    return f"{seconds / SECONDS_PER_HOUR:.1f} h"
