"""What the commands share: the app, the consoles, arguments, and how errors end a command."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Context
from typer.core import TyperGroup

import nncift_ray
from nncift_ray.errors import ConfigError, NnciftError, StageError, StopRequested
from nncift_ray.recipe.loading import dump_config, load_config
from nncift_ray.recipe.secrets import redact, secret_values
from nncift_ray.recipe.sections import Config

if TYPE_CHECKING:
    from nncift_ray.evaluate.run import EvaluationPlan, EvaluationResult, PlanRow
    from nncift_ray.extend import ExtensionPlan
    from nncift_ray.pipeline import RunResult
    from nncift_ray.runs import (
        Comparison,
        Explanation,
        FoundExample,
        InfluenceList,
        QueryAnswer,
        RunStatus,
        StageStatus,
        Taker,
    )
    from nncift_ray.runtime.progress import Reporter
    from nncift_ray.submit import Job, JobRequest, JobServer
    from nncift_ray.sweep import SweepPlan


INTERRUPTED, STOPPED = 130, 143
ID_CHARS = 12  # of an example's id, in tables
#: In the order in which they are needed, which is how ``--help`` lists them.
COMMANDS = (
    "run",
    "plan",
    "stage",
    "status",
    "sweep",
    "evaluate",
    "query",
    "explain",
    "diff",
    "extend",
    "submit",
    "jobs",
    "show-config",
    "doctor",
)


class InOrder(TyperGroup):
    """Lists the commands by ``COMMANDS``; one that is missing there comes last."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names in order."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (*COMMANDS, *names).index(name))


