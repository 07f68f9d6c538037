"""The `circuitseer` command: make the graph, ask about what was made, look after it. Thin.

Exit status: 0 done, 1 `verify` or `doctor` found what is not as it should be, 2 refused or failed,
with one sentence that says why, 3 `verify` could not make a check, 130 interrupted.
"""

import re
import sys
from typing import NoReturn, TextIO, cast

import typer

from circuitseer_assets.cli import audit, graph, keeping
from circuitseer_assets.cli.terminal import console
from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.tables import printable
from circuitseer_assets.redaction import RedactedStream, redact_logs

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
    redact_logs()
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr))
    try:
        app()
    except CircuitSeerError as error:
        _refuse(str(error), status=error.exit_status)
    except OSError as error:
        # A folder that cannot be written or read: the system's own words name it and the reason.
        _refuse(f"{error.filename or 'the system'}: {error.strerror or error}; free or correct it")
    except Exception as error:
        reason = database_reason(error)
        if reason is None:
            raise
        _refuse(
            f"a database of Dagster or MLflow cannot be used ({reason}); correct that, or let "
            f"`circuitseer doctor` look for more"
        )


def database_reason(error: Exception) -> str | None:
    """Returns why a database cannot be used, in one line; None where that is not what happened."""
    if type(error).__name__ == "DagsterInvalidConfigError":
        unset = re.findall(r'the environment variable "(\w+)" which is not set', str(error))
        return f"dagster.yaml takes it from {', '.join(sorted(unset))}: not set" if unset else None
    if type(error).__module__.startswith("dagster_postgres"):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    elif not type(error).__module__.startswith(("sqlite3", "sqlalchemy")):
        return None
    # SQLAlchemy adds the statement, and where to read on.
    return " ".join(re.split(r"\[SQL|\(Background on", str(error))[0].split())


def _refuse(sentence: str, *, status: int = 2) -> NoReturn:
    console.print(f"circuitseer: {printable(sentence)}", style="red", soft_wrap=True)
    sys.exit(status)
