"""What the command line prints: tables and lines for people, from what the library returns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nncift_ray.evaluation.costs import EvaluationPlan, PlanRow
    from nncift_ray.explain import Explanation, InfluenceList, QueryAnswer, Redundancy
    from nncift_ray.extend import ExtensionPlan
    from nncift_ray.plan import Finding, RunPlan
    from nncift_ray.runs import Example, RunStatus, StageStatus
    from nncift_ray.runtime.progress import Reporter
    from nncift_ray.submit import Job
    from nncift_ray.sweep import SweepPlan, SweepPoint

console = Console()
#: Messages are not wrapped: a path that a terminal breaks cannot be copied.
errors = Console(stderr=True, soft_wrap=True)

ID_CHARS, EXCERPT_CHARS = 12, 90  # of an example, in tables
SECONDS_PER_MINUTE, SECONDS_PER_HOUR = 60, 3600
STATE_STYLES = {"done": "green", "running": "cyan", "begun": "yellow", "missing": "dim"}


def write_line(line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    typer.echo(line)


def write_json(found: Any) -> None:
    """Print plain values and dataclasses as one line of JSON."""
    typer.echo(json.dumps(found, default=dataclasses.asdict))


def write_notes(notes: Iterable[str]) -> None:
    """Print what a reader should know besides."""
    for note in notes:
        console.print(Text(f"note: {note}"))


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


def excerpt(text: str, num_chars: int = EXCERPT_CHARS) -> str:
    """Return the head of a text on one line, without what a terminal would act on."""
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else "\ufffd" for char in line)
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that fits it; "" where it is not known."""
    if seconds is None:
        return ""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    if seconds < SECONDS_PER_HOUR:
        return f"{seconds / SECONDS_PER_MINUTE:.0f} min"
    return f"{seconds / SECONDS_PER_HOUR:.1f} h"


def make_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    total: Sequence[object] = (),
) -> Table:
    """Return a table, with a line of totals where there is one.

    A column whose name begins with ">" is right-aligned. On a narrow terminal the column "~..."
    gives way; where there is none, the numbers do: a name that is cut off says nothing. Whole
    numbers get thousands separators, None an empty cell.
    """
    table = Table(title=Text(title) if title else None, title_justify="left")
    flexible = any(name.startswith("~") for name in columns)
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            name.lstrip(">~"),
            justify="right" if right else "left",
            no_wrap=not name.startswith("~") and (flexible or not right),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(_cell, row))
    if total:
        table.add_section()
        table.add_row(*map(_cell, total))
    return table


def _cell(value: object) -> Text:
    if isinstance(value, int):
        return Text(f"{value:,}")
    return value if isinstance(value, Text) else Text("" if value is None else str(value))


def print_plan(made: RunPlan) -> None:
    """Print what a run would do."""
    corpus, about = made.corpus, "" if made.corpus.exact else "about "
    targets = f", {corpus.num_targets:,} targets" if corpus.num_targets else ""
    console.print(Text(f"run directory  {made.run_dir}"))
    console.print(f"corpus         {about}{corpus.num_candidates:,} candidates{targets}")
    console.print(f"objective      {made.objective}, {made.budget}")
    rows = [
        (
            row.name,
            Text(row.state, STATE_STYLES.get(row.state, "")),
            row.amount,
            "?" if row.num_shards is None else row.num_shards,
            *(("", "") if row.state == "done" else _estimates(row)),
        )
        for row in made.stages
    ]
    columns = ("stage", "state", "~what", ">shards left", ">est. time", ">est. price")
    console.print(make_table(columns, rows, total=("all", "", "", "", *_estimates(made))))
    console.print(
        f"Times are guesses for one {made.hardware} actor a stage; set "
        "cluster.teacher_tokens_per_second and the prices for better ones. Nothing was started."
    )
    write_notes(made.notices)


