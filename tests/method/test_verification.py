"""What a verification says of checks: outcomes, counts, and where settings differ."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from circuitseer_assets.method.verification import (
    MAX_FINDINGS,
    Check,
    NotCheckedError,
    Verification,
    conclusion,
    different_rows,
    different_settings,
    is_close,
    run_check,
    verification_rows,
)

values = st.recursive(
    st.integers(0, 2) | st.text("ab", max_size=1),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=6,
)
slices = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(slices, slices)
def test_settings_differ_where_putting_them_back_makes_them_equal(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    found = list(different_settings(one, other))
    assert (not found) == (one == other)
    for path, left, right in found:
        assert left != right
        for side, value in ((one, left), (other, right)):
            here: Any = side
            for key in path.split("."):
                here = here.get(key) if isinstance(here, dict) else None
            assert here == value


rows = st.dictionaries(st.integers(0, 9), st.sampled_from("ab"))


@given(rows, rows)
def test_rows_differ_where_two_mappings_of_them_do(
    before: dict[int, str], after: dict[int, str]
) -> None:
    found = list(different_rows(before.items(), after.items()))
    assert len(found) == len({place for place, _, _ in found})
    assert set(found) == {
        (place, before.get(place), after.get(place))
        for place in before | after
        if before.get(place) != after.get(place)
    }


def test_findings_are_counted_and_the_first_are_kept() -> None:
    check = run_check("rows", lambda: (f"row {i}" for i in range(12)))
    assert check.outcome == "differs"
    assert check.findings == tuple(f"row {i}" for i in range(MAX_FINDINGS))
    assert check.num_more == 12 - MAX_FINDINGS
    [(name, outcome, text)] = verification_rows(Verification("a", (check,)))
    assert (name, outcome) == ("rows", "differs")
    assert text.splitlines() == [*check.findings, "and 7 more"]


def test_what_cannot_be_checked_is_not_fine_and_not_different() -> None:
    def give_up() -> Iterator[str]:
        raise NotCheckedError("no hub")
        yield ""

    def find_and_give_up() -> Iterator[str]:
        yield "one"
        raise NotCheckedError("no hub")

    unchecked, both = run_check("corpus", give_up), run_check("corpus", find_and_give_up)
    assert (unchecked.outcome, unchecked.findings) == ("not checked", ("no hub",))
    assert both.outcome == "differs"
    assert both.findings == ("one", "the rest was not checked: no hub")
    fine = Check("files", "ok")
    assert Verification("a", (fine, unchecked)).is_ok
    assert not Verification("a", (fine, both)).is_ok


def test_what_was_not_checked_is_told_and_what_could_not_be_is_no_success() -> None:
    def said(*checks: Check) -> tuple[str, int]:
        done = Verification("a", checks)
        assert done.as_json()["not_checked"] == list(done.not_checked)
        return conclusion(done), done.exit_status

    fine, differs = Check("files", "ok"), Check("rows", "differs", ("row 1",))
    skipped, unchecked = Check("heads", "skipped"), Check("corpus", "not checked", ("no hub",))
    assert said(fine) == ("a: OK", 0)
    assert said(fine, skipped) == ("a: OK, not checked: heads", 0)
    assert said(fine, unchecked, skipped) == ("a: OK, not checked: corpus, heads", 3)
    assert said(differs, unchecked) == ("a: differs, not checked: corpus", 1)


def test_rounding_is_no_difference() -> None:
    assert is_close(1.0, 1.00001, relative=1e-4, absolute=0)
    assert not is_close(1.0, 1.001, relative=1e-4, absolute=0)
    assert is_close(0.0, 1e-10, relative=0, absolute=1e-9)
