"""The stage `corpus`: raw rows in, samples and quarantined rows out.

A row becomes a `Sample` when it holds a prompt and a response that are text; every other row is
kept as a `QuarantinedRow` with the reason. Nothing is dropped, and nothing but the ids already
seen, 8 bytes each, is held in memory.
"""

import array
import base64
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.records import Message, QuarantinedRow, Sample, digest_of
from circuitseer_assets.settings import Columns

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_FINAL_ANSWER = re.compile(r"####[ \t]*(\S[^\n]*?)\s*\Z")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that its reader could not parse, with the reason: `not_json` or `not_csv`."""

    reason: str
    detail: str


RawRow = tuple[str, int, Mapping[str, Any] | UnreadableRow]
"""Where a row comes from, its position there from 0, and the row."""


class _UnusableError(Exception):
    """Ends the reading of one row; carries the reason it is quarantined for."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def curate_rows(rows: Iterable[RawRow], columns: Columns) -> Iterator[Sample | QuarantinedRow]:
    """Returns one `Sample` or `QuarantinedRow` for every raw row, in order and as a stream.

    The first of several rows with equal normalised prompt and response is the sample; the others
    are quarantined as `duplicate`. Memory grows by 11 to 22 bytes a sample.

    Raises:
        CorpusError: after the last row, if no row was usable.
    """
    seen = _SeenNumbers()
    reasons: Counter[str] = Counter()
    for source, position, raw_row in rows:
        row = read_sample(raw_row, columns, source=source, position=position)
        if isinstance(row, Sample) and not seen.add(int(row.sample_id, 16)):
            detail = f"repeats sample {row.sample_id}"
            row = QuarantinedRow(source, position, "duplicate", detail)
        if isinstance(row, QuarantinedRow):
            reasons[row.reason] += 1
        yield row
    if not len(seen):
        counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
        raise CorpusError(
            f"the corpus must hold at least one usable row, got 0 of {reasons.total()}"
            f"{f' ({counts})' if counts else ''}; "
            "correct the corpus, or the columns named in corpus.columns"
        )


class _SeenNumbers:
    """A set of digests of 64 bits, each in 8 bytes, where Python's own takes a hundred.

    A digest lies at the place that its last bits say, or the next free one; 0 marks a free place.
    """

    def __init__(self) -> None:
        self._places = array.array("Q", bytes(8 * 1024))
        self._holds_zero = False
        self._num_placed = 0

    def __len__(self) -> int:
        return self._num_placed + self._holds_zero

    def add(self, number: int) -> bool:
        """Returns whether the number is new."""
        if number == 0:
            is_new, self._holds_zero = not self._holds_zero, True
            return is_new
        if not self._place(number):
            return False
        self._num_placed += 1
        if self._num_placed > 0.7 * len(self._places):
            self._grow()
        return True

    def _place(self, number: int) -> bool:
        places, last = self._places, len(self._places) - 1
        at = number & last
        while held := places[at]:
            if held == number:
                return False
            at = (at + 1) & last
        places[at] = number
        return True

    def _grow(self) -> None:
        smaller = self._places
        self._places = array.array("Q", bytes(2 * 8 * len(smaller)))
        for number in smaller:
            if number:
                self._place(number)


def read_sample(
    raw_row: Mapping[str, Any] | UnreadableRow, columns: Columns, *, source: str, position: int
) -> Sample | QuarantinedRow:
    """Returns the sample a raw row holds, or the row's quarantine record.

    Reasons: `no_prompt`, `no_response` (missing or blank), `not_text` (of another type, or with
    what neither UTF-8 nor JSON can say), `bad_messages` (not a chat of system, user and assistant
    turns), and those of an `UnreadableRow`.

    In a chat the last assistant turn is the response and all before it the prompt; what follows
    it is kept in `original` only. A chat may also be the JSON text of one. The answer is that of
    the answer column, else what follows GSM8K's `####` on the response's last line, else None.
    """
    try:
        if isinstance(raw_row, UnreadableRow):
            raise _UnusableError(raw_row.reason, raw_row.detail)
        original = {str(name): _json_value(value, name) for name, value in raw_row.items()}
        if columns.messages is not None:
            messages, response = _read_chat(raw_row.get(columns.messages), columns.messages)
        else:
            prompt = _read_text(raw_row, columns.prompt, "no_prompt")
            response = _read_text(raw_row, columns.response, "no_response")
            messages = (Message("user", prompt),)
        answer = _read_answer(raw_row, columns.answer, response)
    except _UnusableError as unusable:
        return QuarantinedRow(source, position, unusable.reason, unusable.detail)
    return _make_sample(messages, response, answer, original, source, position)


