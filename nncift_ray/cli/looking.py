"""``nncift status``: what a run directory holds."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import app, console, explained
from nncift_ray.config import load_config


@app.command(epilog="Examples:  nncift status runs/mine   |   nncift status runs/mine --json")
def status(
    run_dir: Annotated[str, typer.Argument(help="A run directory, or its recipe.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which stages of a run are finished, begun or missing."""
    with explained():
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
