"""Faults of the system and of other programs' databases, in one sentence: they are nobody's bug."""

import re

from circuitseer_assets.errors import CircuitSeerError


def fault_of(error: Exception) -> str | None:
    """Returns the sentence that tells what is at fault; None where it may be a bug of ours."""
    if isinstance(error, CircuitSeerError):
        return str(error)
    if isinstance(error, OSError):
        # A folder that cannot be written or read: the system's own words name it and the reason.
        return f"{error.filename or 'the system'}: {error.strerror or error}; free or correct it"
    reason = database_reason(error)
    return reason and (
        f"a database of Dagster or MLflow cannot be used ({reason}); correct that, or bring back "
        f"a backup"
    )


def database_reason(error: Exception) -> str | None:
    """Returns why a database cannot be used, in one line; None where that is not what happened."""
    if type(error).__name__ == "DagsterInvalidConfigError":
        unset = re.findall(r'the environment variable "(\w+)" which is not set', str(error))
        return f"dagster.yaml takes it from {', '.join(sorted(unset))}: not set" if unset else None
    if type(error).__name__ == "CheckError" and "Couldn't import module" in str(error):
        return str(error).removeprefix("Failure condition: ")
    if type(error).__module__.startswith("dagster_postgres"):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    elif not type(error).__module__.startswith(("sqlite3", "sqlalchemy")):
        return None
    # SQLAlchemy adds the statement, and where to read on.
    return " ".join(re.split(r"\[SQL|\(Background on", str(error))[0].split())
