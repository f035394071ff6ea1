"""``nncift query``: what a run knows of one example."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import ID_CHARS, app, console, excerpt, explained

if TYPE_CHECKING:
    from nncift_ray.pipeline.querying import FoundExample, InfluenceList, QueryAnswer

EXCERPT_CHARS = 90


@app.command(
    epilog="Examples:  nncift query runs/mine --id 3f9a12   |   nncift query s3://bucket/run "
    "--id 3f9a12 --top 25 --json"
)
def query(
    run_dir: Annotated[str, typer.Argument(help="A run directory whose pairs are scored.")],
    example_id: Annotated[
        str, typer.Option("--id", help="Id of an example, or a beginning that is its alone.")
    ],
    top: Annotated[int, typer.Option(help="How many to list, each way.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the examples that help one example most, and those that it helps most."""
    with explained():
        from nncift_ray.pipeline import open_run
        from nncift_ray.pipeline import query as ask

        answer = ask(open_run(run_dir), example_id, top)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(answer)))
        else:
            _print_answer(answer)


def _print_answer(answer: QueryAnswer) -> None:
    for found in answer.found_as:
        console.print(Text(f"{found.role} {found.example_id}", "bold"))
        console.print(Text(f"  {found.source}:{found.line}{_in_subset(found)}"))
        console.print(Text(f"  {excerpt(found.prompt, EXCERPT_CHARS)}"))
        console.print(Text(f"  -> {excerpt(found.response, EXCERPT_CHARS)}", "dim"))
    if answer.score is not None:
        score = answer.score
        console.print(
            f"score {score.value:.4g} ({score.meaning}), rank {score.rank:,} of "
            f"{score.num_candidates:,} candidates"
        )
    for made in answer.lists:
        console.print(_table(made))
    if answer.lists:
        console.print(Text(f"influence: {answer.unit}; raw and signed, of every pair scored"))
    for note in answer.notes:
        console.print(Text(f"note: {note}"))


def _table(made: InfluenceList) -> Table:
    role = made.neighbours[0].example.role if made.neighbours else "example"
    words = {
        "helpers": f"What helps this {made.of_role} most",
        "helped": f"Which {role}s it helps most",
    }
    title = f"{words[made.direction]} ({made.block}, best of {made.num_scored:,})"
    table = Table(title=Text(title), title_justify="left")
    for name in ("", "influence", "subset"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("prompt")  # the one column that gives way on a narrow terminal
    table.add_column("source", no_wrap=True)
    for row in made.neighbours:
        found = row.example
        table.add_row(
            str(row.rank),
            f"{row.influence:+.4f}",
            "" if found.subset_rank is None else f"#{found.subset_rank}",
            found.example_id[:ID_CHARS],
            Text(excerpt(found.prompt, EXCERPT_CHARS)),
            Text(f"{found.source.rsplit('/', 1)[-1]}:{found.line}"),
        )
    return table


def _in_subset(found: FoundExample) -> str:
    if found.role != "candidate":
        return ""
    rank = found.subset_rank
    return ", not in the subset" if rank is None else f", number {rank:,} of the subset"
