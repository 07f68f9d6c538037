"""Keeps secrets out of what is written: log lines, messages, what Dagster and MLflow store.

Secrets come from the environment alone. One is the value of a variable whose name says so, such as
HF_TOKEN, MLFLOW_TRACKING_PASSWORD or CIRCUITSEER_FAILURE_WEBHOOK; another is what an address holds
before its @. A value of less than eight characters is left: it would be found in every text.
"""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast
from urllib.parse import quote, urlsplit

HIDDEN = "***"
_MIN_LENGTH = 8
_SECRET_NAME = re.compile(
    r"(TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS|WEBHOOK|(API|ACCESS|SECRET|PRIVATE)_?KEY)$",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"(?<=://)[^/?#\s'\"<>\\]+@")
# A name without a password is none: a database's user is often named so.
_CREDENTIALS = re.compile(
    r"https?://[^/?#\s]+@|://[^/?#\s]*:[^/?#\s]*@"
    r"|[?&;](password|passwd|token|secret|api_?key|access_?key)=",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Returns whether an environment variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def holds_credentials(text: str) -> bool:
    """Returns whether an address in `text` has a password, or a token, in it."""
    return _CREDENTIALS.search(text) is not None


def redact(text: str) -> str:
    """Returns `text` with three stars for every secret in it."""
    values = (value for name, value in os.environ.items() if is_secret_name(name))
    pattern = _pattern(frozenset(value for value in values if len(value) >= _MIN_LENGTH))
    return _LOGIN.sub(f"{HIDDEN}@", pattern.sub(HIDDEN, text) if pattern else text)


@functools.lru_cache(maxsize=8)
def _pattern(values: frozenset[str]) -> re.Pattern[str] | None:
    spelt = {spelling for value in values for spelling in _spellings(value)}
    # The longest first: a secret that begins as another does is hidden whole.
    ordered = sorted(spelt, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _spellings(value: str) -> set[str]:
    """Returns a secret as it is, in an address, in JSON, and the part of an address errors name."""
    path = value.partition("://")[2] and urlsplit(value).path
    return {
        value,
        quote(value, safe=""),
        json.dumps(value)[1:-1],
        *([path] if len(path) >= _MIN_LENGTH else []),
    }


class RedactedStream:
    """A text stream to which no secret is written; in all else it is the stream it stands for."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text` without its secrets."""
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _RedactedRecords:
    """Makes log records without secrets, for every logger there is."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.make(*args, **kwargs)
        try:
            said = record.getMessage()
        except (TypeError, ValueError):
            return record  # arguments that do not fit: logging says so where it writes the line
        if (kept := redact(said)) != said:
            record.msg, record.args = kept, None
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            if (kept := redact(trace)) != trace:
                record.exc_text = kept  # which handlers write in place of the exception
        return record


def redact_logs() -> None:
    """Keeps secrets out of this process's log, whichever library writes it."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _RedactedRecords):
        logging.setLogRecordFactory(_RedactedRecords(make))


def redact_output() -> None:
    """Keeps secrets out of all that this process prints or logs, the trace of a bug included."""
    redact_logs()
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr))


def redacted(values: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the values there are, without secrets."""
    return {name: redact(str(value)) for name, value in values.items() if value is not None}
