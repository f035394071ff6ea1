"""``nncift explain | diff``: why an example was picked or not, and how two subsets differ."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import ID_CHARS, app, console, excerpt, explained

if TYPE_CHECKING:
    from nncift_ray.pipeline.comparing import Comparison
    from nncift_ray.pipeline.explaining import Explanation, Taker
    from nncift_ray.pipeline.querying import FoundExample

EXCERPT_CHARS = 80


@app.command(
    epilog="Examples:  nncift explain runs/mine --id 3f9a12   |   nncift explain s3://bucket/run "
    "--id 3f9a12 --json"
)
def explain(
    run_dir: Annotated[str, typer.Argument(help="A run directory with a finished selection.")],
    example_id: Annotated[
        str, typer.Option("--id", help="Id of a candidate, or a beginning that is its alone.")
    ],
    top: Annotated[int, typer.Option(help="Rows and picks to name.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say why an example was picked and what it covers, or why not and who took its place."""
    with explained():
        from nncift_ray.pipeline import open_run
        from nncift_ray.pipeline.explaining import explain as find_reasons

        found = find_reasons(open_run(run_dir), example_id, top)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found)))
        else:
            _print_explanation(found)


@app.command(
    epilog="Examples:  nncift diff runs/a runs/b   |   nncift diff runs/a other/ids.txt --json"
)
def diff(
    first: Annotated[str, typer.Argument(help="A run directory, or an exported subset's file.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    top: Annotated[int, typer.Option(help="Picks of each side to name.", min=0)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two subsets: overlap by depth and by source, and what only one of them has."""
    with explained():
        from nncift_ray.pipeline.comparing import compare

        found = compare(first, second, top)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found)))
        else:
            _print_comparison(found)


def _print_explanation(found: Explanation) -> None:
    example = found.example
    console.print(Text(f"candidate {example.example_id}  {example.source}:{example.line}", "bold"))
    console.print(Text(f"  {excerpt(example.prompt, EXCERPT_CHARS)}"))
    console.print(Text(f"  -> {excerpt(example.response, EXCERPT_CHARS)}", "dim"))
    if found.picked:
        console.print(
            f"picked at rank {found.place:,} of {found.num_picks:,}: it added {found.gain:.4g} "
            f"(alone it is worth {found.alone_gain:.4g})"
        )
    else:
        console.print(
            f"not picked: it would add {found.gain:.4g} (alone it is worth {found.alone_gain:.4g}; "
            f"the last pick added {found.last_gain:.4g}). With more budget it could come at rank "
            f"{found.place:,} at the earliest, of {found.num_candidates:,}"
        )
    for reason in found.reasons:
        console.print(Text(f"because {reason}"))
    if found.covers:
        table = _table(f"best pick for {found.num_covered:,} rows, among them", "coverage")
        for row in found.covers:
            table.add_row(f"{row.coverage:.3f}", *_cells(row.example))
        console.print(table)
    _print_takers("who already gives what it would", found.taken_by)
    _print_takers("skipped candidates that it stands for", found.stands_for)


def _print_takers(title: str, takers: tuple[Taker, ...]) -> None:
    if not takers:
        return
    table = _table(title, "share", "cosine", "rank")
    for taker in takers:
        rank = taker.example.subset_rank
        table.add_row(
            f"{taker.share:.0%}",
            f"{taker.cosine:.3f}",
            "" if rank is None else f"{rank:,}",
            *_cells(taker.example),
        )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("prompt", overflow="fold")
    return table


def _cells(example: FoundExample) -> tuple[Text, Text]:
    return Text(example.example_id[:ID_CHARS]), Text(excerpt(example.prompt, EXCERPT_CHARS))


def _print_comparison(found: Comparison) -> None:
    console.print(Text(f"A  {found.a}: {found.num_a:,} picks"))
    console.print(Text(f"B  {found.b}: {found.num_b:,} picks"))
    table = Table(title=f"overlap (shares of {found.measured_by})", title_justify="left")
    for column in ("first", "A", "B", "shared", "of the smaller", "Jaccard"):
        table.add_column(column, justify="right")
    for row in found.overlaps:
        table.add_row(
            "all" if row.share is None else f"{row.share:.0%}",
            f"{row.num_a:,}",
            f"{row.num_b:,}",
            f"{row.shared:,}",
            f"{row.contained:.1%}",
            f"{row.jaccard:.3f}",
        )
    console.print(table)
    if found.rank_correlation is not None:
        console.print(f"order of the shared picks: Spearman {found.rank_correlation:.3f}")
    table = Table(title="by source", title_justify="left")
    table.add_column("source", overflow="fold")
    for column in ("A", "B", "shared"):
        table.add_column(column, justify="right")
    for source in found.sources:
        table.add_row(
            Text(source.source), f"{source.num_a:,}", f"{source.num_b:,}", f"{source.shared:,}"
        )
    console.print(table)
    sides = (("A", found.num_only_a, found.only_a), ("B", found.num_only_b, found.only_b))
    for name, count, picks in sides:
        console.print(f"only in {name}: {count:,}" + (", the first" if picks else ""))
        for pick in picks:
            console.print(Text(f"  {pick.rank:>8,}  {pick.example_id}  {pick.source}"))
