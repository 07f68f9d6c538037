import dataclasses
import itertools
import random

import pytest

from circuitseer_assets.method.corpus import sample_from_texts
from circuitseer_assets.method.decontamination import (
    ContaminatedSample,
    find_contaminated,
    match_near_duplicate,
)
from circuitseer_assets.method.problem_text import normalise_problem
from circuitseer_assets.method.word_problems import generate_problems
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
        "Ann has 1,300 apples. What's left?",
        "Bob has 1,200 pears and gives away half of them. How many pears has he now?",
        "What's left, in $kg$?",
        "",
        "?!",
    ],
)
def test_clean_prompts_are_left_alone(prompt):
    assert rules(prompt, PROBLEM) == []


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


# overlap and likeness -----------------------------------------------------------------------------

LONG = Problem(
    "toy",
    "9",
    "A farmer has 24 sheep and 15 goats on a hill. In spring 9 lambs are born, and in autumn he "
    "sells a third of all his animals at the market for 40 dollars each. How much does he earn?",
)


def test_a_problem_reworded_by_a_few_words_is_a_near_duplicate():
    reworded = LONG.prompt
    for old, new in (("sheep", "cows"), ("lambs", "calves"), ("he sells", "are sold")):
        assert old in reworded
        reworded = reworded.replace(old, new)
    reworded = reworded.replace("market", "fair")
    assert rules(reworded, LONG) == ["near_duplicate"]


@pytest.mark.parametrize("num_changed", [1, 2, 3, 4])
def test_short_problems_with_a_few_words_changed_are_caught(num_changed: int):
    """Any word but the numbers may change; where no more than three in ten do, it is found."""
    generator = random.Random(num_changed)
    caught = planted = 0
    for problem in generate_problems(300, seed=3, split="held_out"):
        words = problem.prompt.split()
        changeable = [i for i, word in enumerate(words) if normalise_problem(word).isalpha()]
        if num_changed > 0.3 * len(words):
            continue
        for i in generator.sample(changeable, num_changed):
            words[i] = generator.choice(["Zorp", "blicks", "quam"])
        planted += 1
        caught += bool(rules(" ".join(words), Problem("toy", "1", problem.prompt)))
    assert planted > 150
    assert caught >= 0.98 * planted


@pytest.mark.parametrize(
    ("problem", "reworded"),
    [
        (
            "Tom had 48 marbles and gave half of them to a friend. How many are left?",
            "Tim had 48 pebbles and gave half of them to his friend. How many remain?",
        ),
        (
            "How many prime numbers are smaller than 50?",
            "How many primes are there smaller than 50?",
        ),
        ("What is the largest prime factor of 1,764?", "Find the largest prime factor of 1764."),
    ],
)
def test_short_problems_with_a_single_number_are_caught_reworded(problem: str, reworded: str):
    assert rules(reworded, Problem("toy", "1", problem))


@pytest.mark.parametrize(
    "other",
    [
        "Ann had 48 pens and lost a third of them on her way home. How many has she now?",
        "A train takes 48 minutes from one town to the next. How many seconds is that?",
        "How many letters does half of a page have?",
    ],
)
def test_other_problems_with_the_same_single_number_are_clean(other: str):
    problem = "Tom had 48 marbles and gave half of them to a friend. How many are left?"
    assert rules(other, Problem("toy", "1", problem)) == []


def test_a_short_problem_that_differs_in_what_is_asked_alone_is_removed_all_the_same():
    """Words do not tell it from one that is re-worded, and a lost sample costs less than a leak."""
    asked = Problem("toy", "1", "What is the sum of 3 and 5, and what is its half?")
    assert rules("What is the product of 3 and 5, and what is its half?", asked)


def test_another_question_about_the_same_numbers_is_clean():
    problem = Problem(
        "toy", "1", "Ann reads 3 pages and Bo takes 2 of them away. How many are left?"
    )
    assert (
        rules("Three shops sell pens at 2 coins each; what do they earn on Monday?", problem) == []
    )
    assert rules("3 - 2", Problem("toy", "1", "3 - 2 + 0")) == []


def test_a_problem_with_its_numbers_written_otherwise_is_the_same():
    other = LONG.prompt.replace("24", "24.0").replace("15", "fifteen").replace("40", "40.00")
    assert rules(other, LONG) == ["normalised"]


@pytest.mark.parametrize(
    ("problem", "copy"),
    [
        ("What is 1764 divided by 12?", "What is 1{,}764 divided by 12?"),
        ("What is 3 \u22c5 4 + 5?", r"What is $3 \cdot 4+5$?"),
        ("Simplify \u221a2 \u00b7 \u221a8", r"Simplify $\sqrt{2}\cdot\sqrt 8$"),
        ("Find x\u00b2 if x=3", "Find $x^{2}$ if x=3"),
        (
            "How many integers lie between 100 and 500?",
            "How many integers lie between one hundred and five hundred?",
        ),
        ("Ann has 50. 5 friends take 2 each.", "Ann has fifty. Five friends take two each."),
        ("What is the sum of 20, 5 and 3?", "What is the sum of twenty, five and three?"),
    ],
)
def test_short_problems_in_another_notation_are_the_same(problem: str, copy: str):
    assert rules(copy, Problem("toy", "1", problem)) == ["normalised"]