def sample_from_texts(
    prompt: str, response: str, *, source: str, position: int, original: Mapping[str, Any]
) -> Sample:
    """Returns the sample of one prompt and its response, with the ids any corpus would give it."""
    return _make_sample((Message("user", prompt),), response, None, original, source, position)


def normalise_text(text: str) -> str:
    """Returns `text` as it counts for identity: Unicode NFC, every run of white space one blank.

    Case is kept, for `n` and `N` may be two variables, and so are compatibility characters: NFKC
    would make `x²` the same as `x2`. What is stored and read by the model is the text as it came.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_id_of(messages: Sequence[Message]) -> str:
    """Returns the digest of the normalised turns and their roles."""
    return digest_of([[turn.role, normalise_text(turn.content)] for turn in messages])


def sample_id_of(prompt_id: str, response: str) -> str:
    """Returns the digest of the normalised prompt, by its id, and the normalised response."""
    return digest_of([prompt_id, normalise_text(response)])


def _make_sample(
    messages: tuple[Message, ...],
    response: str,
    answer: str | None,
    original: Mapping[str, Any],
    source: str,
    position: int,
) -> Sample:
    prompt_id = prompt_id_of(messages)
    return Sample(
        sample_id=sample_id_of(prompt_id, response),
        prompt_id=prompt_id,
        source=source,
        position=position,
        messages=messages,
        response=response,
        answer=answer,
        original=original,
    )


def _read_text(row: Mapping[str, Any], column: str | None, reason_if_missing: str) -> str:
    value = None if column is None else row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise _UnusableError(reason_if_missing, f"column {column!r} is {_shown(value)}")
    if not isinstance(value, str):
        raise _UnusableError("not_text", f"column {column!r} must be text, got {_shown(value)}")
    return value


def _read_answer(row: Mapping[str, Any], column: str | None, response: str) -> str | None:
    if column is None:
        found = _FINAL_ANSWER.search(response)
        return _THOUSANDS.sub("", found[1]) if found else None
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        return str(value).strip()
    raise _UnusableError(
        "not_text", f"column {column!r} must be text or a number, got {_shown(value)}"
    )


def _read_chat(value: Any, column: str) -> tuple[tuple[Message, ...], str]:
    """Returns the turns before the last assistant turn, and that turn's text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise _UnusableError(
                "bad_messages", f"column {column!r} is text, but no JSON"
            ) from None
    if value is None or value in ("", []):
        raise _UnusableError("no_prompt", f"column {column!r} is {_shown(value)}")
    if not isinstance(value, list):
        raise _UnusableError(
            "bad_messages", f"column {column!r} must be a list, got {_shown(value)}"
        )
    turns = [_read_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if last is None or not turns[last].content.strip():
        raise _UnusableError("no_response", f"column {column!r} has no assistant turn with text")
    prompt = tuple(turns[:last])
    if not any(turn.role == "user" and turn.content.strip() for turn in prompt):
        raise _UnusableError(
            "no_prompt", f"column {column!r} has no user turn with text before the response"
        )
    return prompt, turns[last].content


def _read_turn(turn: Any, name: str) -> Message:
    """Returns one turn, of `role` and `content` or of ShareGPT's `from` and `value`."""
    if not isinstance(turn, Mapping):
        raise _UnusableError("bad_messages", f"{name} must be a mapping, got {_shown(turn)}")
    keys = ("role", "content") if turn.get("role") is not None else ("from", "value")
    role, content = turn.get(keys[0]), turn.get(keys[1])
    if not isinstance(role, str) or role not in ROLES:
        raise _UnusableError(
            "bad_messages", f"{name} must have a role among {', '.join(ROLES)}, got {_shown(role)}"
        )
    if not isinstance(content, str):
        raise _UnusableError("bad_messages", f"{name} must have text, got {_shown(content)}")
    return Message(ROLES[role], content)


def _json_value(value: Any, name: Any) -> Any:
    """Returns `value` in JSON's types.

    Dates and times become ISO 8601, decimals, durations and UUIDs their text, bytes a base64 data
    URI, tuples lists, and NaN, a missing number, None.

    Raises:
        _UnusableError: `value` holds anything else, infinity, or half of a surrogate pair.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _checked_text(value, name)
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return f"data:application/octet-stream;base64,{base64.b64encode(value).decode()}"
    if isinstance(value, list | tuple):
        return [_json_value(item, name) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {_checked_text(key, name): _json_value(item, name) for key, item in value.items()}
    raise _UnusableError("not_text", f"column {name!r} holds what JSON cannot say: {_shown(value)}")


def _checked_text(text: str, name: Any) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError(
            "not_text", f"column {name!r} holds half of a surrogate pair"
        ) from None
    return text


def _shown(value: Any) -> str:
    """Returns a short, printable account of a value: its type and its beginning."""
    if value is None:
        return "missing"
    if isinstance(value, str) and not value.strip():
        return "blank"
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