app = typer.Typer(
    name="nncift",
    cls=InOrder,
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
def explained() -> Generator[None]:
    """Turn the errors a user can mend into one message and the right exit code."""
    try:
        yield
    except NnciftError as error:
        errors.print(Text(redact(f"{type(error).__name__}: {error}"), style="red"))
        raise typer.Exit(error.exit_code) from None
    except StopRequested:
        errors.print("stopped; finished shards are kept, the same command goes on from there")
        raise typer.Exit(STOPPED) from None
    except KeyboardInterrupt:
        errors.print("interrupted; finished shards are kept, the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def write_line(line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    typer.echo(line)


def excerpt(text: str, num_chars: int) -> str:
    """Return the head of a text on one line, without what a terminal would act on."""
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else "\ufffd" for char in line)
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"


# ``nncift plan | show-config | doctor``: what may be asked before anything is started.

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
    from nncift_ray.plan import examine

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
    from nncift_ray.plan import make_plan

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


# ``nncift run | stage``: what starts work.


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
    from nncift_ray.runtime.progress import LineReporter, TerminalReporter

    reporter = TerminalReporter(console) if console.is_terminal else LineReporter(write_line)
    try:
        yield reporter
    finally:
        if isinstance(reporter, TerminalReporter):
            reporter.close()


def print_result(result: RunResult) -> None:
    """Print what a run ended with."""
    from nncift_ray.report.page import summary_table

    if result.report_data is not None:
        console.print(summary_table(result.report_data))
    if result.subset is not None and result.report is not None:
        write_line(f"subset: {result.subset}")
        write_line(f"report: {result.report}")


# ``nncift status``: what a run directory holds, and how a run that works in it gets on.

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
        from nncift_ray.runs import StatusReader

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


# ``nncift query``: what a run knows of one example.

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
        from nncift_ray.runs import query as ask

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


# ``nncift explain | diff``: why an example was picked or not, and how two subsets differ.

EXCERPT_CHARS_of_explaining = 80


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
        from nncift_ray.runs import explain as find_reasons

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
        from nncift_ray.runs import compare

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
        table = _table_explaining(
            f"best pick for {found.num_covered:,} rows, among them", "coverage"
        )
        for row in found.covers:
            table.add_row(f"{row.coverage:.3f}", *_cells(row.example))
        console.print(table)
    _print_takers("who already gives what it would", found.taken_by)
    _print_takers("skipped candidates that it stands for", found.stands_for)


def _print_takers(title: str, takers: tuple[Taker, ...]) -> None:
    if not takers:
        return
    table = _table_explaining(title, "share", "cosine", "rank")
    for taker in takers:
        rank = taker.example.subset_rank
        table.add_row(
            f"{taker.share:.0%}",
            f"{taker.cosine:.3f}",
            "" if rank is None else f"{rank:,}",
            *_cells(taker.example),
        )
    console.print(table)


def _table_explaining(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("prompt", overflow="fold")
    return table


def _cells(example: FoundExample) -> tuple[Text, Text]:
    return Text(example.example_id[:ID_CHARS]), Text(
        excerpt(example.prompt, EXCERPT_CHARS_of_explaining)
    )


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


# ``nncift extend``: go on from a finished run with new data and no new labels.


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
        from nncift_ray.extend import extend as extend_run
        from nncift_ray.extend import plan_extension

        if dry_run:
            plan = plan_extension(run_dir, data, run_dir=new_run_dir, overrides=set_ or [])
            _print_plan(plan, as_json=as_json)
            return
        with progress() as reporter:
            result = extend_run(
                run_dir, data, run_dir=new_run_dir, overrides=set_ or [], reporter=reporter
            )
        print_result(result)
        from nncift_ray.extend import describe_drift

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


# ``nncift sweep``: how many labels, and how large a network.

Number = TypeVar("Number", int, float)


@app.command(
    epilog="Examples:  nncift sweep recipe.yaml   |   nncift sweep recipe.yaml "
    "--label-fraction 0.01,0.02,0.05 --hidden 32,100,256 --seeds 3   |   "
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
    seeds: Annotated[int, typer.Option(help="Networks of each setting.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done; start nothing.")] = False,
) -> None:
    """Train on parts of the labels with networks of several sizes; plot the error of each.

    Labels are made once and kept; so is every network that was measured.
    """
    with explained():
        config = load_config(recipe, set_ or [])
        fractions = _numbers("--label-fraction", label_fraction, float)
        widths = _numbers("--hidden", hidden, int)

        from nncift_ray.report.sweep import sweep_table
        from nncift_ray.runtime.progress import LineReporter, TerminalReporter
        from nncift_ray.sweep import SweepGrid, plan_sweep
        from nncift_ray.sweep import sweep as run_sweep

        plan = plan_sweep(config, SweepGrid(fractions, widths, seeds))
        if dry_run:
            _print_plan_sweeping(plan)
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


def _print_plan_sweeping(plan: SweepPlan) -> None:
    from nncift_ray.plan import make_plan

    table = Table(title=Text(f"{len(plan.cells)} networks"), title_justify="left")
    for name in ("block", "fraction", "hidden", "seeds"):
        table.add_column(name, justify="left" if name == "block" else "right")
    seeds_of: dict[tuple[str, float, int], int] = {}
    for cell in plan.cells:
        key = (cell.block, cell.fraction, cell.num_hidden)
        seeds_of[key] = seeds_of.get(key, 0) + 1
    for (block, fraction, num_hidden), count in seeds_of.items():
        table.add_row(block, f"{fraction:g}", f"{num_hidden:,}", str(count))
    console.print(table)
    for row in make_plan(plan.config).stages:
        if row.name == "label":
            console.print(Text(f"{row.name:<7} {row.state}: {row.amount}"))
    for notice in plan.notices:
        console.print(Text(f"note: {notice}"))
    console.print("Nothing was started.")


# ``nncift evaluate``: does a subset teach a model more than a random one?

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
            print_plan_of_evaluating(config)
            return
        from nncift_ray.evaluate.run import evaluate as run_evaluation

        with progress() as reporter:
            result = run_evaluation(config, reporter=reporter)
        print_result_of_evaluating(result)
        if result.failures:
            raise StageError(_describe_failures(result))


def print_plan_of_evaluating(config: Config) -> None:
    """Print what an evaluation would do, as a table."""
    from nncift_ray.evaluate.run import plan_evaluation

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


def print_result_of_evaluating(result: EvaluationResult) -> None:
    """Print what an evaluation ended with."""
    from nncift_ray.evaluate.page import evaluation_tables

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


# ``nncift submit | jobs``: the same work as a job of a Ray cluster.

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
#: Beyond what the driver has to end, until a job that was asked to stop counts as not stopping.
STOP_MARGIN_SECONDS = 30

Address = Annotated[
    str,
    typer.Option(help="The cluster's job server.", envvar="RAY_API_SERVER_ADDRESS"),
]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]

jobs = typer.Typer(
    help="List, read and stop the jobs of a cluster.",
    no_args_is_help=True,
    epilog="Examples:  nncift jobs list   |   nncift jobs logs ID --follow   |   "
    "nncift jobs stop ID",
)
app.add_typer(jobs, name="jobs")


@app.command(
    epilog="Examples:  nncift submit recipe.yaml -s run_dir=s3://bucket/runs/mine   |   "
    "nncift submit recipe.yaml --no-wait   |   "
    "nncift submit s3://bucket/runs/mine --command extend -- --data s3://bucket/new.jsonl"
)
def submit(
    recipe: Annotated[str, typer.Argument(help="The recipe; for extend, the finished run.")],
    extra: Annotated[
        list[str] | None, typer.Argument(help="Behind --: further arguments of the command.")
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    command: Annotated[str, typer.Option(help="What to do: run, evaluate or extend.")] = "run",
    set_: Overrides = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end, return its exit code.")
    ] = True,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="While waiting, show what the job writes.")
    ] = True,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="A folder to send: your own modules, small corpora."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of what in that folder stays behind.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Send this wheel of nncift_ray, not the code that runs.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Send no nncift_ray: the cluster's image has it.")
    ] = False,
    stop_wait: Annotated[
        int | None, typer.Option(min=1, help="Seconds to end in, once asked to stop.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check and pack, say what would be sent.")] = False,
) -> None:
    """Send a recipe to a cluster as a job: checked here, run there, followed to its end."""
    with explained(), tempfile.TemporaryDirectory(prefix="nncift-") as folder:
        from nncift_ray.submit import STOP_WAIT_SECONDS, JobServer, pack

        request = _request(recipe, command, set_ or [], extra or [], working_dir, exclude or [])
        server = None if dry_run else JobServer(address)
        token = _token() if server is None else server.token
        package = pack(
            Path(folder) / "job.zip",
            recipe=request.recipe,
            tree=working_dir,
            wheel=wheel,
            with_package=not installed,
            excludes=exclude or [],
            secrets=[*([token] if token else []), *secret_values()],
        )
        size = f"{len(package.names):,} files, {package.num_bytes / 1024**2:,.2f} MiB"
        if server is None:
            write_line("\n".join(package.names))
            write_line(f"{size}; would run: {request.entrypoint}")
            write_line("Nothing was sent.")
            return
        _warn_of_open_road(server)
        job_id = server.submit(request, package, stop_wait or STOP_WAIT_SECONDS)
        write_line(f"job {job_id}: {size} sent to {server.address}")
    _attend(server, job_id, wait=wait, follow=follow)


