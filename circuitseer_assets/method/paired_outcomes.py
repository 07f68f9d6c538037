"""Two evaluations of the same problems in, what became of each problem out."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.records import Outcome


@dataclass(frozen=True, slots=True)
class PairedProblems:
    """The problems of one task by what base model and checkpoint made of them, in their order.

    A problem counts as solved when more than half of its repeats are right.
    """

    task: str
    solved_by_both: tuple[str, ...]
    newly_solved: tuple[str, ...]
    newly_lost: tuple[str, ...]
    solved_by_neither: tuple[str, ...]


def pair_problems(base: Iterable[Outcome], checkpoint: Iterable[Outcome]) -> list[PairedProblems]:
    """Returns the problems of every task by who solved them.

    Raises:
        EvaluationError: the two did not answer the same problems.
    """
    before, after = _solved(base), _solved(checkpoint)
    if before.keys() != after.keys():
        raise EvaluationError(
            f"base model and checkpoint must answer the same problems, and "
            f"{len(before.keys() ^ after.keys())} were answered by one of them only; evaluate again"
        )
    groups: dict[str, dict[tuple[bool, bool], list[str]]] = defaultdict(lambda: defaultdict(list))
    for (task, doc_id), was_solved in before.items():
        groups[task][was_solved, after[task, doc_id]].append(doc_id)
    return [
        PairedProblems(
            task=task,
            solved_by_both=tuple(cells[True, True]),
            newly_solved=tuple(cells[False, True]),
            newly_lost=tuple(cells[True, False]),
            solved_by_neither=tuple(cells[False, False]),
        )
        for task, cells in groups.items()
    ]


def _solved(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], bool]:
    answers: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for outcome in outcomes:
        answers[outcome.task, outcome.doc_id].append(outcome.correct)
    return {key: 2 * sum(right) > len(right) for key, right in answers.items()}
