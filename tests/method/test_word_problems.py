"""The generator of word problems: its arithmetic, its two splits and its determinism."""

import operator
import re
import subprocess
import sys
from itertools import islice, pairwise

import pytest

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.word_problems import (
    FAMILIES,
    MAX_RESULT,
    WordProblem,
    generate_plain_texts,
    generate_problems,
    plant_wrong_step,
)

_RESPONSE = re.compile(r"((?:\d+[-+*/]\d+=\d+;)+)#### (\d+)")
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+);")
_APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module", params=["train", "held_out"])
def problems(request: pytest.FixtureRequest) -> list[WordProblem]:
    return list(generate_problems(3000, seed=7, split=request.param))


def _steps(problem: WordProblem) -> list[tuple[int, str, int, int]]:
    match = _RESPONSE.fullmatch(problem.response)
    assert match, problem
    return [(int(a), op, int(b), int(c)) for a, op, b, c in _STEP.findall(match[1])]


def test_every_step_is_true(problems: list[WordProblem]) -> None:
    for problem in problems:
        for left, operation, right, result in _steps(problem):
            assert _APPLY[operation](left, right) == result, problem


def test_steps_follow_from_one_another_and_end_in_the_answer(problems: list[WordProblem]) -> None:
    for problem in problems:
        steps = _steps(problem)
        assert len(steps) == problem.num_steps
        for before, after in pairwise(steps):
            assert after[0] == before[3], problem
        assert problem.response.endswith(f"={problem.answer};#### {problem.answer}")


def test_the_prompt_states_exactly_the_numbers_that_the_steps_use(
    problems: list[WordProblem],
) -> None:
    for problem in problems:
        steps = _steps(problem)
        used = [steps[0][0], *(right for _, _, right, _ in steps)]
        stated = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        assert sorted(stated) == sorted(used), problem


def test_numbers_stay_small_and_positive(problems: list[WordProblem]) -> None:
    for problem in problems:
        numbers = [int(number) for number in re.findall(r"\d+", problem.response)]
        assert min(numbers) >= 1, problem
        assert max(numbers) <= MAX_RESULT, problem


def test_prompts_are_short_plain_ascii_and_fully_filled_in(problems: list[WordProblem]) -> None:
    for problem in problems:
        assert problem.prompt.isascii()
        assert problem.prompt.isprintable()
        assert 30 <= len(problem.prompt) <= 200
        assert problem.prompt.endswith("?")
        assert "{" not in problem.prompt
        assert "  " not in problem.prompt


def test_all_families_and_step_counts_appear(problems: list[WordProblem]) -> None:
    seen = {(problem.family, problem.num_steps) for problem in problems}
    assert seen == {(family, steps) for family in FAMILIES for steps in (1, 2, 3)}


def test_a_template_fixes_family_steps_and_operations(problems: list[WordProblem]) -> None:
    meaning: dict[str, tuple[str, str]] = {}
    for problem in problems:
        operations = "".join(operation for _, operation, _, _ in _steps(problem))
        expected = meaning.setdefault(problem.template_id, (problem.family, operations))
        assert expected == (problem.family, operations)


def test_a_planted_wrong_step_is_one_and_is_carried_on(problems: list[WordProblem]) -> None:
    for problem in problems[:300]:
        wrong = plant_wrong_step(problem, seed=3)
        assert wrong == plant_wrong_step(problem, seed=3)
        assert (wrong.prompt, wrong.num_steps) == (problem.prompt, problem.num_steps)
        steps = _steps(wrong)
        assert [step[1] for step in steps] == [step[1] for step in _steps(problem)]
        assert sum(_APPLY[op](a, b) != c for a, op, b, c in steps) == 1
        assert all(before[3] == after[0] for before, after in pairwise(steps))
        assert wrong.response.endswith(f"#### {steps[-1][3]}")
        assert wrong.answer == str(steps[-1][3]) != problem.answer


def test_the_wrong_step_depends_on_the_seed(problems: list[WordProblem]) -> None:
    differ = sum(plant_wrong_step(p, seed=1) != plant_wrong_step(p, seed=2) for p in problems[:50])
    assert differ > 25


