"""What a verification says: named checks, each fine, different or not made, and why.

A finding is one sentence: what differs, where, and what to do about it.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from circuitseer_assets.errors import CircuitSeerError

Outcome = Literal["ok", "differs", "not checked", "skipped"]
Place = TypeVar("Place", bound=Hashable)
MAX_FINDINGS = 5


class NotCheckedError(CircuitSeerError):
    """A check cannot be made, for a reason that another check names, or that lies outside."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it says, and what it found.

    Attributes:
        name: of the check.
        outcome: whether all is as recorded.
        findings: what differs, a sentence each, or why it was not checked.
        num_more: how many findings more there are.
        looked_at: what was compared, in words.
    """

    name: str
    outcome: Outcome
    findings: tuple[str, ...] = ()
    num_more: int = 0
    looked_at: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of an artifact and of what it was made from."""

    artifact_id: str
    checks: tuple[Check, ...]

    @property
    def is_ok(self) -> bool:
        """Whether nothing differs; what was not checked is not known to."""
        return not self._named("differs")

    @property
    def not_checked(self) -> tuple[str, ...]:
        """The checks that were not made, whether they could not be or were not asked for."""
        return self._named("not checked", "skipped")

    @property
    def exit_status(self) -> int:
        """What a command ends with: 1 if something differs, 3 if a check could not be made."""
        if not self.is_ok:
            return 1
        return 3 if self._named("not checked") else 0

    def _named(self, *outcomes: Outcome) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.outcome in outcomes)

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {
            "artifact_id": self.artifact_id,
            "is_ok": self.is_ok,
            "not_checked": list(self.not_checked),
            "checks": [
                {
                    "name": check.name,
                    "outcome": check.outcome,
                    "looked_at": check.looked_at,
                    "findings": list(check.findings),
                    "num_more": check.num_more,
                }
                for check in self.checks
            ],
        }


def run_check(name: str, find: Callable[[], Iterable[str]], looked_at: str = "") -> Check:
    """Returns what a check found; it is not made where it raises `NotCheckedError`.

    Every finding is counted, the first `MAX_FINDINGS` are kept.
    """
    kept: list[str] = []
    num_found = 0
    try:
        for finding in find():
            num_found += 1
            if len(kept) < MAX_FINDINGS:
                kept.append(finding)
    except NotCheckedError as error:
        if not num_found:
            return Check(name, "not checked", (str(error),), looked_at=looked_at)
        kept.append(f"the rest was not checked: {error}")
    outcome: Outcome = "differs" if num_found else "ok"
    return Check(name, outcome, tuple(kept), max(0, num_found - MAX_FINDINGS), looked_at)


def different_settings(
    recorded: Mapping[str, Any], in_use: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Returns where two settings slices differ: the key with dots, and both values.

    A key that one of them lacks has None there.
    """
    for key in sorted({*recorded, *in_use}):
        one, other = recorded.get(key), in_use.get(key)
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            for inner, left, right in different_settings(one, other):
                yield f"{key}.{inner}", left, right
        else:
            yield key, one, other


def different_rows(
    before: Iterable[tuple[Place, str]], after: Iterable[tuple[Place, str]]
) -> Iterator[tuple[Place, str | None, str | None]]:
    """Returns where two streams of rows differ: the place, and what is there; None where nothing.

    Both are streams of places, each once, with what is there. Where they are in step nothing is
    held in memory, so that they may be of any length.
    """
    was: dict[Place, str] = {}
    now: dict[Place, str] = {}
    for pair in itertools.zip_longest(before, after):
        if pair[0] == pair[1]:
            continue
        for row, held in zip(pair, (was, now), strict=True):
            if row is not None:
                held[row[0]] = row[1]
        for row in pair:
            if row is not None and row[0] in was and row[0] in now:
                left, right = was.pop(row[0]), now.pop(row[0])
                if left != right:
                    yield row[0], left, right
    for place in {**was, **now}:
        yield place, was.get(place), now.get(place)


def is_close(recorded: float, again: float, *, relative: float, absolute: float) -> bool:
    """Returns whether a recomputed number is the recorded one but for rounding."""
    return math.isclose(recorded, again, rel_tol=relative, abs_tol=absolute)


def conclusion(verification: Verification) -> str:
    """Returns what all checks come to, in a line, the checks named that were not made."""
    said = f"{verification.artifact_id}: {'OK' if verification.is_ok else 'differs'}"
    unchecked = ", ".join(verification.not_checked)
    return f"{said}, not checked: {unchecked}" if unchecked else said


def verification_rows(verification: Verification) -> list[tuple[str, str, str]]:
    """Returns the checks as rows of text: name, outcome, what was found or looked at."""
    rows: list[tuple[str, str, str]] = []
    for check in verification.checks:
        found = list(check.findings)
        if check.num_more:
            found.append(f"and {check.num_more:,} more")
        rows.append((check.name, check.outcome, "\n".join(found) or check.looked_at))
    return rows
