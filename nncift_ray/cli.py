"""The command line: each command parses, calls the library, and prints what it returns."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.live import Live
from rich.text import Text

import nncift_ray
from nncift_ray import terminal
from nncift_ray.errors import ConfigError, NnciftError, StageError, StopRequested, redact
from nncift_ray.recipe.loading import commented_recipe, dump_config, load_config, recipe_schema
from nncift_ray.recipe.sections import Config
from nncift_ray.terminal import console, errors, write_json, write_line

if TYPE_CHECKING:
    from nncift_ray.pipeline import RunResult
    from nncift_ray.submit import JobServer

Number = TypeVar("Number", int, float)

INTERRUPTED, STOPPED = 130, 143
#: From Ctrl-C until the command ends whatever it waits for.
INTERRUPT_SECONDS = 12.0
FAILURES_TOLD = 5
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
#: Beyond what the driver has to end, until a job that was asked to stop counts as not stopping.
STOP_MARGIN_SECONDS = 30

app = typer.Typer(
    name="nncift",
    help="Choose the instruction data that teaches a language model most (NN-CIFT on Ray).",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
jobs = typer.Typer(
    help="List, read and stop the jobs of a cluster.",
    no_args_is_help=True,
    epilog="Examples:  nncift jobs list   |   nncift jobs logs ID --follow   |   "
    "nncift jobs stop ID",
)
app.add_typer(jobs, name="jobs")

Data = Annotated[
    list[str] | None,
    typer.Option(help="File, glob, folder or hf: name to choose from; may be repeated."),
]
Targets = Annotated[
    list[str] | None, typer.Option(help="Files of what the model should be good at.")
]
Budget = Annotated[str | None, typer.Option(help="A share (0.1), a number (500), or tokens (5M).")]
Teacher = Annotated[
    str | None,
    typer.Option(
        help="cosine (the default), delift, delift_se, less, selectit, a rival, or your own."
    ),
]
OwnRunDir = Annotated[
    str | None, typer.Option("--run-dir", help="Where the run lives; by default runs/NAME OF DATA.")
]
RecipeOrNone = Annotated[
    Path | None, typer.Argument(help="The recipe, a YAML file; not needed with --data.")
]
Recipe = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. selection.budget=0.2."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DryRun = Annotated[bool, typer.Option(help="Say what would be done and start nothing.")]
ExampleId = Annotated[
    str, typer.Option("--id", help="Id of an example, or a beginning that is its alone.")
]
RunDir = Annotated[str, typer.Argument(help="The run directory of a finished run.")]
Address = Annotated[
    str, typer.Option(help="The cluster's job server.", envvar="RAY_API_SERVER_ADDRESS")
]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]


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


# Imports inside the commands: Ray and torch take seconds. A wrong recipe fails before, and --help
# is quick.


@app.command(
    epilog="Examples:  nncift run --data corpus.jsonl --budget 0.1   |   nncift run recipe.yaml   "
    "|   nncift run recipe.yaml --dry-run"
)
def run(
    recipe: RecipeOrNone = None,
    data: Data = None,
    targets: Targets = None,
    budget: Budget = None,
    teacher: Teacher = None,
    run_dir: OwnRunDir = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe, or plain data, to a ranked subset and a report; run it again to go on."""
    with explained():
        if not dry_run:
            write_line(f"nncift {nncift_ray.__version__}: {recipe or ' '.join(data or ())}")
        own = {"targets": targets, "teacher": teacher, "run_dir": run_dir}
        made = _recipe(recipe, data, budget, set_, **own)
        _plan(made, as_json=False) if dry_run else _run(made)


