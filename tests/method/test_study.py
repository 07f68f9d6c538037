"""The study's statistics: by hand, against another library, and on simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.method.study import (
    Comparison,
    bootstrap_interval,
    compare_methods,
    decide,
    mcnemar,
)

METHODS = ("circuitseer", "random", "full", "oracle")
PAIRS = [("circuitseer", "random"), ("circuitseer", "full"), ("oracle", "random")]


def simulate(generator, *, effect=0.0, num_seeds=6, num_problems=300, run_sd=0.02) -> dict:
    """Returns a study in which runs differ by chance, and `circuitseer` by `effect` as well."""
    difficulty = generator.normal(0, 0.25, num_problems)
    seed_effect = generator.normal(0, 0.02, num_seeds)
    outcomes = {}
    for method in METHODS:
        run = seed_effect + generator.normal(0, run_sd, num_seeds)
        taste = generator.normal(0, 0.05, num_problems)  # what one method answers better
        chance = 0.5 + difficulty + taste + run[:, None] + (effect if method == METHODS[0] else 0)
        outcomes[method] = (generator.random(chance.shape) < chance.clip(0, 1)).astype(float)
    return outcomes


def first_comparison(outcomes) -> Comparison:
    return compare_methods(outcomes, PAIRS, primary=PAIRS[:2], num_bootstrap=300)[0]


@pytest.fixture(scope="module")
def null() -> list[Comparison]:
    generator = np.random.default_rng(1)
    return [first_comparison(simulate(generator)) for _ in range(400)]


def within_binomial(share: float, expected: float, size: int) -> bool:
    """Whether a share lies within three standard errors, and two points of misfit, of another."""
    return abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / size) + 0.02


def test_a_null_effect_is_found_as_often_as_it_says(null) -> None:
    assert within_binomial(np.mean([row.p_value <= 0.05 for row in null]), 0.05, len(null))


def test_intervals_cover_as_often_as_they_say(null) -> None:
    assert within_binomial(np.mean([row.ci_low <= 0 <= row.ci_high for row in null]), 0.95, 400)
    # The two-way bootstrap counts the rest's variance more than once: it covers more.
    covered = np.mean([row.bootstrap_low <= 0 <= row.bootstrap_high for row in null])
    assert covered >= 0.93


def test_the_smallest_effect_is_found_in_four_of_five_studies(null) -> None:
    effect = float(np.mean([row.smallest_effect for row in null]))
    generator = np.random.default_rng(2)
    found = [first_comparison(simulate(generator, effect=effect)) for _ in range(300)]
    # Chances are cut at 0 and 1, so that what is added is a little less than `effect`.
    assert within_binomial(np.mean([row.p_value <= 0.05 for row in found]), 0.78, 300)
    assert all(row.difference > -effect for row in found)


def test_forgetting_the_runs_would_find_what_is_not_there() -> None:
    """The same studies, problems alone as the sample: far more than 5 % of false findings."""
    generator = np.random.default_rng(3)
    false = 0
    for _ in range(100):
        outcomes = simulate(generator, run_sd=0.05, num_problems=1000)
        difference = (outcomes["circuitseer"] - outcomes["random"]).mean(0)
        false += stats.ttest_1samp(difference, 0).pvalue <= 0.05
    assert false > 20


def test_without_problem_variance_it_is_the_anova_of_the_runs() -> None:
    """All problems alike: a two-way analysis of variance of the runs' means, done by hand."""
    means = np.array([[0.50, 0.54, 0.51], [0.47, 0.52, 0.45], [0.49, 0.50, 0.52]])
    outcomes = {
        name: np.repeat(row[:, None], 4, axis=1) for name, row in zip("abc", means, strict=True)
    }
    [row] = compare_methods(outcomes, [("a", "b")])
    left = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    mean_square = (left**2).sum() / 4
    assert row.difference == pytest.approx(means[0].mean() - means[1].mean())
    assert row.stderr == pytest.approx(math.sqrt(2 * mean_square / 3))
    assert row.degrees_of_freedom == pytest.approx(4)
    t = row.difference / row.stderr
    assert row.p_value == pytest.approx(2 * stats.t.sf(abs(t), 4))


def test_holm_goes_over_the_primary_hypotheses_only() -> None:
    rows = compare_methods(simulate(np.random.default_rng(4)), PAIRS, primary=PAIRS[:2])
    assert [row.is_primary for row in rows] == [True, True, False]
    small, large = sorted(rows[:2], key=lambda row: row.p_value)
    assert small.p_holm == pytest.approx(min(1, 2 * small.p_value))
    assert large.p_holm == pytest.approx(max(small.p_holm, large.p_value))


def test_the_bootstrap_draws_seeds_and_problems() -> None:
    """Against a bootstrap in loops."""
    difference = np.random.default_rng(5).normal(0.1, 1, (4, 30))
    generator = np.random.default_rng(6)
    means = []
    for _ in range(4000):
        seeds = generator.integers(0, 4, 4)
        problems = generator.integers(0, 30, 30)
        means.append(difference[np.ix_(seeds, problems)].mean())
    low, high = bootstrap_interval(difference, num_bootstrap=4000)
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.03)


def test_mcnemar_is_the_sign_test_of_the_problems_that_changed() -> None:
    one = np.array([True] * 9 + [False] * 2 + [True] * 50)
    other = np.array([False] * 9 + [True] * 2 + [True] * 50)
    by_hand = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar(one, other) == pytest.approx(by_hand)
    assert mcnemar(one, one) == 1.0


def comparison(low: float, high: float, p_value: float, p_holm=None) -> Comparison:
    middle = (low + high) / 2
    return Comparison("a", "b", middle, 0.01, 9, low, high, low, high, p_value, p_holm, 0.03)


@pytest.mark.parametrize(
    ("row", "oracle", "verdict"),
    [
        (comparison(0.01, 0.05, 0.004), comparison(0.1, 0.2, 1e-6), "better"),
        (comparison(-0.05, -0.01, 0.004), comparison(0.1, 0.2, 1e-6), "worse"),
        (comparison(-0.01, 0.05, 0.2), comparison(0.1, 0.2, 1e-6), "undecided"),
        (comparison(0.001, 0.05, 0.04, 0.08), comparison(0.1, 0.2, 1e-6), "undecided"),
        (comparison(0.01, 0.05, 0.004), comparison(-0.01, 0.2, 0.07), "insensitive"),
    ],
)
def test_verdicts(row: Comparison, oracle: Comparison, verdict: str) -> None:
    assert decide(row, oracle) == verdict


@pytest.mark.parametrize(
    "outcomes",
    [
        {},
        {"a": np.zeros((1, 5)), "b": np.zeros((1, 5))},
        {"a": np.ones((3, 5)), "b": np.ones((3, 4))},
    ],
)
def test_cells_that_are_missing_are_refused(outcomes) -> None:
    with pytest.raises(EvaluationError, match="the same two or more seeds and problems"):
        compare_methods(outcomes, [])


def test_equal_methods_differ_by_nothing() -> None:
    values = np.random.default_rng(7).integers(0, 2, (3, 20)).astype(float)
    [row] = compare_methods({"a": values, "b": values}, [("a", "b")])
    assert (row.difference, row.p_value) == (0.0, 1.0)
