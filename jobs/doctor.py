"""The doctor: what is wrong with a home and what it stands on, and mending what is safe to mend."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from resources import health
from resources.database_faults import fault_of
from resources.health import Finding
from resources.home import Home
from resources.service_health import check_services

Outcome = Literal["ok", "repaired", "warning", "error", "not examined"]
DIAGNOSIS_COLUMNS = ("check", "outcome", "what")
# Each check's name, what it looks at, and how. What comes first is what the others stand on.
_CHECKS: dict[str, tuple[str, Callable[[Home], Iterable[Finding]]]] = {
    "home": ("writable, on a local disk, with room", health.check_home),
    "versions": ("Python and the installed packages", health.check_versions),
    "settings": ("what the settings name is there", health.check_settings),
    "device": ("the base model's device", health.check_device),
    "services": ("extras and Ray as the settings need them, nothing left by Ray", check_services),
    "warehouse": ("opens, has this code's schema, its rows lead somewhere", health.check_warehouse),
    "store": ("every artifact's files, and none besides", health.check_store),
    "runs": ("no dead run, no slot of a pool held by one, no secret stored", health.check_runs),
    "mlflow": ("answers, and holds the checkpoints", health.check_tracking),
    "removal": ("none was left half-way", health.check_removal),
}
_READ_THE_WAREHOUSE = ("store", "mlflow")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One check's outcome, and what was found, a sentence each."""

    check: str
    outcome: Outcome
    looked_at: str
    findings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {
            "check": self.check,
            "outcome": self.outcome,
            "looked_at": self.looked_at,
            "findings": list(self.findings),
        }


def examine(home: Home, *, repair: bool = False, is_deep: bool = False) -> list[Diagnosis]:
    """Returns a diagnosis of every check; what is safe to mend is mended where `repair` is set.

    Args:
        home: what is examined.
        repair: mend what can be mended without a decision; the outcome says so.
        is_deep: read every stored file and compare its digest, not only its size.
    """
    checks = dict(_CHECKS)
    what, _ = checks["store"]
    checks["store"] = (what, functools.partial(health.check_store, is_deep=is_deep))
    done: dict[str, Diagnosis] = {}
    for name, (what, check) in checks.items():
        if name in _READ_THE_WAREHOUSE and done["warehouse"].outcome not in ("ok", "repaired"):
            # Reading it would bring it up to date, or wait for whoever holds it.
            done[name] = Diagnosis(name, "not examined", what, ("the warehouse comes first",))
        else:
            done[name] = _examine(name, what, check, home, repair=repair)
    return list(done.values())


def _examine(
    name: str,
    what: str,
    check: Callable[[Home], Iterable[Finding]],
    home: Home,
    *,
    repair: bool,
) -> Diagnosis:
    findings: list[Finding] = []
    mended: list[Finding] = []
    try:
        for finding in check(home):
            findings.append(finding)
        for finding in findings if repair else ():
            if finding.repair is not None:
                finding.repair()
                mended.append(finding)
    except Exception as error:
        # What a check stands on was examined before it, and is named there as well.
        said = fault_of(error)
        if said is None:
            raise
        findings.append(Finding("error", said))
    left = [f for f in findings if f not in mended]
    outcome: Outcome = "ok"
    if any(finding.severity == "error" for finding in left):
        outcome = "error"
    elif left:
        outcome = "warning"
    elif findings:
        outcome = "repaired"
    told = tuple(f.said + ("; repaired" if f in mended else "") for f in findings)
    return Diagnosis(name, outcome, what, told)


def diagnosis_rows(diagnoses: Iterable[Diagnosis]) -> list[tuple[str, str, str]]:
    """Returns the diagnoses as rows of text: check, outcome, what was found or looked at."""
    return [(d.check, d.outcome, "\n".join(d.findings) or d.looked_at) for d in diagnoses]