def test_held_out_problems_hold_a_sentence_that_training_never_says() -> None:
    def skeletons(problem: WordProblem) -> set[str]:
        masked = re.sub(r"\d+", "#", re.sub(r"\b(?!A\b|In\b)[A-Z][a-z]+\b", "@", problem.prompt))
        return {f"{problem.family}: {sentence}" for sentence in re.split(r"(?<=[.?!]) ", masked)}

    train = list(generate_problems(20000, seed=1, split="train"))
    held_out = list(generate_problems(3000, seed=1, split="held_out"))
    assert not {p.template_id for p in train} & {p.template_id for p in held_out}
    said = set().union(*(skeletons(problem) for problem in train))
    for problem in held_out:
        assert skeletons(problem) - said, problem


def test_the_same_arguments_give_the_same_problems_in_another_process() -> None:
    code = (
        "from circuitseer_assets.method.word_problems import *;"
        "print(list(generate_problems(20, seed=3, split='held_out')),"
        "list(generate_plain_texts(20, seed=3)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    here = (
        list(generate_problems(20, seed=3, split="held_out")),
        list(generate_plain_texts(20, seed=3)),
    )
    assert output == f"{here[0]} {here[1]}\n"


def test_known_problem_never_changes() -> None:
    """A changed wording or draw changes corpora that people have stored: make it on purpose."""
    first = next(generate_problems(1, seed=0, split="train"))
    assert first == WordProblem(
        family="baking",
        template_id="baking:mul0.div0",
        num_steps=2,
        prompt="Hugo bakes 10 trays of 4 cakes each. They go on 5 equal plates. "
        "How many are on each plate?",
        response="10*4=40;40/5=8;#### 8",
        answer="8",
    )


def test_asking_for_more_repeats_what_came_before() -> None:
    short = list(generate_problems(50, seed=5, split="train"))
    assert list(islice(generate_problems(5000, seed=5, split="train"), 50)) == short
    plain = list(generate_plain_texts(50, seed=5))
    assert list(islice(generate_plain_texts(5000, seed=5), 50)) == plain


def test_seeds_and_splits_give_different_problems() -> None:
    drawn = [
        {problem.prompt for problem in generate_problems(500, seed=seed, split=split)}
        for seed in (0, 1)
        for split in ("train", "held_out")
    ]
    for index, one in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert len(one & other) <= 5


def test_duplicates_are_rare() -> None:
    prompts = [problem.prompt for problem in generate_problems(5000, seed=0, split="train")]
    assert len(set(prompts)) >= 0.99 * len(prompts)


def test_families_and_steps_can_be_chosen() -> None:
    chosen = list(
        generate_problems(
            200, seed=0, split="train", families=["travel", "baking"], min_steps=2, max_steps=2
        )
    )
    assert {problem.family for problem in chosen} == {"travel", "baking"}
    assert {problem.num_steps for problem in chosen} == {2}


def test_plain_texts_hold_no_numbers_and_two_or_three_sentences() -> None:
    texts = list(generate_plain_texts(500, seed=0))
    assert {text.family for text in texts} == {"plain"}
    assert {(text.num_steps, text.answer) for text in texts} == {(0, "")}
    for text in texts:
        assert not re.search(r"[\d{}#+*/=]", text.prompt + text.response)
        assert 2 <= text.response.count(".") <= 3
    assert len({text.prompt for text in texts}) > 250


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"num_problems": -1},
            "num_problems must be 0 or more, got -1; ask for as many problems as you need",
        ),
        (
            {"split": "test"},
            "split must be 'train' or 'held_out', got 'test'; choose one of the two",
        ),
        (
            {"min_steps": 3, "max_steps": 2},
            "min_steps and max_steps must satisfy 1 <= min_steps <= max_steps <= 3, "
            "got 3 and 2; choose a range between 1 and 3",
        ),
        (
            {"families": ["cooking"]},
            f"families must name at least one of {', '.join(FAMILIES)}, got ['cooking']; "
            "leave it out to draw from all",
        ),
        (
            {"families": []},
            f"families must name at least one of {', '.join(FAMILIES)}, got []; "
            "leave it out to draw from all",
        ),
    ],
)
def test_impossible_arguments_are_refused_at_once(changed: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_problems": 1, "seed": 0, "split": "train", **changed}
    with pytest.raises(SettingsError) as error:
        generate_problems(**arguments)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_a_negative_number_of_plain_texts_is_refused() -> None:
    with pytest.raises(SettingsError, match="num_texts must be 0 or more, got -2; ask for as many"):
        generate_plain_texts(-2, seed=0)