def _estimates(row: Any) -> tuple[str, str]:
    return duration(row.seconds), f"${row.cost_usd:,.2f}"


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what a machine can run, and what to install for the rest."""
    table = Table(show_header=False, box=None)
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("--", "yellow")
        table.add_row(mark, finding.name, Text(finding.found), Text(finding.remedy, "yellow"))
    console.print(table)


def render_status(found: RunStatus) -> RenderableType:
    """Return the state of a run as a table with lines below."""
    rows = [
        (
            row.name,
            Text(row.state, STATE_STYLES[row.state]),
            _done(row),
            "" if row.units_per_second is None else f"{row.units_per_second:,.1f}",
            duration(row.seconds_left),
            f"{row.seconds:,.1f}",
            f"{row.cost_usd:,.2f}",
            row.num_failures,
        )
        for row in found.stages
    ]
    columns = ("stage", "state", ">done", ">per s", ">left", ">worker s", ">USD", ">bad")
    words = {True: "running", False: "not running", None: "whether it runs cannot be seen here"}
    state = "complete" if found.complete else words[found.running]
    lines = [f"{state}; about ${found.cost_usd:,.2f} for the workers' time so far"]
    for row in (row for row in found.stages if row.last_sign):
        lines.append(f"{row.name}: last sign of life {row.last_sign}")
        counts = row.counts or {}
        if tokens := counts.get("tokens", 0):
            reused = counts.get("cached_tokens", 0) / tokens
            lines.append(f"{row.name}: {tokens:,} tokens, {reused:.0%} of them reused")
    return Group(make_table(columns, rows, title=found.run_dir), *map(Text, lines))


def _done(row: StageStatus) -> str:
    if row.unit:
        share = row.units_done / row.units if row.units else 0.0
        return f"{row.units_done:,}/{row.units:,} {row.unit} ({share:.0%})"
    return f"{row.num_rows:,}" if row.num_rows else ""


def print_answer(answer: QueryAnswer) -> None:
    """Print what a run knows of an example."""
    for found in answer.found_as:
        place = ""
        if found.role == "candidate":
            rank = found.subset_rank
            place = ", not in the subset" if rank is None else f", number {rank:,} of the subset"
        _print_example(found, f"\n  {found.source}:{found.line}{place}")
    if score := answer.score:
        console.print(
            f"score {score.value:.4g} ({score.meaning}), rank {score.rank:,} of "
            f"{score.num_candidates:,} candidates"
        )
    for made in answer.lists:
        console.print(_influence_table(made))
    if answer.lists:
        console.print(Text(f"influence: {answer.unit}; raw and signed, of every pair scored"))
    write_notes(answer.notes)


def _print_example(example: Example, where: str) -> None:
    console.print(Text(f"{example.role} {example.example_id}", "bold"), Text(where), sep="")
    console.print(Text(f"  {excerpt(example.prompt)}"))
    console.print(Text(f"  -> {excerpt(example.response)}", "dim"))


def _influence_table(made: InfluenceList) -> Table:
    if made.direction == "helpers":
        title = f"What helps this {made.of_role} most"
    else:
        role = made.neighbours[0].example.role if made.neighbours else "example"
        title = f"Which {role}s it helps most"
    rows = []
    for row in made.neighbours:
        found = row.example
        source = f"{found.source.rsplit('/', 1)[-1]}:{found.line}"
        rank = "" if found.subset_rank is None else f"#{found.subset_rank}"
        rows.append((row.rank, f"{row.influence:+.4f}", rank, *_example_cells(found), source))
    columns = (">", ">influence", ">subset", "id", "~prompt", "source")
    return make_table(columns, rows, title=f"{title} ({made.block}, best of {made.num_scored:,})")


def _example_cells(example: Example) -> tuple[str, str]:
    return example.example_id[:ID_CHARS], excerpt(example.prompt)


def print_explanation(found: Explanation) -> None:
    """Print why a candidate was selected or not."""
    _print_example(found.example, f"  {found.example.source}:{found.example.line}")
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
        rows = [(f"{row.coverage:.3f}", *_example_cells(row.example)) for row in found.covers]
        title = f"best pick for {found.num_covered:,} rows, among them"
        console.print(make_table((">coverage", "id", "~prompt"), rows, title=title))
    _print_redundant("selected examples that it is redundant with", found.redundant_with)
    _print_redundant("high-gain candidates left out that are redundant with it", found.stands_for)


def _print_redundant(title: str, redundant: Sequence[Redundancy]) -> None:
    rows = []
    for row in redundant:
        share, cosine, rank = f"{row.share:.0%}", f"{row.cosine:.3f}", row.example.subset_rank
        rows.append((share, cosine, rank, *_example_cells(row.example)))
    if rows:
        columns = (">share", ">cosine", ">rank", "id", "~prompt")
        console.print(make_table(columns, rows, title=title))


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print how two selections differ."""
    for name in "ab":
        console.print(Text(f"{name.upper()}  {found[name]}: {found[f'num_{name}']:,} picks"))
    rows = [
        (
            "all" if row["share"] is None else f"{row['share']:.0%}",
            *(row["num_a"], row["num_b"], row["shared"]),
            f"{row['contained']:.1%}",
            f"{row['jaccard']:.3f}",
        )
        for row in found["overlaps"]
    ]
    columns = (">first", ">A", ">B", ">shared", ">of the smaller", ">Jaccard")
    console.print(make_table(columns, rows, title=f"overlap (shares of {found['measured_by']})"))
    if found["rank_correlation"] is not None:
        console.print(f"order of the shared picks: Spearman {found['rank_correlation']:.3f}")
    rows = [tuple(row.values()) for row in found["sources"]]
    console.print(make_table(("~source", ">A", ">B", ">shared"), rows, title="by source"))
    for name in "ab":
        picks = found[f"only_{name}"]
        more = ", the first" if picks else ""
        console.print(f"only in {name.upper()}: {found[f'num_only_{name}']:,}{more}")
        for pick in picks:
            console.print(Text(f"  {pick['rank']:>8,}  {pick['example_id']}  {pick['source']}"))


