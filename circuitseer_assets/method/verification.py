"""What a verification says: named checks, each fine, different or not made, and why.

A finding is one sentence: what differs, where, and what to do about it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from circuitseer_assets.errors import CircuitSeerError

Outcome = Literal["ok", "differs", "not checked"]
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
        return all(check.outcome != "differs" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {
            "artifact_id": self.artifact_id,
            "is_ok": self.is_ok,
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


def is_close(recorded: float, again: float, *, relative: float, absolute: float) -> bool:
    """Returns whether a recomputed number is the recorded one but for rounding."""
    return math.isclose(recorded, again, rel_tol=relative, abs_tol=absolute)


def verification_rows(verification: Verification) -> list[tuple[str, str, str]]:
    """Returns the checks as rows of text: name, outcome, what was found or looked at."""
    rows: list[tuple[str, str, str]] = []
    for check in verification.checks:
        found = list(check.findings)
        if check.num_more:
            found.append(f"and {check.num_more:,} more")
        rows.append((check.name, check.outcome, "\n".join(found) or check.looked_at))
    return rows
