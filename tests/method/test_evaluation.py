"""Pass@1 figures against brute force, another library and simulated truth."""

import itertools
import random
from collections.abc import Sequence
from statistics import fmean

import pytest
from scipy.stats import binomtest

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.method.evaluation import (
    compare,
    is_only_a_demonstration,
    pass_at_k,
    summarise,
)
from circuitseer_assets.records import Outcome


def outcomes(answers: Sequence[Sequence[bool]], task: str = "task") -> list[Outcome]:
    return [
        Outcome(task, f"problem-{i}", repeat, correct, truncated=not correct)
        for i, repeats in enumerate(answers)
        for repeat, correct in enumerate(repeats)
    ]


def from_chances(
    chances: Sequence[float], num_repeats: int, rng: random.Random
) -> list[list[bool]]:
    return [[rng.random() < p for _ in range(num_repeats)] for p in chances]


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 1), (5, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, c: int) -> None:
    answers = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(answers, k))
        assert pass_at_k(n, c, k) == pytest.approx(fmean(any(draw) for draw in draws))


def test_pass_at_k_needs_as_many_repeats() -> None:
    with pytest.raises(EvaluationError, match=r"k must be between 1 and 4 .* got 5; raise"):
        pass_at_k(4, 2, 5)


@pytest.mark.parametrize("num_correct", [0, 1, 7, 39, 40])
def test_one_repeat_has_wilsons_interval(num_correct: int) -> None:
    [summary] = summarise(outcomes([[i < num_correct] for i in range(40)]))
    expected = binomtest(num_correct, 40).proportion_ci(method="wilson")
    assert summary.pass_at_1 == pytest.approx(num_correct / 40)
    assert (summary.ci_low, summary.ci_high) == pytest.approx((expected.low, expected.high))
    assert summary.ci_low < summary.ci_high
    assert summary.truncation_rate == pytest.approx(1 - num_correct / 40)


def test_pass_at_1_is_the_mean_over_repeats_then_problems() -> None:
    [summary] = summarise(outcomes([[True, True, False], [False, False, False]]))
    assert summary.pass_at_1 == pytest.approx((2 / 3 + 0) / 2)
    assert (summary.num_problems, summary.num_repeats) == (2, 3)


def test_repeats_that_always_agree_tell_no_more_than_one() -> None:
    answers = [[i % 3 == 0] for i in range(30)]
    [once] = summarise(outcomes(answers))
    [often] = summarise(outcomes([repeats * 8 for repeats in answers]))
    assert often.ci_low == pytest.approx(once.ci_low, abs=0.005)
    assert often.ci_high == pytest.approx(once.ci_high, abs=0.005)


def test_repeats_narrow_the_interval_where_answers_waver() -> None:
    rng = random.Random(0)
    [once] = summarise(outcomes(from_chances([0.5] * 60, 1, rng)))
    [often] = summarise(outcomes(from_chances([0.5] * 60, 8, rng)))
    assert often.ci_high - often.ci_low < 0.5 * (once.ci_high - once.ci_low)


@pytest.mark.parametrize("num_repeats", [2, 4])
def test_intervals_hold_the_truth_in_95_percent_of_evaluations(num_repeats: int) -> None:
    rng = random.Random(num_repeats)
    covered = []
    for _ in range(400):
        # The truth is the population's: problems are drawn as well as answers.
        chances = [rng.betavariate(0.6, 1.4) for _ in range(60)]
        [summary] = summarise(outcomes(from_chances(chances, num_repeats, rng)))
        covered.append(summary.ci_low <= 0.3 <= summary.ci_high)
    assert 0.92 <= fmean(covered) <= 0.98


def test_tasks_are_kept_apart_and_in_order() -> None:
    mixed = [*outcomes([[True]], "second"), *outcomes([[False]], "first")]
    assert [(s.task, s.pass_at_1) for s in summarise(mixed)] == [("second", 1.0), ("first", 0.0)]


@pytest.mark.parametrize(
    "answers",
    [
        [Outcome("t", "a", 0, True, False), Outcome("t", "b", 1, True, False)],
        [Outcome("t", "a", 0, True, False), Outcome("t", "a", 0, True, False)],
        [*outcomes([[True, False]]), Outcome("task", "b", 0, True, False)],
    ],
)
def test_missing_and_double_repeats_are_refused(answers: list[Outcome]) -> None:
    with pytest.raises(EvaluationError, match=r"must have the repeats 0 to \d once each"):
        summarise(answers)


def test_an_empty_evaluation_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at least one outcome, got none"):
        summarise([])


# base model and checkpoint ------------------------------------------------------------------------


def test_compare_counts_who_changed_sides() -> None:
    base = outcomes([[True], [False], [False], [True]])
    tuned = outcomes([[True], [True], [True], [False]])
    [change] = compare(base, tuned)
    assert change.difference == pytest.approx((0 + 1 + 1 - 1) / 4)
    assert (change.num_newly_solved, change.num_newly_lost) == (2, 1)


def test_compare_matches_agresti_and_mins_cells() -> None:
    base = outcomes([[True]] * 10 + [[False]] * 30)
    tuned = outcomes([[True]] * 6 + [[False]] * 4 + [[True]] * 11 + [[False]] * 19)
    [change] = compare(base, tuned)
    n, gained, lost = 42, 11.5, 4.5
    centre = (gained - lost) / n
    half = 1.959964 * ((gained + lost) - (gained - lost) ** 2 / n) ** 0.5 / n
    assert (change.ci_low, change.ci_high) == pytest.approx((centre - half, centre + half))


def test_compare_is_antisymmetric() -> None:
    rng = random.Random(1)
    base = outcomes(from_chances([0.3] * 25, 3, rng))
    tuned = outcomes(from_chances([0.6] * 25, 3, rng))
    [there], [back] = compare(base, tuned), compare(tuned, base)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.ci_low, there.ci_high) == pytest.approx((-back.ci_high, -back.ci_low))
    assert there.num_newly_solved == back.num_newly_lost


def test_the_same_answers_leave_room_for_doubt() -> None:
    [change] = compare(outcomes([[True]] * 20), outcomes([[True]] * 20))
    assert change.difference == 0
    assert change.ci_low < 0 < change.ci_high


def test_differences_hold_the_truth_in_95_percent_of_comparisons() -> None:
    rng = random.Random(2)
    covered = []
    for _ in range(400):
        chances = [rng.betavariate(0.6, 1.4) for _ in range(60)]
        base = outcomes(from_chances(chances, 2, rng))
        tuned = outcomes(from_chances([p + 0.2 * (1 - p) for p in chances], 2, rng))
        [change] = compare(base, tuned)
        covered.append(change.ci_low <= 0.2 * 0.7 <= change.ci_high)
    assert 0.92 <= fmean(covered) <= 0.985


def test_compare_refuses_other_problems() -> None:
    with pytest.raises(EvaluationError, match="must answer the same problems of task, and 1 were"):
        compare(outcomes([[True]]), outcomes([[True], [False]]))


def test_compare_refuses_other_tasks() -> None:
    with pytest.raises(EvaluationError, match="on the same tasks, got one and two"):
        compare(outcomes([[True]], "one"), outcomes([[True]], "two"))


def test_a_demonstration_is_an_interval_wider_than_five_points_either_side() -> None:
    assert not is_only_a_demonstration(0.40, 0.50)
    assert is_only_a_demonstration(0.40, 0.51)
    [summary] = summarise(outcomes([[True], [False]] * 10))
    assert summary.is_demonstration