def print_extension(plan: ExtensionPlan) -> None:
    """Print what an extension of a run would do."""
    about = "" if plan.exact else "about "
    share = plan.num_pairs / max(1, plan.num_pairs_of_union)
    console.print(Text(f"goes on from   {plan.parent}\nrun directory  {plan.run_dir}"))
    console.print(
        f"corpus         {plan.num_old:,} candidates, and {about}{plan.num_new:,} of "
        f"{len(plan.files):,} new file(s), copies not counted\n"
        f"to embed       {about}{plan.num_new:,} texts\n"
        f"to score       {about}{plan.num_pairs:,} pairs ({share:.0%} of a run over everything)\n"
        "to label       nothing: labels and network are those of the run\n"
        "Nothing was started."
    )


def print_sweep_plan(plan: SweepPlan) -> None:
    """Print what a sweep would do."""
    seeds = Counter((cell.block, f"{cell.fraction:g}", cell.num_hidden) for cell in plan.cells)
    rows = [(*setting, count) for setting, count in seeds.items()]
    columns = ("block", ">fraction", ">hidden", ">seeds")
    console.print(make_table(columns, rows, title=f"{len(plan.cells)} networks"))
    console.print(Text(plan.labels))
    write_notes(plan.notices)
    console.print("Nothing was started.")


def print_sweep(points: Sequence[SweepPoint], quadrants: Sequence[str]) -> None:
    """Print the error of every setting, by quadrant, beside the additive ridge's."""
    rows = []
    for point in points:
        errors = [point.error(name) for name in quadrants] + [point.ridge_error]
        change = point.error("Q4") / point.ridge_error - 1 if point.ridge_error > 0 else math.nan
        setting = point.block, f"{point.fraction:g}", point.num_hidden, point.num_train_pairs
        shown = ("" if math.isnan(error) else f"{1000 * error:.3g}" for error in errors)
        better = "" if math.isnan(change) else f"{change:+.0%}"
        known = ("" if math.isnan(value) else f"{value:.2f}" for value in point.knowledge.values())
        rows.append((*setting, *shown, better, *known))
    columns = ("block", ">part", ">hidden", ">pairs", *(f">{name}" for name in quadrants))
    title = "1,000 x mean squared error on labels scaled to [0, 1], mean over seeds"
    columns = (*columns, ">ridge", ">vs", ">inter", ">capture", ">ridge's", ">cosine's")
    console.print(make_table(columns, rows, title=title))
    console.print(
        "Q4: ridge is the additive one, vs the network against it; inter the correlation beyond "
        "row and column effects; capture the share of the best helpers' gain, beside the rivals'"
    )


def print_evaluation_plan(made: EvaluationPlan) -> None:
    """Print what an evaluation would do."""
    about = "" if made.exact else "about "
    tests = ", ".join(f"{name} ({rows:,} rows)" for name, rows in made.tests.items())
    console.print(Text(f"run directory  {made.run_dir}"))
    console.print(Text(f"candidates     {about}{made.num_candidates:,}"))
    console.print(Text(f"test sets      {tests}"))
    rows = [
        (row.what, row.amount, row.num_cells or "", *_evaluation_cells(row)) for row in made.rows
    ]
    columns = ("step", "~what", ">cells", ">tokens", ">time", ">price")
    total = ("all", "", f"{made.total.num_cells:,}", *_evaluation_cells(made.total))
    console.print(make_table(columns, rows, total=total))
    console.print(
        f"Times are guesses for one {made.hardware} actor a stage, from the very start: what is "
        "finished already costs nothing. Set cluster.teacher_tokens_per_second and the prices for "
        "better ones. Nothing was started."
    )
    write_notes(made.notices)


def _evaluation_cells(row: PlanRow) -> tuple[str, ...]:
    return f"{row.num_tokens:,.0f}" if row.num_tokens else "", *_estimates(row)


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print the jobs of a cluster."""
    rows = []
    for job in jobs:
        started = f"{job.started:%Y-%m-%d %H:%M}" if job.started else ""
        minutes = ""
        if job.started and job.ended:
            minutes = f"{(job.ended - job.started).total_seconds() / 60:,.1f}"
        run_dir = job.metadata.get("nncift_run_dir", "")
        rows.append((job.job_id, job.status, started, minutes, run_dir))
    columns = ("~job", "~state", "~started (UTC)", "~minutes", "~run")
    console.print(make_table(columns, rows))
