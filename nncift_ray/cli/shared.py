"""What the commands share: the app, the consoles, arguments, and how errors end a command."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from typer import Context
from typer.core import TyperGroup

from nncift_ray.config.secrets import redact
from nncift_ray.errors import NnciftError, StopRequested

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