@app.command(
    epilog="Examples:  nncift plan --data corpus.jsonl   |   nncift plan recipe.yaml --json"
)
def plan(
    recipe: RecipeOrNone = None,
    data: Data = None,
    targets: Targets = None,
    budget: Budget = None,
    teacher: Teacher = None,
    run_dir: OwnRunDir = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do, how long it may take and cost; start nothing."""
    with explained():
        own = {"targets": targets, "teacher": teacher, "run_dir": run_dir}
        _plan(_recipe(recipe, data, budget, set_, **own), as_json=as_json)


def _recipe(
    recipe: Path | None,
    data: list[str] | None,
    budget: str | None,
    set_: list[str] | None,
    **given: Any,
) -> Config:
    if recipe is None and not data:
        raise ConfigError("name a recipe, or data: nncift run --data corpus.jsonl --budget 0.1")
    from nncift_ray.library import make_recipe

    overrides = [] if budget is None else [f"selection.budget={_budget(budget)}"]
    return make_recipe(data, recipe=recipe, overrides=[*overrides, *(set_ or [])], **given)


def _budget(text: str) -> str:
    """Return a budget as YAML: "5M" counts tokens."""
    return text if text.replace(".", "", 1).isdigit() else f"{{tokens: {text}}}"


def _plan(recipe: Config, *, as_json: bool) -> None:
    from nncift_ray.plan import make_plan

    made = make_plan(recipe)
    write_json(made) if as_json else terminal.print_plan(made)


@app.command(epilog="Example:  nncift stage label recipe.yaml -s labels.pool.num_actors=4")
def stage(
    name: Annotated[str, typer.Argument(help="The last stage to run, e.g. embed or fit.")],
    recipe: Recipe,
    set_: Overrides = None,
) -> None:
    """Run one stage, and before it whatever it needs that is not finished."""
    with explained():
        _run(load_config(recipe, set_ or []), until=name)


def _run(config: Config, until: str = "export") -> None:
    from nncift_ray.library import run_recipe

    _print_result(run_recipe(config, until=until))


def _print_result(result: RunResult) -> None:
    if result.report_data is not None:
        from nncift_ray.report.page import summary_table

        console.print(summary_table(result.report_data))
    if result.subset is not None and result.report is not None:
        write_line(f"subset: {result.subset}")
        write_line(f"report: {result.report}")


@app.command(epilog="Example:  nncift init --data corpus.jsonl > recipe.yaml")
def init(data: Annotated[str, typer.Option(help="What to choose from.")] = "corpus.jsonl") -> None:
    """Print a recipe with every key, its default and what it means."""
    typer.echo(commented_recipe(data), nl=False)


@app.command(epilog="Example:  nncift schema > nncift.schema.json")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    write_json(recipe_schema())


@app.command("open", epilog="Example:  nncift open runs/mine")
def open_report(run_dir: RunDir) -> None:
    """Show the report of a run in a browser."""
    with explained():
        from nncift_ray.library import Run

        Run.open(run_dir).report.open()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    epilog="Examples:  nncift demo   |   nncift demo --targets --run-dir runs/demo_targets",
)
def demo(context: typer.Context) -> None:
    """Write a corpus with planted faults, select from it, count the faults that are left."""
    from nncift_ray.demo.run import main as run_demo

    raise typer.Exit(run_demo(context.args))


@app.command(epilog="Examples:  nncift status runs/mine   |   nncift status s3://b/run --watch")
def status(
    run_dir: Annotated[str, typer.Argument(help="A run directory, or its recipe.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; one a look with --watch.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds until the run ends.")
    ] = False,
) -> None:
    """Show which stages are finished, running, begun or missing, their throughput and cost."""
    with explained():
        from nncift_ray.runs import StatusReader

        if run_dir.endswith((".yaml", ".yml")):
            run_dir = load_config(run_dir).run_dir
        looks = StatusReader(run_dir).watch() if watch else iter([StatusReader(run_dir).read()])
        if as_json:
            for found in looks:
                write_json(found)
        elif watch:
            with Live(console=console, auto_refresh=False) as live:
                for found in looks:
                    live.update(terminal.render_status(found), refresh=True)
        else:
            console.print(terminal.render_status(next(looks)))


@app.command(epilog="Example:  nncift sweep recipe.yaml --label-fraction 0.01,0.05 --hidden 32,100")
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
    dry_run: DryRun = False,
) -> None:
    """Train on parts of the labels with networks of several sizes; plot the error of each.

    Labels are made once and kept; so is every network that was measured.
    """
    with explained():
        config = load_config(recipe, set_ or [])
        fractions = _numbers("--label-fraction", label_fraction, float)
        widths = _numbers("--hidden", hidden, int)
        from nncift_ray.sweep import SweepGrid, plan_sweep, quadrants_of, sweep_points
        from nncift_ray.sweep import sweep as run_sweep

        made = plan_sweep(config, SweepGrid(fractions, widths, seeds))
        if dry_run:
            terminal.print_sweep_plan(made)
            return
        with terminal.progress() as reporter:
            result = run_sweep(made, reporter=reporter)
        points = sweep_points(result.cells)
        terminal.print_sweep(points, quadrants_of(points))
        write_line(f"table: {result.csv}, {result.parquet}")
        write_line(f"plot: {result.plot}")


def _numbers(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> tuple[Number, ...] | None:
    """Return the numbers of a list with commas; ConfigError names the option and what is none."""
    if text is None:
        return None
    numbers: list[Number] = []
    for part in text.split(","):
        try:
            numbers.append(kind(part.strip()))
        except ValueError:
            what, example = ("whole numbers", "32,100") if kind is int else ("numbers", "0.01,0.05")
            raise ConfigError(
                f"{option} {text}: {part.strip()!r} is none of the {what} parted by commas that "
                f"are wanted, e.g. {example}"
            ) from None
    return tuple(numbers)


@app.command(epilog="Example:  nncift evaluate recipe.yaml -s 'evaluation.budgets=[0.1, 0.3]'")
def evaluate(recipe: Recipe, set_: Overrides = None, dry_run: DryRun = False) -> None:
    """Teach a model with subsets of several methods and measure it on held-out rows.

    Compares methods x budgets x {in context, fine-tuned} x metrics, with confidence intervals
    against random subsets; run it again to go on after an interruption.
    """
    with explained():
        config = load_config(recipe, set_ or [])
        from nncift_ray.evaluation.costs import plan_evaluation
        from nncift_ray.evaluation.page import evaluation_tables
        from nncift_ray.library import evaluate as run_evaluation

        if dry_run:
            terminal.print_evaluation_plan(plan_evaluation(config))
            return
        result = run_evaluation(config)
        console.print(evaluation_tables(result.data))
        write_line(f"tables: {result.folder}")
        write_line(f"page: {result.page}")
        if result.failures:
            raise StageError(_describe_failures(result.failures))


def _describe_failures(failures: Mapping[str, Sequence[str]]) -> str:
    from nncift_ray.evaluation.run import describe_failures

    lines, more = describe_failures(failures)[:FAILURES_TOLD], len(failures) - FAILURES_TOLD
    lines += [f"and {more} more reasons"] if more > 0 else []
    return (
        f"{sum(map(len, failures.values()))} part(s) of the evaluation failed and are missing in "
        "its tables. The same command tries them again, and only them.\n  " + "\n  ".join(lines)
    )


@app.command(epilog="Example:  nncift query s3://bucket/run --id 3f9a12 --top 25")
def query(
    run_dir: RunDir,
    example_id: ExampleId,
    top: Annotated[int, typer.Option(help="How many to list, each way.", min=1)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the examples that help one example most, and those that it helps most."""
    with explained():
        from nncift_ray.explain import query as ask
        from nncift_ray.runs import Run

        answer = ask(Run.open(run_dir), example_id, top)
        write_json(answer) if as_json else terminal.print_answer(answer)


@app.command(epilog="Example:  nncift explain runs/mine --id 3f9a12 --json")
def explain(
    run_dir: RunDir,
    example_id: ExampleId,
    top: Annotated[int, typer.Option(help="Rows and picks to name.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Say why an example was picked and what it covers, or why not: what it is redundant with."""
    with explained():
        from nncift_ray.explain import explain as find_reasons
        from nncift_ray.runs import Run

        found = find_reasons(Run.open(run_dir), example_id, top)
        write_json(found) if as_json else terminal.print_explanation(found)


@app.command(epilog="Examples:  nncift diff runs/a runs/b   |   nncift diff runs/a other/ids.txt")
def diff(
    first: Annotated[str, typer.Argument(help="A run directory, or an exported subset's file.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    top: Annotated[int, typer.Option(help="Picks of each side to name.", min=0)] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare two subsets: overlap by depth and by source, and what only one of them has."""
    with explained():
        from nncift_ray.explain import compare

        found = compare(first, second, top)
        write_json(found) if as_json else terminal.print_comparison(found)


@app.command(epilog="Example:  nncift push runs/mine owner/name   (then again with --yes)")
def push(
    run_dir: RunDir,
    repo: Annotated[str, typer.Argument(help="The data set on the hub, owner/name.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it nothing is sent.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Everybody may read a data set that is made.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing, as without --yes.")
    ] = False,
) -> None:
    """Upload the selected data set with its card to the Hugging Face hub, as HF_TOKEN may."""
    with explained():
        from nncift_ray.runs import push_dataset

        pushed = push_dataset(run_dir, repo, upload=yes and not dry_run, private=not public)
        for name, size in pushed.files.items():
            write_line(f"{name}  {size:,} bytes")
        write_line(
            f"uploaded: {pushed.address}"
            if pushed.address
            else f"nothing sent; --yes uploads these {len(pushed.files)} files to {repo}"
        )


@app.command(epilog="Example:  nncift extend runs/mine --data 'new/*.jsonl' -s selection.budget=9")
def extend(
    run_dir: RunDir,
    data: Annotated[
        list[str],
        typer.Option(help="A file, glob or folder of new candidates; may be given several times."),
    ],
    new_run_dir: Annotated[
        str | None, typer.Option("--run-dir", help="Where to work; next to the run when not given.")
    ] = None,
    set_: Overrides = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a dry run as JSON.")] = False,
) -> None:
    """Add new candidates to a finished run and select again, without asking the teacher."""
    with explained():
        from nncift_ray.extend import describe_drift, plan_extension
        from nncift_ray.extend import extend as extend_run

        if dry_run:
            made = plan_extension(run_dir, data, run_dir=new_run_dir, overrides=set_ or [])
            write_json(made) if as_json else terminal.print_extension(made)
            return
        with terminal.progress() as reporter:
            result = extend_run(
                run_dir, data, run_dir=new_run_dir, overrides=set_ or [], reporter=reporter
            )
        _print_result(result)
        drift = result.outputs.get("drift")  # of the labels, where there are any
        for line in describe_drift(drift.manifest.facts()) if drift else ():
            write_line(line)


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
        Path | None, typer.Option(help="A folder to send: your own modules, small corpora.")
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
        from nncift_ray.submit import JobServer, goes_unencrypted, prepare_job

        request, package = prepare_job(
            recipe,
            command,
            overrides=set_ or [],
            extra=extra or [],
            archive=Path(folder) / "job.zip",
            tree=working_dir,
            excludes=exclude or [],
            wheel=wheel,
            with_package=not installed,
        )
        size = f"{len(package.names):,} files, {package.num_bytes / 1024**2:,.2f} MiB"
        if dry_run:
            write_line("\n".join(package.names))
            write_line(f"{size}; would run: {request.entrypoint}")
            write_line("Nothing was sent.")
            return
        server = JobServer(address)
        if server.token and goes_unencrypted(server.address):
            warning = (
                f"note: the token and all else go to {server.address} unencrypted; a tunnel to "
                "the head node's loopback or https keeps them private"
            )
            errors.print(Text(warning, style="yellow"))
        job_id = server.submit(request, package, stop_wait)
        write_line(f"job {job_id}: {size} sent to {server.address}")
    _attend(server, job_id, wait=wait, follow=follow)


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


@jobs.command("list")
def list_jobs(
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """List the jobs that were submitted to a cluster, the newest first."""
    with explained():
        from nncift_ray.submit import JobServer

        found = JobServer(address).jobs()
        write_json([job.as_json() for job in found]) if as_json else terminal.print_jobs(found)


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
def stop_job(job_id: JobId, address: Address = DEFAULT_ADDRESS) -> None:
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


@app.command(
    "show-config", epilog="Example:  nncift show-config recipe.yaml -s teacher.kind=delift"
)
def show_config(recipe: Recipe, set_: Overrides = None) -> None:
    """Print the whole recipe, defaults and overrides included, as YAML."""
    with explained():
        typer.echo(dump_config(load_config(recipe, set_ or [])), nl=False)


@app.command(epilog="Examples:  nncift doctor   |   nncift doctor --json")
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can run, and what to install for the rest."""
    with explained():
        from nncift_ray.plan import examine

        findings = examine()
        write_json(findings) if as_json else terminal.print_findings(findings)
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


def main(run_app: Callable[[], Any] = app) -> None:
    """Run the command line."""
    # Hugging Face's own bars and Ray's usage question have no place in a run's output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.path.append(os.getcwd())  # a teacher of your own may lie there, as for python -m
    _end_when_interrupted()
    try:
        sys.exit(run_app())
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, STOPPED):
            # A step's thread may still be at work; an orderly end would wait for it, or crash.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code)
        raise


def _end_when_interrupted() -> None:
    """Make the first Ctrl-C an interrupt; a second one, or some seconds more, end the process."""

    def end(*_: object) -> None:
        os._exit(INTERRUPTED)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, end)
        timer = threading.Timer(INTERRUPT_SECONDS, end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


if __name__ == "__main__":
    main()
