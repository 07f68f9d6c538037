"""The ranking's statistics, against definitions, hand calculation and planted matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.ranking_statistics import (
    holm_adjusted,
    num_chosen_heads,
    paired_t_p_value,
    race_survivors,
    replay_race,
    round_ends,
    run_race,
    split_half_overlap,
    t_interval,
    top_heads,
)


@pytest.mark.parametrize(
    ("fraction", "total", "chosen"), [(0.05, 270, 14), (0.125, 48, 6), (0.05, 30, 2), (1.0, 8, 8)]
)
def test_number_of_heads_is_rounded_half_up(fraction, total, chosen):
    assert num_chosen_heads(fraction, total) == chosen


def test_a_fraction_too_small_for_one_head_is_refused():
    with pytest.raises(
        SettingsError, match=r"head_ranking.fraction .* 8 heads, got 0.05; .*0.0625"
    ):
        num_chosen_heads(0.05, 8)


@pytest.mark.parametrize(
    ("num_probes", "first", "ends"),
    [
        (64, 4, [4, 5, 7, 9, 12, 15, 19, 24, 30, 38, 48, 60, 64]),
        (6, 4, [4, 5, 6]),
        (4, 4, [4]),
        (3, 4, [3]),
        (9, 2, [2, 3, 4, 5, 7, 9]),
    ],
)
def test_rounds_grow_by_a_quarter(num_probes, first, ends):
    assert list(round_ends(num_probes, first)) == ends


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made monotone .02 .03 .06 .06.
    adjusted = holm_adjusted(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    p, level, rejected = np.array(values), 0.05, set()
    for step, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] > level / (len(p) - step):
            break
        rejected.add(int(i))
    # At exactly the level, dividing and multiplying may round apart.
    scaled = [p[i] * (len(p) - s) for s, i in enumerate(np.argsort(p, kind="stable"))]
    if min(abs(x - level) for x in scaled) > 1e-12:
        assert set(np.flatnonzero(holm_adjusted(p) <= level).tolist()) == rejected


def test_t_test_and_interval_are_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 9)
    assert paired_t_p_value(values) == pytest.approx(
        stats.ttest_1samp(values, 0, alternative="greater").pvalue
    )
    stderr, low, high = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert stderr == pytest.approx(stats.sem(values))


def test_effects_without_spread_have_a_p_value():
    assert paired_t_p_value(np.array([0.2, 0.2])) == 0
    assert paired_t_p_value(np.zeros(3)) == 1


def test_top_heads_breaks_ties_by_index_and_puts_nan_last():
    assert top_heads(np.array([1.0, 3.0, 3.0, np.nan, 2.0]), 4).tolist() == [1, 2, 4, 0]


def test_nobody_is_dropped_without_reason():
    effects = np.random.default_rng(1).normal(size=(20, 4))
    assert race_survivors(effects, num_probes=4, k=3, z=3.0).all()  # all probes seen
    assert race_survivors(effects, num_probes=64, k=20, z=3.0).all()  # all wanted
    assert race_survivors(effects, num_probes=64, k=3, z=1e9).all()  # nothing is sure


@given(st.integers(0, 10_000), st.integers(1, 19), st.floats(0.01, 5))
def test_at_least_k_survive_among_them_the_k_best_so_far(seed, k, z):
    effects = np.random.default_rng(seed).normal(size=(20, 4))
    stay = race_survivors(effects, num_probes=16, k=k, z=z)
    assert stay[top_heads(effects.mean(axis=1), k)].all()


def test_the_interval_is_the_documented_one():
    # Two heads of equal spread: the median is their own, so no shrinkage shows.
    # After n = 4 of N = 16, half-width = z s sqrt(.75 / 4) = z s * .4330127.
    wave = np.array([-1.0, 1.0, -1.0, 1.0])
    spread, z = wave.std(ddof=1), 1.0
    reach = z * spread * np.sqrt((1 - 4 / 16) / 4)
    for gap, stays in ((2 * reach - 1e-9, True), (2 * reach + 1e-9, False)):
        stay = race_survivors(np.stack([wave + gap, wave]), num_probes=16, k=1, z=z)
        assert stay.tolist() == [True, stays]


def test_heads_leave_the_race_in_the_round_that_shows_them_beaten():
    effects = np.array([[5.0] * 8, [4.0] * 8, [0.0] * 8])
    effects += 0.01 * np.sin(np.arange(24)).reshape(3, 8)
    seen = []

    def measure(end, running):
        seen.append((end, running.tolist()))
        return effects[:, :end]

    stayed = run_race(measure, num_heads=3, num_probes=8, k=1, first_round_probes=2, z=3.0)
    assert stayed.tolist() == [True, False, False]
    assert seen[0] == (2, [True, True, True])
    assert all(running == [True, False, False] for _, running in seen[1:])
    assert [end for end, _ in seen] == list(round_ends(8, 2))


def test_the_race_finds_the_full_measurements_set_for_a_fraction_of_it():
    """Heavy-tailed effects like a real model's: most heads near zero, spread growing with them."""
    random = np.random.default_rng(3)
    heads, probes, k = 200, 64, 10
    size = random.standard_t(2, heads) * 0.02
    effects = (
        size[:, None] + random.normal(size=(heads, probes)) * (0.005 + 0.4 * abs(size))[:, None]
    )
    truth = set(top_heads(effects.mean(axis=1), k).tolist())
    same, cost = [], []
    for _ in range(200):
        shuffled = effects[:, random.permutation(probes)]
        chosen, looked_at = replay_race(shuffled, k=k, first_round_probes=4, z=3.0)
        same.append(set(chosen.tolist()) == truth)
        cost.append(looked_at / effects.size)
    assert np.mean(same) >= 0.95
    assert np.mean(cost) < 0.4


def test_split_half_overlap():
    first, second = np.array([3.0, 2, 1, 0]), np.array([3.0, 0, 2, 1])
    effects = np.stack([first, second, first, second], axis=1)
    assert split_half_overlap(effects, 2) == 0.5
    effects[3, 2:] = np.nan  # dropped after two probes
    assert split_half_overlap(effects, 2) == 0.5
    assert split_half_overlap(effects[:, :1], 2) is None
