"""What a sample is said to be made of."""

from dataclasses import replace

import pytest

from circuitseer_assets.method.composition import count_steps, value_of
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.word_problems import generate_problems


@pytest.mark.parametrize(
    ("solution", "num_steps"),
    [
        ("She has 3*4=<<3*4=12>>12 pears and eats 2, so 12-2=<<12-2=10>>10.\n#### 10", 2),
        ("3 * 4 = 12; 12 - 2 = 10", 2),
        ("That is $3 x 5 = $15 in all.", 1),
        ("x = y, and nothing is calculated", 0),
    ],
)
def test_steps_are_the_calculations_written_out(solution: str, num_steps: int) -> None:
    assert count_steps(solution) == num_steps


def test_counted_steps_are_those_a_generated_problem_was_made_with() -> None:
    for problem in generate_problems(200, seed=3, split="train"):
        assert count_steps(problem.response) == problem.num_steps, problem.response


def test_a_column_of_the_corpus_comes_before_what_is_known_of_every_sample() -> None:
    one = sample_from_texts("p", "1 + 1 = 2", source="file.jsonl", position=0, original={})
    assert value_of(one, "source") == "file.jsonl"
    assert value_of(one, "num_steps") == "1"
    assert value_of(one, "family") == "None"
    own = replace(one, original={"source": "web", "num_steps": 7, "family": None})
    assert [value_of(own, c) for c in ("source", "num_steps", "family")] == ["web", "7", "None"]
