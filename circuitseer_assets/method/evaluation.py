"""Outcomes in, Pass@1 figures out: how good a model is at a task, and whether it got better.

Problems are what is sampled; repeats of one problem are not independent of each other. Every
interval here is therefore taken over problems, and all of them are 95 % intervals.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.records import Outcome

CODE_VERSION = "1"
"""Counts up whenever the same responses would give other figures."""

DEMONSTRATION_HALF_WIDTH = 0.05
"""An interval wider than this to either side shows that a thing works, not how well."""

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """Pass@1 of one model on one task, with a 95 % interval."""

    task: str
    num_problems: int
    num_repeats: int
    pass_at_1: float
    ci_low: float
    ci_high: float
    truncation_rate: float

    @property
    def is_demonstration(self) -> bool:
        """Whether the interval is too wide for the figure to be evidence."""
        return is_only_a_demonstration(self.ci_low, self.ci_high)


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """Pass@1 of a checkpoint minus that of its base model, on the same problems of one task.

    A problem counts as solved when more than half of its repeats are right.
    """

    task: str
    num_problems: int
    difference: float
    ci_low: float
    ci_high: float
    num_newly_solved: int
    num_newly_lost: int

    @property
    def is_demonstration(self) -> bool:
        """Whether the interval is too wide for the difference to be evidence."""
        return is_only_a_demonstration(self.ci_low, self.ci_high)


def pass_at_k(num_repeats: int, num_correct: int, k: int) -> float:
    """Returns the chance that at least one of k answers is right, without bias.

    Raises:
        EvaluationError: `k` is above the number of repeats.

    Reference: Chen et al., arXiv 2107.03374, equation 1; for k = 1 it is the share of right ones.
    """
    if not 1 <= k <= num_repeats:
        raise EvaluationError(
            f"k must be between 1 and {num_repeats} (the number of repeats), got {k}; raise "
            f"evaluation.num_repeats"
        )
    return 1.0 - math.comb(num_repeats - num_correct, k) / math.comb(num_repeats, k)


def summarise(outcomes: Iterable[Outcome]) -> list[TaskSummary]:
    """Returns Pass@1 by task: the mean over the repeats of a problem, then over the problems.

    The interval is Wilson's, which does not collapse when all or no answers are right. With
    repeats its sample size is the effective one, p(1-p) over the variance of the problems' means,
    at least the number of problems and at most the number of answers.

    Raises:
        EvaluationError: there is no outcome, or some problem has other repeats than the rest.

    Reference: Wilson, 1927; for the effective sample size Korn and Graubard, 1998.
    """
    tasks = _by_task(outcomes)
    return [_summarise_task(task, problems) for task, problems in tasks.items()]


def compare(base: Iterable[Outcome], checkpoint: Iterable[Outcome]) -> list[TaskComparison]:
    """Returns how Pass@1 changed from base model to checkpoint, problem by problem.

    The interval is Agresti and Min's for paired proportions: Wald's after adding half a
    problem to each of the four cells, so that it does not collapse when no problem changes sides.
    With repeats a problem's difference lies between -1 and 1, and the same formula holds.

    Raises:
        EvaluationError: the two did not answer the same problems.

    Reference: Agresti and Min, Statistics in Medicine, 2005.
    """
    before, after = _by_task(base), _by_task(checkpoint)
    if before.keys() != after.keys():
        raise EvaluationError(
            f"base model and checkpoint must be evaluated on the same tasks, got "
            f"{', '.join(before)} and {', '.join(after)}; run make run"
        )
    return [_compare_task(task, before[task], after[task]) for task in before]


def is_only_a_demonstration(ci_low: float, ci_high: float) -> bool:
    """Returns whether an interval is wider than five points to either side."""
    return ci_high - ci_low > 2 * DEMONSTRATION_HALF_WIDTH + 1e-12


# one task -----------------------------------------------------------------------------------------

_Problems = Mapping[str, Sequence[Outcome]]


def _by_task(outcomes: Iterable[Outcome]) -> dict[str, dict[str, list[Outcome]]]:
    tasks: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        tasks[outcome.task][outcome.doc_id].append(outcome)
    if not tasks:
        raise EvaluationError("an evaluation must have at least one outcome, got none")
    for task, problems in tasks.items():
        repeats = {tuple(sorted(o.repeat for o in answers)) for answers in problems.values()}
        expected = tuple(range(max(len(numbers) for numbers in repeats)))
        if repeats != {expected}:
            raise EvaluationError(
                f"every problem of {task} must have the repeats 0 to {len(expected) - 1} once "
                f"each, and some have not; evaluate again"
            )
    return tasks


def _summarise_task(task: str, problems: _Problems) -> TaskSummary:
    means = [_mean(answers) for answers in problems.values()]
    num_repeats = len(next(iter(problems.values())))
    low, high = _wilson(fmean(means), _effective_size(means, num_repeats))
    return TaskSummary(
        task=task,
        num_problems=len(means),
        num_repeats=num_repeats,
        pass_at_1=fmean(means),
        ci_low=low,
        ci_high=high,
        truncation_rate=fmean(o.truncated for answers in problems.values() for o in answers),
    )


def _compare_task(task: str, before: _Problems, after: _Problems) -> TaskComparison:
    if before.keys() != after.keys():
        raise EvaluationError(
            f"base model and checkpoint must answer the same problems of {task}, and "
            f"{len(before.keys() ^ after.keys())} were answered by one of them only; evaluate again"
        )
    pairs = [(_mean(before[doc_id]), _mean(after[doc_id])) for doc_id in before]
    differences = [new - old for old, new in pairs]
    low, high = _paired_interval(differences)
    return TaskComparison(
        task=task,
        num_problems=len(pairs),
        difference=fmean(differences),
        ci_low=low,
        ci_high=high,
        num_newly_solved=sum(old <= 0.5 < new for old, new in pairs),
        num_newly_lost=sum(new <= 0.5 < old for old, new in pairs),
    )


def _mean(answers: Sequence[Outcome]) -> float:
    return pass_at_k(len(answers), sum(answer.correct for answer in answers), 1)


def _effective_size(means: Sequence[float], num_repeats: int) -> float:
    size = len(means)
    p = fmean(means)
    spread = sum((mean - p) ** 2 for mean in means)
    if num_repeats == 1 or spread == 0:
        return size
    variance = spread / (size - 1) / size
    return min(max(p * (1 - p) / variance, size), size * num_repeats)


def _wilson(p: float, size: float) -> tuple[float, float]:
    centre = (p + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * math.sqrt(p * (1 - p) / size + _Z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    size = len(differences) + 2
    total = sum(differences)
    squares = sum(difference**2 for difference in differences) + 1
    half = _Z * math.sqrt(squares - total**2 / size) / size
    return max(-1.0, total / size - half), min(1.0, total / size + half)
