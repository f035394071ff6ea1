"""``nncift status``: what a run directory holds, and how a run that works in it gets on."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import app, console, explained
from nncift_ray.config import load_config

if TYPE_CHECKING:
    from nncift_ray.pipeline.status import RunStatus, StageStatus

WATCH_SECONDS = 2.0
STYLES = {"done": "green", "running": "cyan", "begun": "yellow", "missing": "dim"}
LEFT_COLUMNS = ("stage", "state")
COLUMNS = (*LEFT_COLUMNS, "done", "per s", "left", "worker s", "USD", "bad")


@app.command(
    epilog="Examples:  nncift status runs/mine   |   nncift status runs/mine --watch   |   "
    "nncift status s3://bucket/run --json"
)
def status(
    run_dir: Annotated[str, typer.Argument(help="A run directory, or its recipe.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; one a look with --watch.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds until the run ends.")
    ] = False,
) -> None:
    """Show which stages of a run are finished, running, begun or missing, how fast and how dear."""
    with explained():
        from nncift_ray.pipeline.status import StatusReader

        if run_dir.endswith((".yaml", ".yml")):
            run_dir = load_config(run_dir).run_dir
        reader = StatusReader(run_dir)
        found = reader.read()
        if as_json:
            typer.echo(to_json(found))
            while watch and not _ended(found):
                time.sleep(WATCH_SECONDS)
                found = reader.read()
                typer.echo(to_json(found))
            return
        if not watch:
            console.print(render(found))
            return
        with Live(render(found), console=console, auto_refresh=False) as live:
            while not _ended(found):
                time.sleep(WATCH_SECONDS)
                found = reader.read()
                live.update(render(found), refresh=True)


def _ended(found: RunStatus) -> bool:
    """Whether nothing will change: all done, or seen not to be running."""
    return found.complete or found.running is False


def to_json(found: RunStatus) -> str:
    """Write a state as one line of JSON."""
    return json.dumps(dataclasses.asdict(found) | {"complete": found.complete})


def render(found: RunStatus) -> RenderableType:
    """Draw a state as a table with a line below."""
    table = Table(title=Text(found.run_dir), title_justify="left")
    for column in COLUMNS:
        left = column in LEFT_COLUMNS
        # On a narrow terminal the numbers wrap; a name that is cut off says nothing.
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for row in found.stages:
        table.add_row(
            row.name,
            Text(row.state, STYLES[row.state]),
            _done(row),
            "" if row.units_per_second is None else f"{row.units_per_second:,.1f}",
            "" if row.seconds_left is None else _duration(row.seconds_left),
            f"{row.seconds:,.1f}",
            f"{row.cost_usd:,.2f}",
            f"{row.num_failures:,}",
        )
    return Group(table, *(Text(line) for line in summary(found)))


def summary(found: RunStatus) -> list[str]:
    """Say in a few lines whether the run is alive and what it has cost."""
    words = {True: "running", False: "not running", None: "whether it runs cannot be seen here"}
    state = "complete" if found.complete else words[found.running]
    lines = [f"{state}; about ${found.cost_usd:,.2f} for the workers' time so far"]
    for row in found.stages:
        tokens = (row.counts or {}).get("tokens", 0)
        if row.last_sign:
            lines.append(f"{row.name}: last sign of life {row.last_sign}")
        if row.last_sign and tokens:
            cached = (row.counts or {}).get("cached_tokens", 0)
            lines.append(f"{row.name}: {tokens:,} tokens, {cached / tokens:.0%} of them reused")
    return lines


def _done(row: StageStatus) -> str:
    if row.unit:
        share = row.units_done / row.units if row.units else 0.0
        return f"{row.units_done:,}/{row.units:,} {row.unit} ({share:.0%})"
    return f"{row.num_rows:,}" if row.num_rows else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
