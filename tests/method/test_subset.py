"""The draw in Python: its definition, probabilities by enumeration, budgets and summary."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.subset import (
    Candidate,
    draw_subset,
    permanent_random_number,
    resolve_num_samples,
    summarize_draw,
    target_inclusion,
)
from circuitseer_assets.settings import Budget, SelectionSettings


def selection(seed: int = 0, sampling="exponential", **budget) -> SelectionSettings:
    return SelectionSettings(budget=Budget(**budget), seed=seed, sampling=sampling)


def pool_of(*weights: float, num_tokens: int = 10) -> list[Candidate]:
    return [Candidate(f"s{i}", w, w, num_tokens) for i, w in enumerate(weights)]


def ids(members) -> list[str]:
    return [member.sample_id for member in members]


# definition ---------------------------------------------------------------------------------------


def test_random_number_is_the_top_53_bits_of_the_md5() -> None:
    digest = hashlib.md5(b"7:abc").digest()
    bits = "".join(f"{byte:08b}" for byte in reversed(digest[:8]))[:53]
    expected = (int(bits, 2) + 0.5) / 2**53
    assert permanent_random_number(7, "abc") == expected


@given(st.integers(0, 2**32 - 1), st.text(min_size=1, max_size=8))
def test_random_number_lies_between_0_and_1_and_depends_on_both(seed: int, sample_id: str) -> None:
    u = permanent_random_number(seed, sample_id)
    assert 0 < u < 1
    assert u != permanent_random_number(seed + 1, sample_id)


def test_smallest_keys_win_and_the_next_one_is_the_threshold() -> None:
    pool = pool_of(*np.random.default_rng(0).gamma(2, 1, 50).tolist())
    keys = {
        c.sample_id: -math.log(permanent_random_number(3, c.sample_id)) / c.weight for c in pool
    }
    order = sorted(keys, key=lambda sample_id: keys[sample_id])
    members = draw_subset(pool, selection(seed=3, samples=12))
    assert ids(members) == order[:12]
    tau = keys[order[12]]
    for member in members:
        assert member.sampling_key == keys[member.sample_id]
        assert member.inclusion_probability == pytest.approx(-math.expm1(-member.weight * tau))


def test_same_seed_same_subset_whatever_the_order_of_the_pool() -> None:
    pool = pool_of(*range(1, 40))
    settings = selection(seed=1, samples=10)
    assert draw_subset(pool, settings) == draw_subset(pool[::-1], settings)
    assert ids(draw_subset(pool, settings)) != ids(draw_subset(pool, selection(seed=2, samples=10)))


@pytest.mark.parametrize("sampling", ["exponential", "pareto", "top"])
def test_weight_zero_is_never_drawn_and_everything_else_can_be(sampling: str) -> None:
    pool = pool_of(0.0, 1e-12, 5.0, 0.0, 1.0)
    members = draw_subset(pool, selection(samples=3, sampling=sampling))
    assert sorted(ids(members)) == ["s1", "s2", "s4"]
    assert [member.inclusion_probability for member in members] == [1.0] * 3


def test_equal_keys_are_ordered_by_sample_id() -> None:
    # With certain inclusion every Pareto key is 0.
    members = draw_subset(pool_of(1.0, 1.0, 1.0)[::-1], selection(samples=3, sampling="pareto"))
    assert ids(members) == ["s0", "s1", "s2"]


# probabilities ------------------------------------------------------------------------------------


def test_frequencies_are_those_of_successive_sampling() -> None:
    """Each next sample is drawn in proportion to weight among those left: enumerated in full."""
    weights = {"s0": 1.0, "s1": 2.0, "s2": 3.0, "s3": 6.0}
    pool, num_draws = pool_of(*weights.values()), 12_000
    expected = {
        (a, b): weights[a] / 12 * weights[b] / (12 - weights[a])
        for a, b in itertools.permutations(weights, 2)
    }
    drawn = Counter(
        tuple(ids(draw_subset(pool, selection(seed, samples=2)))) for seed in range(num_draws)
    )
    assert drawn.keys() <= expected.keys()
    observed = [drawn[pair] for pair in expected]
    assert chisquare(observed, [num_draws * p for p in expected.values()]).pvalue > 0.001
    uniform = chisquare(observed, [num_draws / 12] * 12)
    assert uniform.pvalue < 1e-9  # the test can tell


def test_inclusion_probabilities_estimate_the_pool_without_bias() -> None:
    """Horvitz and Thompson: the mean over draws of sum x/p is the pool's sum of x."""
    pool = pool_of(*np.random.default_rng(1).gamma(2, 1, 30).tolist())
    estimates = [
        sum(
            1 / member.inclusion_probability
            for member in draw_subset(pool, selection(s, samples=10))
        )
        for s in range(2000)
    ]
    stderr = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - len(pool)) < 4 * stderr
    assert stderr < 0.5


