"""Why members came in and went out: each reason by a change that has no other."""

import pytest

from circuitseer_assets.method.subset import Candidate, draw_subset
from circuitseer_assets.method.subset_changes import Draw, explain_changes, format_changes
from circuitseer_assets.settings import Budget, SelectionSettings

SCORES = {f"s{i}": 1.0 + i % 7 for i in range(100)}


def drawn(scores: dict[str, float], *, samples: int = 20, seed: int = 0) -> Draw:
    settings = SelectionSettings(budget=Budget(samples=samples), seed=seed)
    pool = [Candidate(name, score, score) for name, score in scores.items()]
    members = frozenset(member.sample_id for member in draw_subset(pool, settings))
    return Draw(settings, scores, members)


def test_the_same_draw_changes_nothing() -> None:
    changes = explain_changes(drawn(SCORES), drawn(SCORES))
    assert (changes.num_kept, changes.added, changes.removed) == (20, {}, {})


def test_a_larger_budget_adds_and_a_smaller_one_removes() -> None:
    small, large = drawn(SCORES), drawn(SCORES, samples=26)
    grown, shrunk = explain_changes(small, large), explain_changes(large, small)
    assert set(grown.added.values()) == {"budget"}
    assert len(grown.added) == 6
    assert not grown.removed
    assert shrunk.removed == grown.added
    assert not shrunk.added


def test_another_seed_is_a_matter_of_settings() -> None:
    changes = explain_changes(drawn(SCORES), drawn(SCORES, seed=1))
    assert set(changes.added.values()) == set(changes.removed.values()) == {"settings"}


def test_a_row_that_goes_makes_room_for_another() -> None:
    before = drawn(SCORES)
    gone = min(before.members)
    changes = explain_changes(before, drawn({k: v for k, v in SCORES.items() if k != gone}))
    assert changes.removed == {gone: "row"}
    assert list(changes.added.values()) == ["competition"]


def test_a_new_row_of_great_weight_displaces_another() -> None:
    changes = explain_changes(drawn(SCORES), drawn({**SCORES, "new": 1e9}))
    assert changes.added == {"new": "row"}
    assert list(changes.removed.values()) == ["competition"]


def test_another_score_is_said_before_what_follows_from_it() -> None:
    before = drawn(SCORES)
    out = min(before.members)
    changes = explain_changes(before, drawn({**SCORES, out: 1e-9}))
    assert changes.removed == {out: "score"}
    assert list(changes.added.values()) == ["competition"]


@pytest.mark.parametrize("samples", [15, 30])
def test_kept_added_and_removed_add_up(samples: int) -> None:
    before, after = drawn(SCORES), drawn({**SCORES, "x": 3.0}, samples=samples, seed=2)
    changes = explain_changes(before, after)
    assert changes.num_kept + len(changes.added) == len(after.members)
    assert changes.num_kept + len(changes.removed) == len(before.members)
    table = format_changes(changes)
    assert f"| **together** | {len(changes.added)} | {len(changes.removed)} |" in table
