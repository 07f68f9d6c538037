"""The `circuitseer` command: make the graph, ask about what was made, look after it. Thin.

Exit status: 0 done, 1 `verify` or `doctor` found what is not as it should be, 2 refused or failed,
with one sentence that says why, 3 `verify` could not make a check, 130 interrupted.
"""

import sys
from typing import NoReturn

import typer

from circuitseer_assets.cli import audit, graph, keeping
from circuitseer_assets.cli.terminal import console
from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.tables import printable
from circuitseer_assets.redaction import redact_output
from resources.database_faults import fault_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pick training data for reasoning models by looking inside the model.",
)
for group in (graph, audit, keeping):
    app.add_typer(group.app)


def main() -> None:
    """Runs the command; what CircuitSeer refuses ends in one sentence and exit status 2.

    Nothing that is printed or logged holds a secret, the trace of a bug included.
    """
    redact_output()
    try:
        app()
    except CircuitSeerError as error:
        _refuse(str(error), status=error.exit_status)
    except Exception as error:
        said = fault_of(error)
        if said is None:
            raise
        more = "" if isinstance(error, OSError) else "; `circuitseer doctor` looks for more"
        _refuse(said + more)


def _refuse(sentence: str, *, status: int = 2) -> NoReturn:
    console.print(f"circuitseer: {printable(sentence)}", style="red", soft_wrap=True)
    sys.exit(status)
