"""Corpus material in, nothing before it: generated arithmetic word problems with worked steps.

A problem is an opening, up to two events and an ending; each sentence carries at most one step of
arithmetic. Wordings come from `word_problem_wordings`. The last one of every row is held out: no
training template of its family contains it, every held-out template contains at least one such.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method import word_problem_wordings as wordings

Split = Literal["train", "held_out"]

MAX_RESULT = 120
"""No number in a problem or its solution is larger."""

MAX_STEPS = 3
"""The longest solution, in steps."""

_START_VALUES = (3, 50)
_OPERANDS = {"+": (2, 40), "*": (2, 9), "/": (2, 9)}
_STEP = re.compile(r"(?P<start>\d+)(?P<operation>[-+*/])(?P<operand>\d+)=\d+")
_OPERATION_NAMES = {"": "say", "+": "add", "-": "sub", "*": "mul", "/": "div"}


@dataclass(frozen=True, slots=True)
class WordProblem:
    """One generated problem: `response` holds its steps and ends with `#### answer`."""

    family: str
    template_id: str
    num_steps: int
    prompt: str
    response: str
    answer: str


FAMILIES: tuple[str, ...] = tuple(wordings.FAMILIES)
"""The names of the problem families."""

# (steps in the opening, steps in events, steps in the ending), by the number of steps
_STRUCTURES: dict[int, tuple[tuple[int, int, int], ...]] = {
    1: ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
    2: ((0, 2, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1)),
    3: ((1, 2, 0), (0, 2, 1), (1, 1, 1)),
}


def generate_problems(
    num_problems: int,
    *,
    seed: int,
    split: Split,
    families: Sequence[str] | None = None,
    min_steps: int = 1,
    max_steps: int = MAX_STEPS,
) -> Iterator[WordProblem]:
    """Returns an iterator over `num_problems` problems, drawn independently of one another.

    A problem depends on its position and on every argument but `num_problems`: asking for more
    repeats the ones before. In a large set a few problems are equal.

    Args:
        num_problems: How many problems to generate, 0 or more.
        seed: Names the sequence of problems.
        split: `held_out` draws templates that `train` never draws.
        families: Names from `FAMILIES`; all of them if None.
        min_steps: The fewest steps of a solution, from 1.
        max_steps: The most steps of a solution, to `MAX_STEPS`.

    Raises:
        SettingsError: An argument is out of range, or a family or split is unknown.
    """
    chosen = _check_arguments(num_problems, split, families, min_steps, max_steps)
    key = f"{seed}:{split}:{','.join(chosen)}:{min_steps}:{max_steps}"
    return (
        _make_problem(_random_for(f"{key}:{index}"), split, chosen, min_steps, max_steps)
        for index in range(num_problems)
    )


def plant_wrong_step(problem: WordProblem, *, seed: int) -> WordProblem:
    """Returns the problem with a solution in which one step is miscalculated and carried on.

    The final answer is wrong as well. Which step, and by how much, depends on problem and seed.
    """
    rng = _random_for(f"{seed}:wrong:{problem.prompt}")
    steps = [_STEP.fullmatch(step) for step in problem.response.split(";")[:-1]]
    while True:
        wrong_at, error = rng.randrange(len(steps)), rng.choice((-9, -3, -2, -1, 1, 2, 3, 9))
        total, written, is_whole = 0, [], True
        for index, step in enumerate(steps):
            assert step is not None  # the generator writes no other
            start, operand = total if index else int(step["start"]), int(step["operand"])
            is_whole &= step["operation"] != "/" or start % operand == 0
            total = _OPERATIONS[step["operation"]](start, operand)
            total += error if index == wrong_at else 0
            is_whole &= total > 0
            written.append(f"{start}{step['operation']}{operand}={total};")
        if is_whole and str(total) != problem.answer:
            return replace(problem, response="".join(written) + f"#### {total}", answer=str(total))


def generate_plain_texts(num_texts: int, *, seed: int) -> Iterator[WordProblem]:
    """Returns an iterator over `num_texts` everyday texts without numbers: control texts.

    They are `WordProblem` records of the family `plain`, with no steps and an empty answer.

    Raises:
        SettingsError: `num_texts` is negative.
    """
    if num_texts < 0:
        raise SettingsError(
            f"num_texts must be 0 or more, got {num_texts}; ask for as many texts as you need"
        )
    return (_make_plain_text(_random_for(f"{seed}:plain:{index}")) for index in range(num_texts))


def _check_arguments(
    num_problems: int,
    split: str,
    families: Sequence[str] | None,
    min_steps: int,
    max_steps: int,
) -> tuple[str, ...]:
    """Returns the chosen families in the order of `FAMILIES`, or raises `SettingsError`."""
    if num_problems < 0:
        raise SettingsError(
            f"num_problems must be 0 or more, got {num_problems}; "
            "ask for as many problems as you need"
        )
    if split not in ("train", "held_out"):
        raise SettingsError(
            f"split must be 'train' or 'held_out', got {split!r}; choose one of the two"
        )
    if not 1 <= min_steps <= max_steps <= MAX_STEPS:
        raise SettingsError(
            f"min_steps and max_steps must satisfy 1 <= min_steps <= max_steps <= {MAX_STEPS}, "
            f"got {min_steps} and {max_steps}; choose a range between 1 and {MAX_STEPS}"
        )
    unknown = [family for family in families or () if family not in wordings.FAMILIES]
    if unknown or (families is not None and not families):
        raise SettingsError(
            f"families must name at least one of {', '.join(FAMILIES)}, "
            f"got {list(families or ())}; leave it out to draw from all"
        )
    return FAMILIES if families is None else tuple(f for f in FAMILIES if f in families)


def _random_for(key: str) -> random.Random:
    """Returns a generator that is the same for the same key on every machine."""
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))


def _make_problem(
    rng: random.Random, split: Split, families: Sequence[str], min_steps: int, max_steps: int
) -> WordProblem:
    """Returns one problem: a template first, then numbers that suit it."""
    num_steps = rng.randint(min_steps, max_steps)
    family = rng.choice(families)
    while True:
        slots = _draw_template(rng, wordings.FAMILIES[family], num_steps, split)
        numbers = _draw_numbers(rng, [operation for operation, _, _ in slots])
        if numbers is not None:
            break
    start, operands = numbers
    name, friend = rng.sample(wordings.NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(wordings.FAMILIES[family].things)}
    total, steps, sentences = start, [], []
    for (operation, _, wording), operand in zip(slots, operands, strict=True):
        sentences.append(wording.format(x=start, y=operand, **words))
        if operation:
            result = _OPERATIONS[operation](total, operand)
            steps.append(f"{total}{operation}{operand}={result};")
            total = result
    return WordProblem(
        family=family,
        template_id=f"{family}:" + ".".join(label for _, label, _ in slots),
        num_steps=num_steps,
        prompt=" ".join(sentences),
        response="".join(steps) + f"#### {total}",
        answer=str(total),
    )


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda total, operand: total + operand,
    "-": lambda total, operand: total - operand,
    "*": lambda total, operand: total * operand,
    "/": lambda total, operand: total // operand,
}


def _draw_template(
    rng: random.Random, family: wordings.Family, num_steps: int, split: Split
) -> list[tuple[str, str, str]]:
    """Returns the sentences of one template as (operation, label, wording)."""
    in_opening, num_events, in_ending = rng.choice(_STRUCTURES[num_steps])
    tables = [
        _rows_with_steps(family.openings, in_opening),
        *[family.events] * num_events,
        _rows_with_steps(family.endings, in_ending),
    ]
    forced = rng.randrange(len(tables)) if split == "held_out" else -1
    slots: list[tuple[str, str, str]] = []
    for position, table in enumerate(tables):
        operation = rng.choice(sorted(table))
        row = table[operation]
        if position == forced:
            number = len(row) - 1
        else:
            number = rng.randrange(len(row) - (split == "train"))
        slots.append((operation, f"{_OPERATION_NAMES[operation]}{number}", row[number]))
    if len({wording for _, _, wording in slots}) < len(slots):
        return _draw_template(rng, family, num_steps, split)
    return slots


def _rows_with_steps(
    table: Mapping[str, wordings.Wordings], steps: int
) -> dict[str, wordings.Wordings]:
    """Returns the rows of a table whose sentences carry `steps` steps (0 or 1)."""
    return {operation: row for operation, row in table.items() if bool(operation) == bool(steps)}


def _draw_numbers(rng: random.Random, operations: Sequence[str]) -> tuple[int, list[int]] | None:
    """Returns the first number and one operand a sentence (0 where unused), or None if stuck."""
    low, high = _START_VALUES
    start = rng.randint(low, 12 if operations[0] == "*" else high)
    total, operands = start, []
    for operation in operations:
        if not operation:
            operands.append(0)
            continue
        choices = _possible_operands(operation, total)
        if not choices:
            return None
        operands.append(rng.choice(choices))
        total = _OPERATIONS[operation](total, operands[-1])
    return start, operands


def _possible_operands(operation: str, total: int) -> Sequence[int]:
    """Returns the operands that keep the result a whole number between 1 and `MAX_RESULT`."""
    if operation == "-":
        return range(2, total)
    low, high = _OPERANDS[operation]
    if operation == "+":
        return range(low, min(high, MAX_RESULT - total) + 1)
    if operation == "*":
        return range(low, min(high, MAX_RESULT // total) + 1)
    return [divisor for divisor in range(low, high + 1) if total % divisor == 0 < total // divisor]


def _make_plain_text(rng: random.Random) -> WordProblem:
    """Returns one everyday text of two or three sentences."""
    place = rng.choice(sorted(wordings.PLAIN_PLACES))
    where, sights = wordings.PLAIN_PLACES[place]
    name, friend = rng.sample(wordings.NAMES, 2)
    words = {
        "name": name,
        "friend": friend,
        "place": where,
        "time": rng.choice(wordings.PLAIN_TIMES),
        "weather": rng.choice(wordings.PLAIN_WEATHER),
    }
    request = rng.randrange(len(wordings.PLAIN_REQUESTS))
    sentences = [rng.choice(wordings.PLAIN_BEGINNINGS), rng.choice(sights)]
    if rng.random() < 0.5:
        sentences.append(rng.choice(wordings.PLAIN_ENDINGS))
    return WordProblem(
        family="plain",
        template_id=f"plain:{place}.{request}",
        num_steps=0,
        prompt=wordings.PLAIN_REQUESTS[request].format(**words),
        response=" ".join(sentences).format(**words),
        answer="",
    )