def test_pareto_draws_with_the_target_probabilities() -> None:
    weights = [1.0, 1.0, 2.0, 3.0, 4.0, 30.0]
    targets = target_inclusion(np.array(weights), 3)
    # 30 is certain; what is left, 2 of 11 in weight, is shared out.
    np.testing.assert_allclose(targets, [2 / 11, 2 / 11, 4 / 11, 6 / 11, 8 / 11, 1.0])
    num_draws = 4000
    drawn = Counter(
        sample_id
        for seed in range(num_draws)
        for sample_id in ids(draw_subset(pool_of(*weights), selection(seed, "pareto", samples=3)))
    )
    for i, target in enumerate(targets):
        spread = 4 * math.sqrt(target * (1 - target) / num_draws) + 0.02  # Pareto's own small bias
        assert abs(drawn[f"s{i}"] / num_draws - target) <= spread


@given(
    st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=30).flatmap(
        lambda weights: st.tuples(st.just(weights), st.integers(1, len(weights)))
    )
)
def test_targets_are_probabilities_in_the_weights_order_and_sum_to_n(case) -> None:
    weights, num_samples = np.array(case[0]), case[1]
    targets = target_inclusion(weights, num_samples)
    assert targets.sum() == pytest.approx(num_samples)
    assert targets.min() > 0
    assert targets.max() <= 1
    assert (np.diff(targets[np.argsort(weights)]) >= -1e-12).all()


# stability ----------------------------------------------------------------------------------------


def test_new_samples_take_places_only_from_the_last_drawn() -> None:
    generator = np.random.default_rng(2)
    old = [Candidate(f"old{i}", w, w) for i, w in enumerate(generator.gamma(4, 1, 3000).tolist())]
    new = [Candidate(f"new{i}", w, w) for i, w in enumerate(generator.gamma(4, 1, 30).tolist())]
    before = ids(draw_subset(old, selection(samples=300)))
    after = ids(draw_subset(old + new, selection(samples=300)))
    joined = set(after) - set(before)
    assert all(sample_id.startswith("new") for sample_id in joined)
    assert 0 < len(joined) <= 9  # 1 % of the pool is about 1 % of the subset, 3 on average
    assert [i for i in after if i not in joined] == before[: 300 - len(joined)]


# budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "num_pool", "expected"),
    [(0.1, 100, 10), (0.1, 25, 3), (0.5, 1, 1), (1.0, 7, 7), (0.014, 100, 1), (0.015, 100, 2)],
)
def test_fraction_is_rounded_half_up(fraction: float, num_pool: int, expected: int) -> None:
    assert resolve_num_samples(Budget(fraction=fraction), num_pool, num_pool) == expected


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"samples": 9000},
            "selection.budget.samples must be between 1 and 4 (the pool's size), got 9000; "
            "set selection.budget in circuitseer.yaml",
        ),
        (
            {"fraction": 0.01},
            "selection.budget.fraction must be a number of samples between 1 and 4 (the pool's "
            "size), got 0.01, which is 0 samples; set selection.budget in circuitseer.yaml",
        ),
        (
            {"tokens": 41},
            "selection.budget.tokens must be between 1 and 40 (the pool's tokens), got 41; "
            "set selection.budget in circuitseer.yaml",
        ),
        (
            {"tokens": 9},
            "selection.budget.tokens must hold the first sample drawn (10 tokens), got 9; "
            "set selection.budget in circuitseer.yaml",
        ),
    ],
)
def test_impossible_budget_is_refused(budget, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        draw_subset(pool_of(1, 2, 3, 4), selection(**budget))
    assert str(caught.value) == message


def test_budget_above_the_samples_with_weight_says_so() -> None:
    with pytest.raises(SettingsError) as caught:
        draw_subset(pool_of(1, 0, 3, 0), selection(fraction=0.75))
    assert str(caught.value) == (
        "selection.budget.fraction must be a number of samples between 1 and 2 (the pool's samples "
        "with a weight above 0; 4 in all), got 0.75, which is 3 samples; "
        "set selection.budget in circuitseer.yaml"
    )


def test_token_budget_stops_at_the_first_overflow() -> None:
    pool = [Candidate(f"s{i}", 1.0, 1.0, 100 if i % 2 else 1) for i in range(20)]
    order = ids(draw_subset(pool, selection(samples=20)))
    lengths = {candidate.sample_id: candidate.num_tokens for candidate in pool}
    for budget in (101, 250, 603, 1010):
        members = ids(draw_subset(pool, selection(tokens=budget)))
        assert members == order[: len(members)]
        total = sum(lengths[sample_id] for sample_id in members)
        assert total <= budget
        if len(members) < len(order):
            assert total + lengths[order[len(members)]] > budget


def test_pareto_needs_a_number_of_samples() -> None:
    with pytest.raises(SettingsError, match=r"selection\.sampling must be exponential with a budg"):
        draw_subset(pool_of(1, 2), selection(tokens=10, sampling="pareto"))


# summary ------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    pool = pa.table(
        {
            "sample_id": ["a", "b", "c", "d"],
            "score": [1.0, 1.0, 3.0, 3.0],
            "weight": [0.0, 1.0, 3.0, 3.0],
            "num_prompt_tokens": [10, 20, 30, 40],
        }
    )
    members = pa.table({"sample_id": ["d", "c"], "inclusion_probability": [0.5, 0.25]})
    summary = summarize_draw(pool, members)
    assert (summary.num_pool, summary.num_drawable, summary.num_samples) == (4, 3, 2)
    assert summary.effective_pool_size == pytest.approx(7**2 / 19)
    assert summary.effective_sample_size == pytest.approx(6**2 / 20)
    assert (summary.pool_mean_score, summary.mean_score) == (2.0, 3.0)
    assert summary.score_tilt_sd == pytest.approx(1.0)
    assert (summary.pool_mean_prompt_tokens, summary.mean_prompt_tokens) == (25.0, 35.0)


def test_summary_of_equal_scores_has_no_tilt() -> None:
    pool = pa.table({"sample_id": ["a", "b"], "score": [1e-9, 1e-9], "weight": [1e-9, 1e-9]})
    members = pa.table({"sample_id": ["a"], "inclusion_probability": [0.5]})
    summary = summarize_draw(pool, members)
    assert summary.score_tilt_sd == 0.0
    assert summary.effective_pool_size == pytest.approx(2.0)
    assert summary.mean_prompt_tokens is None


def test_random_tilt_is_the_spread_of_random_draws() -> None:
    generator = np.random.default_rng(3)
    scores = generator.gamma(2, 1, 200)
    pool = pa.table(
        {"sample_id": [str(i) for i in range(200)], "score": scores, "weight": np.ones(200)}
    )
    tilts = []
    for _ in range(500):
        chosen = generator.choice(200, 40, replace=False).astype(str)
        members = pa.table({"sample_id": chosen, "inclusion_probability": np.full(40, 0.2)})
        summary = summarize_draw(pool, members)
        tilts.append(summary.score_tilt_sd)
    assert np.std(tilts) == pytest.approx(summary.random_tilt_sd, rel=0.1)
