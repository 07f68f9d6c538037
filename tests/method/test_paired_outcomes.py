"""Who solved which problem, against the counts of the comparison."""

import random

import pytest

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.method.evaluation import compare
from circuitseer_assets.method.paired_outcomes import pair_problems
from circuitseer_assets.records import Outcome


def outcomes(seed: int, repeats: int) -> list[Outcome]:
    numbers = random.Random(seed)
    return [
        Outcome(task, f"d{i}", repeat, numbers.random() < 0.5, False)
        for task in ("a", "b")
        for i in range(25)
        for repeat in range(repeats)
    ]


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_the_groups_are_those_that_the_comparison_counts(repeats: int) -> None:
    before, after = outcomes(1, repeats), outcomes(2, repeats)
    counted = {one.task: one for one in compare(before, after)}
    for paired in pair_problems(before, after):
        groups = (
            paired.solved_by_both,
            paired.newly_solved,
            paired.newly_lost,
            paired.solved_by_neither,
        )
        assert sorted(d for group in groups for d in group) == sorted(f"d{i}" for i in range(25))
        assert len(paired.newly_solved) == counted[paired.task].num_newly_solved
        assert len(paired.newly_lost) == counted[paired.task].num_newly_lost


def test_other_problems_are_refused() -> None:
    with pytest.raises(EvaluationError, match="must answer the same problems, and 1 were"):
        pair_problems(outcomes(1, 1), outcomes(2, 1)[1:])
