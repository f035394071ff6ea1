"""``nncift extend``: go on from a finished run with new data and no new labels."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nncift_ray.cli.running import print_result, progress
from nncift_ray.cli.shared import Overrides, app, console, explained, write_line

if TYPE_CHECKING:
    from nncift_ray.pipeline import ExtensionPlan


@app.command(
    epilog="Examples:  nncift extend runs/mine --data new.jsonl   |   nncift extend runs/mine "
    "--data 'more/*.jsonl' --run-dir runs/mine_2 -s selection.budget=0.2   |   "
    "nncift extend runs/mine --data new.jsonl --dry-run"
)
def extend(
    run_dir: Annotated[str, typer.Argument(help="The finished run to go on from; not changed.")],
    data: Annotated[
        list[str],
        typer.Option(help="A file, glob or folder of new candidates; may be given several times."),
    ],
    new_run_dir: Annotated[
        str | None,
        typer.Option("--run-dir", help="Where to work; next to the run when not given."),
    ] = None,
    set_: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be done and start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a dry run as JSON.")] = False,
) -> None:
    """Add new candidates to a finished run and select again, without asking the teacher."""
    with explained():
        from nncift_ray.pipeline import extend as extend_run
        from nncift_ray.pipeline import plan_extension

        if dry_run:
            plan = plan_extension(run_dir, data, run_dir=new_run_dir, overrides=set_ or [])
            _print_plan(plan, as_json=as_json)
            return
        with progress() as reporter:
            result = extend_run(
                run_dir, data, run_dir=new_run_dir, overrides=set_ or [], reporter=reporter
            )
        print_result(result)
        from nncift_ray.pipeline.extending import describe_drift

        for line in describe_drift(result.outputs["drift"].manifest.facts()):
            write_line(line)


def _print_plan(plan: ExtensionPlan, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(plan)))
        return
    about = "" if plan.exact else "about "
    share = plan.num_pairs / max(1, plan.num_pairs_of_union)
    console.print(Text(f"goes on from   {plan.parent}"))
    console.print(Text(f"run directory  {plan.run_dir}"))
    console.print(
        f"corpus         {plan.num_old:,} candidates, and {about}{plan.num_new:,} of "
        f"{len(plan.files):,} new file(s), copies not counted"
    )
    console.print(
        f"to embed       {about}{plan.num_new:,} texts\n"
        f"to score       {about}{plan.num_pairs:,} pairs ({share:.0%} of a run over everything)\n"
        "to label       nothing: labels and network are those of the run"
    )
    console.print("Nothing was started.")