@pytest.mark.parametrize(
    ("problem", "other"),
    [
        ("What is 23 + 1?", "What is 2\u00b3 + 1?"),
        ("What is 16 + 9?", "What is \u221a16 + 9?"),
        ("What is 5 - 3?", "What is 5! - 3?"),
        ("Compute 2 + 3 * 4.", "Compute (2 + 3) * 4."),
        (r"Simplify $a+\frac{b}{c}$", r"Simplify $\frac{a+b}{c}$"),
        ("Solve x - 3 = 5.", "Solve |x - 3| = 5."),
        (r"Differentiate $\sin x \cos x$", r"Differentiate $\sin x - \cos x$"),
        (r"Evaluate $5\pi$ numerically", r"Evaluate $5 - \pi$ numerically"),
    ],
)
def test_short_problems_that_differ_in_a_sign_are_clean(problem: str, other: str):
    assert rules(other, Problem("toy", "1", problem)) == []


def test_thirteen_words_in_a_row_are_enough():
    copied = "Tell me this. In spring 9 lambs are born, and in autumn he sells a third of it. Why?"
    assert rules(copied, LONG) == ["13_words"]
    # One word fewer is a phrase.
    copied = (
        "Tell me this. In spring 9 lambs are born, and in autumn he sells. Why? And who buys them?"
    )
    assert rules(copied, LONG) == []


def test_half_of_the_runs_of_eight_are_enough():
    """A problem of 17 words has 10 runs of 8; a word put in after the twelfth leaves 5."""
    words = [f"w{letter}" for letter in "abcdefghijklmnopq"]
    problem = Problem("toy", "1", " ".join(words))
    in_two = " ".join([*words[:12], "or", *words[12:]])
    assert rules(in_two, problem)[0] == "8_words"


def brute_force_likeness(one: str, other: str) -> float:
    pairs = [set(itertools.pairwise(normalise_problem(text).split())) for text in (one, other)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def test_near_duplicates_are_those_of_the_exact_similarity():
    """Every pair of generated problems and partial rewrites, against the definition in loops."""
    generator = random.Random(0)
    problems = [
        Problem("toy", str(i), p.prompt)
        for i, p in enumerate(generate_problems(40, seed=1, split="held_out", min_steps=3))
    ]
    prompts = []
    for problem in problems:
        words = problem.prompt.split()
        for share in (0.05, 0.1, 0.2, 0.4):
            prompts.append(
                " ".join("word" if generator.random() < share else word for word in words)
            )
    matcher = match_near_duplicate(problems)
    found = missed = 0
    for prompt in prompts:
        expected = {p.doc_id for p in problems if brute_force_likeness(prompt, p.prompt) >= 0.6}
        got = {p.doc_id for p in matcher(sample(prompt))}
        assert got <= expected
        found += len(got)
        missed += len(expected - got)
    assert found > 40
    assert missed <= 0.02 * (found + missed)  # what a hash may miss


def quantities(words: list[str]) -> list[str]:
    return [word for word in words if not word.isalpha()]


def longest_common_subsequence(one: list[str], other: list[str]) -> int:
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for j, its in enumerate(other):
            above = lengths[j + 1]
            lengths[j + 1] = before + 1 if word == its else max(above, lengths[j])
            before = above
    return lengths[-1]


def holds(prompt: str, problem: str, rule: str) -> bool:
    """Whether a rule's definition holds, in loops."""
    words = f" {normalise_problem(prompt)} "
    asked = normalise_problem(problem).split()

    def shared(size: int) -> list[bool]:
        runs = {" ".join(asked[i : i + size]) for i in range(len(asked) - size + 1)}
        return [f" {run} " in words for run in runs]

    if rule == "near_duplicate":
        return brute_force_likeness(prompt, problem) >= 0.6
    if rule == "same_quantities":
        own = normalise_problem(prompt).split()
        in_order = 2 * longest_common_subsequence(own, asked) / (len(own) + len(asked))
        enough = 0.6 if len(quantities(asked)) > 1 else 0.7
        return quantities(own) == quantities(asked) and in_order >= enough
    return any(shared(13)) if rule == "13_words" else sum(shared(8)) >= len(shared(8)) / 2


def test_generated_problems_of_other_templates_are_removed_for_what_they_share_only():
    """A pool and a benchmark of the study's sizes, which share families but no template.

    Whole sentences recur within a family, and short problems differ in a word: one sample in twenty
    is removed, each for a reason that is there.
    """
    problems = {
        str(i): p.prompt for i, p in enumerate(generate_problems(1000, seed=0, split="held_out"))
    }
    pool = {
        one.sample_id: one
        for one in (sample(p.prompt) for p in generate_problems(4000, seed=7, split="train"))
    }
    benchmark = [Problem("toy", doc_id, prompt) for doc_id, prompt in problems.items()]
    found = list(find_contaminated(pool.values(), benchmark))
    for match in found:
        prompt = pool[match.sample_id].messages[0].content
        assert holds(prompt, problems[match.doc_id], match.rule), match
    assert 0 < len({match.sample_id for match in found}) <= 0.06 * len(pool)
