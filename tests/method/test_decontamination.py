import dataclasses
import itertools

import pytest

from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.decontamination import (
    ContaminatedSample,
    find_contaminated,
    normalise_problem,
)
from circuitseer_assets.records import Message, Problem

PROBLEM = Problem("toy", "7", "Ann has 1,200 apples. She gives away 3.5 kg. What's left, in $kg$?")


def sample(prompt: str):
    return sample_from_texts(prompt, "irrelevant", source="s", position=0, original={})


def rules(prompt: str, *problems: Problem) -> list[str]:
    return [found.rule for found in find_contaminated([sample(prompt)], problems)]


def test_a_verbatim_problem_is_found_and_named():
    repeated = sample(PROBLEM.prompt)
    clean = sample("Another problem.")
    found = list(find_contaminated([clean, repeated], [PROBLEM]))
    assert found == [ContaminatedSample(repeated.sample_id, "toy", "7", "verbatim")]


def test_white_space_at_the_ends_is_still_verbatim():
    assert rules(f"\n {PROBLEM.prompt} ", PROBLEM) == ["verbatim"]


@pytest.mark.parametrize(
    "prompt",
    [
        PROBLEM.prompt.upper(),
        PROBLEM.prompt.replace(" ", "\n "),
        "ann has 1200 apples she gives away 3.5 kg what\u2019s left in kg",
        "Ann has 1,200 apples; she gives away 3.5 kg -- what's left (in kg)?!",
        "\uff21nn has 1,200 apples. She gives away 3.5 kg. What's left, in kg?",
    ],
)
def test_case_space_and_punctuation_make_no_difference(prompt):
    assert rules(prompt, PROBLEM) == ["normalised"]


@pytest.mark.parametrize(
    "prompt",
    [
        PROBLEM.prompt.replace("1,200", "1,300"),
        PROBLEM.prompt.replace("3.5", "35"),
        PROBLEM.prompt.replace("away", "Bob"),
        PROBLEM.prompt + " And in pounds?",
        "",
        "?!",
    ],
)
def test_clean_prompts_are_left_alone(prompt):
    assert rules(prompt, PROBLEM) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8 - 2", "8 / 2"),
        ("8 * 2", "8 / 2"),
        ("x - y", "x + y"),
        ("1.5", "15"),
        ("-3", "3"),
        ("a < b", "a > b"),
        ("x^2", "x2"),
        ("1,23", "123"),
        ("50 %", "50"),
    ],
)
def test_a_changed_sign_or_number_is_another_problem(one, other):
    assert normalise_problem(one) != normalise_problem(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8\u22122", "8 - 2"),
        ("3 \u00d7 4", "3*4"),
        ("a $9$-kilometer walk", "A 9 kilometer walk"),
        ("well-known", "well known"),
        ("the dog - who ran - slept", "the dog, who ran, slept"),
        ("x=5", "x = 5"),
        ("12,000,000", "12000000"),
    ],
)
def test_other_spellings_of_the_same_problem(one, other):
    assert normalise_problem(one) == normalise_problem(other)


def test_a_problem_without_words_matches_nothing():
    assert rules("?!", Problem("toy", "0", "...")) == []
    assert rules("", Problem("toy", "0", "")) == []


def test_every_problem_a_sample_repeats_is_named_once():
    problems = [
        Problem("one", "1", "What is 1+1?"),
        Problem("two", "1", "what is 1 + 1"),
        Problem("two", "2", "What is 1+1?"),
    ]
    found = list(find_contaminated([sample("What is 1+1?")], problems))
    assert {(f.task, f.doc_id, f.rule) for f in found} == {
        ("one", "1", "verbatim"),
        ("two", "1", "normalised"),
        ("two", "2", "verbatim"),
    }
    assert len(found) == 3


def test_a_problem_is_found_in_any_turn_of_a_chat():
    chat = dataclasses.replace(
        sample("unused"),
        messages=(Message("system", "Think."), Message("user", PROBLEM.prompt)),
    )
    assert [f.rule for f in find_contaminated([chat], [PROBLEM])] == ["verbatim"]


def test_samples_are_streamed():
    endless = (sample(f"Q{i}") for i in itertools.count())
    found = find_contaminated(endless, [Problem("toy", "3", "q3")])
    assert next(found).doc_id == "3"


def test_without_problems_nothing_is_contaminated():
    assert list(find_contaminated([sample("Q")], [])) == []
