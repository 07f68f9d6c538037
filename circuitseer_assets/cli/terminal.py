"""What all commands share: where they write, their common options, tables and JSON.

What a command was asked for goes to stdout, for scripts; what it says meanwhile to stderr.
"""

import atexit
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from rich import box
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from circuitseer_assets.method.tables import is_obeyed, printable
from circuitseer_assets.redaction import RedactedStream
from circuitseer_assets.settings import settings_path

if TYPE_CHECKING:
    from resources.home import Home

# Bound to this stream: what libraries print is sent elsewhere while the graph runs.
console = Console(file=cast(TextIO, RedactedStream(sys.stderr)), highlight=False, markup=False)
_UNCUT = 100_000  # columns, where nobody reads on a terminal of some width

Preset = Annotated[str | None, typer.Option(help="A file of presets/, without its suffix.")]
CorpusFile = Annotated[str | None, typer.Option(help="A corpus file, in place of the preset's.")]
EvaluationFile = Annotated[
    str | None, typer.Option("--eval", help="A file of problems, in place of the preset's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def examples(*commands: str) -> str:
    """Returns what stands below a command's help: how it is used, a line each."""
    return "\n\n".join(["Examples:", *commands])


def home_at(folder: Path) -> "Home":
    """Returns the home at `folder`, in use from now on, after saying which settings are."""
    atexit.register(_end_quietly)
    from resources.home import Home

    home = Home.prepared(folder)
    home.set_environment()
    console.print(f"settings: {settings_path(home.folder)}", soft_wrap=True)
    return home


def latest_id(home: "Home", asset: str) -> str:
    """Returns the id of what an asset last materialised: after going back, not the newest made."""
    import dagster as dg

    from circuitseer_assets.assets.stage import latest_artifact

    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        return latest_artifact(instance, home, asset).artifact_id


def print_json(value: Any) -> None:
    """Writes a value to stdout as JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # JSON has its own spelling of what a terminal would obey.
    print("".join(json.dumps(c)[1:-1] if is_obeyed(c) else c for c in text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table to stdout, as wide as its text where that is no terminal."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        # As plain text: an id or a reason may hold brackets, and what a terminal would obey. And
        # folded, not cut: a number without its end is another number.
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    # rich takes a pipe for a terminal of 80 columns.
    Console(width=None if sys.stdout.isatty() else _UNCUT).print(table)


def log_to_terminal() -> None:
    """Lets the program's own log be seen on stderr."""
    logger = logging.getLogger("circuitseer")
    logger.setLevel(logging.INFO)
    logger.addHandler(
        RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    )
    logger.propagate = False


def _end_quietly() -> None:
    # While Python shuts down, duckdb's binding lists objects that torch still holds, by the page.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
