"""What a sample is said to be made of."""

from dataclasses import replace

import pytest

from circuitseer_assets.method.composition import compare_composition, count_steps, value_of
from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import Sample


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


def rows(*columns: dict[str, object]) -> list[Sample]:
    return [
        sample_from_texts(f"p{i}", "1 + 1 = 2", source="a.jsonl", position=i, original=original)
        for i, original in enumerate(columns)
    ]


def test_a_subset_is_compared_by_every_column_that_has_kinds() -> None:
    samples = rows(*({"kind": "xy"[i % 2], "id": i, "one": 1, "p": "ab"[i % 2]} for i in range(60)))
    drawn = {sample.sample_id for sample in samples[:10:2]} | {samples[1].sample_id}
    [kind] = compare_composition(samples, drawn, text_columns=["p"])
    assert kind.column == "kind"  # id has too many values, one and source have one
    assert kind.corpus == {"x": 30, "y": 30}
    assert kind.subset == {"x": 5, "y": 1}


def test_a_column_that_only_repeats_another_is_left_out_and_free_text_as_well() -> None:
    samples = rows(*({"a": i % 3, "b": i % 3, "text": "long " * (i % 2 * 20)} for i in range(12)))
    compositions = compare_composition(samples, {samples[0].sample_id})
    assert [one.column for one in compositions] == ["a"]
    assert compositions[0].subset == {"0": 1}
