"""Why a subset differs from the one before it: two draws in, a reason for every change out."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from circuitseer_assets.settings import SelectionSettings

Reason = Literal["row", "settings", "score", "budget", "competition"]
"""Why a sample came in or went out; the first that holds.

- `row`: it is new in the pool, or no longer there.
- `settings`: weights, sampling or seed are others.
- `score`: it has another score.
- `budget`: more, or fewer, samples are drawn.
- `competition`: others that would be drawn before it left, or came.
"""


@dataclass(frozen=True, slots=True)
class Draw:
    """What decided a subset: the settings, the scores of its pool, and who was drawn.

    Of the scores those of the members of either draw are enough.
    """

    settings: SelectionSettings
    scores: Mapping[str, float]
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class SubsetChanges:
    """Who stayed, and why the others came in or went out."""

    num_kept: int
    added: Mapping[str, Reason]
    removed: Mapping[str, Reason]


def explain_changes(before: Draw, after: Draw) -> SubsetChanges:
    """Returns what became of the members of one draw in the next."""
    return SubsetChanges(
        num_kept=len(before.members & after.members),
        added={
            sample_id: _reason(sample_id, without=before, with_it=after)
            for sample_id in sorted(after.members - before.members)
        },
        removed={
            sample_id: _reason(sample_id, without=after, with_it=before)
            for sample_id in sorted(before.members - after.members)
        },
    )


def _reason(sample_id: str, *, without: Draw, with_it: Draw) -> Reason:
    """Returns why one draw has the sample and the other has not."""
    if sample_id not in without.scores:
        return "row"
    if _but_the_budget(without) != _but_the_budget(with_it):
        return "settings"
    if without.scores[sample_id] != with_it.scores[sample_id]:
        return "score"
    return "budget" if len(with_it.members) > len(without.members) else "competition"


def _but_the_budget(draw: Draw) -> dict[str, object]:
    return draw.settings.model_dump(exclude={"budget"})


def format_changes(changes: SubsetChanges) -> str:
    """Returns the changes as a Markdown table: the reasons, how many came in and went out."""
    added, removed = Counter(changes.added.values()), Counter(changes.removed.values())
    lines = [
        f"| {_IN_WORDS[reason]} | {added[reason]:,} | {removed[reason]:,} |"
        for reason in _IN_WORDS
        if added[reason] or removed[reason]
    ]
    return "\n".join(
        (
            "| why | came in | went out |",
            "|---|---:|---:|",
            *lines,
            f"| **together** | {len(changes.added):,} | {len(changes.removed):,} |",
            f"| stayed: {changes.num_kept:,} | | |",
        )
    )


_IN_WORDS: dict[Reason, str] = {
    "row": "its row is new, or gone",
    "settings": "weights, sampling or seed changed",
    "score": "its score changed",
    "budget": "more, or fewer, are drawn",
    "competition": "others before it left, or came",
}
