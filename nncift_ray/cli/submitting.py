"""``nncift submit | jobs``: the same work as a job of a Ray cluster."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nncift_ray.cli.shared import (
    INTERRUPTED,
    Overrides,
    app,
    console,
    errors,
    explained,
    write_line,
)
from nncift_ray.config import load_config
from nncift_ray.config.secrets import secret_values
from nncift_ray.errors import ConfigError

if TYPE_CHECKING:
    from nncift_ray.submission.request import JobRequest
    from nncift_ray.submission.server import Job, JobServer

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
        from nncift_ray.submission.packing import pack
        from nncift_ray.submission.server import STOP_WAIT_SECONDS, JobServer

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
        from nncift_ray.submission.server import JobServer

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
        from nncift_ray.submission.server import JobServer

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
        from nncift_ray.submission.server import JobServer

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
    from nncift_ray.submission.packing import list_tree
    from nncift_ray.submission.request import (
        EXTEND,
        RECIPE_COMMANDS,
        extend_request,
        recipe_request,
    )

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
    from nncift_ray.submission.tokens import find_token

    return find_token(os.environ, Path.home())


def _warn_of_open_road(server: JobServer) -> None:
    from nncift_ray.submission.tokens import goes_unencrypted

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