@jobs.command("list")
def list_jobs(
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the jobs that were submitted to a cluster, the newest first."""
    with explained():
        from nncift_ray.submit import JobServer

        found = JobServer(address).jobs()
    if as_json:
        typer.echo(json.dumps([_as_json(job) for job in found]))
        return
    table = Table()
    for column in ("job", "state", "started (UTC)", "minutes", "run"):
        table.add_column(column, overflow="fold")
    for job in found:
        started = f"{job.started:%Y-%m-%d %H:%M}" if job.started else ""
        run_dir = job.metadata.get("nncift_run_dir", "")
        table.add_row(job.job_id, job.status, started, _minutes(job), Text(run_dir))
    console.print(table)


@jobs.command("logs")
def show_logs(
    job_id: JobId,
    address: Address = DEFAULT_ADDRESS,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends; return its exit code.")
    ] = False,
) -> None:
    """Print what a job has written."""
    with explained():
        from nncift_ray.submit import JobServer

        server = JobServer(address)
        if not follow:
            typer.echo(server.logs(job_id), nl=False)
            return
    _attend(server, job_id, wait=True, follow=True)


@jobs.command("stop")
def stop_job(
    job_id: JobId,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Ask a job to end at a shard's edge; what is finished is kept."""
    with explained():
        from nncift_ray.submit import JobServer

        server = JobServer(address)
        job = server.job(job_id)
        if not server.stop(job_id):
            write_line(f"job {job_id} has ended already: {job.status}")
            return
        job = server.wait(job_id, job.stop_wait_seconds + STOP_MARGIN_SECONDS)
        if not job.is_over:
            write_line(f"job {job_id} was asked to stop and is {job.status} still")
            raise typer.Exit(1)
        write_line(
            f"job {job_id} {job.status}; finished shards are kept: submit the same again to go on"
        )


def _request(
    recipe: str,
    command: str,
    overrides: Sequence[str],
    extra: Sequence[str],
    working_dir: Path | None,
    excludes: Sequence[str],
) -> JobRequest:
    from nncift_ray.submit import EXTEND, RECIPE_COMMANDS, extend_request, list_tree, recipe_request

    there_are = {
        item.name or getattr(item.callback, "__name__", "") for item in app.registered_commands
    }
    known = [name for name in (*RECIPE_COMMANDS, EXTEND) if name in there_are]
    if command not in known:
        raise ConfigError(f"--command {command}: a job can {', '.join(known)}")
    if command == EXTEND:
        return extend_request(recipe, overrides, extra)
    sent = [] if working_dir is None else list_tree(working_dir, excludes)
    return recipe_request(load_config(recipe, overrides), command, sent_files=sent, extra=extra)


def _token() -> str | None:
    from nncift_ray.submit import find_token

    return find_token(os.environ, Path.home())


def _warn_of_open_road(server: JobServer) -> None:
    from nncift_ray.submit import goes_unencrypted

    if server.token and goes_unencrypted(server.address):
        errors.print(
            Text(
                f"note: the token and all else go to {server.address} unencrypted; a tunnel to "
                "the head node's loopback or https keeps them private",
                style="yellow",
            )
        )


def _attend(server: JobServer, job_id: str, *, wait: bool, follow: bool) -> None:
    """Stay with a job to its end and exit as it did."""
    where = "" if server.address == DEFAULT_ADDRESS else f" --address {server.address}"
    if not wait:
        write_line(f"follow it: nncift jobs logs {job_id} --follow{where}")
        write_line(f"stop it:   nncift jobs stop {job_id}{where}")
        return
    with explained():
        try:
            if follow:
                job = server.follow(job_id, lambda text: typer.echo(text, nl=False))
            else:
                job = server.wait(job_id)
        except KeyboardInterrupt:
            errors.print(f"\njob {job_id} goes on; stop it with: nncift jobs stop {job_id}{where}")
            raise typer.Exit(INTERRUPTED) from None
    write_line(f"job {job_id}: {job.status}")
    # A driver that ran has said why in its log; one that never ran has not.
    if job.return_code and job.message and (job.exit_code is None or not follow):
        errors.print(Text(job.message))
    if job.return_code:
        raise typer.Exit(job.return_code)


def _minutes(job: Job) -> str:
    if job.started is None or job.ended is None:
        return ""
    return f"{(job.ended - job.started).total_seconds() / 60:,.1f}"


def _as_json(job: Job) -> dict[str, object]:
    return {
        "job_id": job.job_id,
        "status": job.status,
        "started": job.started.isoformat() if job.started else None,
        "ended": job.ended.isoformat() if job.ended else None,
        "exit_code": job.exit_code,
        "entrypoint": job.entrypoint,
        **job.metadata,
    }


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Choose the instruction data that teaches a language model most (NN-CIFT on Ray)."""
    if version:
        typer.echo(nncift_ray.__version__)
        raise typer.Exit


def main(run_app: Callable[[], Any] = app) -> None:
    """Run the command line."""
    # Hugging Face's own bars and Ray's usage question have no place in a run's output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.exit(run_app())


if __name__ == "__main__":
    main()
