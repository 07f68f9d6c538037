"""Weights: a function of a sample's own score and length, and of what was frozen before."""

import numpy as np
import pyarrow as pa
import pytest

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.weights import (
    LengthStratum,
    freeze_strata,
    rank_within_strata,
    strata_from_table,
    strata_table,
    weigh_samples,
)
from circuitseer_assets.settings import Budget, SelectionSettings


def selection(**changes) -> SelectionSettings:
    return SelectionSettings(budget=Budget(samples=1), **changes)


def pool_of(scores, lengths=None) -> pa.Table:
    columns = {"score": pa.array(scores, pa.float64())}
    if lengths is not None:
        columns["num_prompt_tokens"] = pa.array(lengths, pa.int64())
    return pa.table(columns)


def weights_of(pool: pa.Table, settings: SelectionSettings, strata=()) -> list[float]:
    return weigh_samples(pool, settings, strata)["weight"].to_pylist()


def test_power_weights_are_the_scores_power() -> None:
    pool = pool_of([0.0, 0.5, 2.0])
    assert weights_of(pool, selection()) == [0.0, 0.5, 2.0]
    assert weights_of(pool, selection(power=2.0)) == [0.0, 0.25, 4.0]
    assert weights_of(pool, selection(power=0.0)) == [1.0, 1.0, 1.0]


def test_softmax_weights_are_exponentials_of_score_over_temperature() -> None:
    weights = weights_of(pool_of([-1.0, 0.0, 2.0]), selection(weights="softmax", temperature=0.5))
    np.testing.assert_allclose(weights, np.exp([-2.0, 0.0, 4.0]))


@pytest.mark.parametrize(
    "changes", [{"power": 1.5}, {"weights": "softmax", "temperature": 0.1}, {"debias": "length"}]
)
def test_new_samples_leave_old_weights_alone(changes) -> None:
    generator = np.random.default_rng(0)
    scores, lengths = generator.gamma(2, 1, 300), generator.integers(10, 90, 300)
    strata = freeze_strata(pool_of(scores[:200], lengths[:200]))
    old = weights_of(pool_of(scores[:200], lengths[:200]), selection(**changes), strata)
    both = weights_of(pool_of(scores, lengths), selection(**changes), strata)
    assert both[:200] == old


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        ([1.0, np.nan], {}, r"every score must be a finite number, got 1 of 2 that are not"),
        ([1.0, -0.5], {}, r"selection\.weights must be softmax for scores below 0, got 'power' "),
        ([1.0, 1e200], {"power": 2.0}, r"selection\.power must keep every weight finite, got 2\.0"),
        (
            [1.0, 800.0],
            {"weights": "softmax"},
            r"selection\.temperature must keep every weight finite, got 1\.0 for scores up to 800",
        ),
    ],
)
def test_score_that_cannot_be_weighed_is_refused(scores, changes, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        weights_of(pool_of(scores), selection(**changes))


# debiasing by length ------------------------------------------------------------------------------


def mid_rank(score: float, frozen: list[float]) -> float:
    """The definition: ranks from 1, ties share their mean rank, minus a half, over n."""
    ranks = [i + 1 for i, other in enumerate(sorted(frozen)) if other == score]
    return (sum(ranks) / len(ranks) - 0.5) / len(frozen)


def test_debiased_weights_are_mid_ranks_within_the_stratum() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(10, 40, 400)
    scores = np.round(generator.gamma(2, 1, 400) / lengths, 2)  # with ties
    strata = freeze_strata(pool_of(scores, lengths))
    weights = weights_of(pool_of(scores, lengths), selection(debias="length"), strata)
    bounds = [0, *(stratum.max_prompt_tokens for stratum in strata)]
    for score, length, weight in zip(scores, lengths, weights, strict=True):
        (number,) = [i for i in range(len(strata)) if bounds[i] < length <= bounds[i + 1]]
        members = [
            other
            for other, other_length in zip(scores, lengths, strict=True)
            if bounds[number] < other_length <= bounds[number + 1]
        ]
        assert weight == pytest.approx(mid_rank(score, members))


def test_debiased_scores_no_longer_follow_length() -> None:
    generator = np.random.default_rng(2)
    lengths = generator.integers(20, 200, 5000)
    scores = generator.gamma(20, 1, 5000) / lengths**2
    strata = freeze_strata(pool_of(scores, lengths))
    ranks = rank_within_strata(scores, lengths, strata)
    assert abs(np.corrcoef(lengths, scores)[0, 1]) > 0.6
    assert abs(np.corrcoef(lengths, ranks)[0, 1]) < 0.02


def test_strata_are_as_narrow_as_fifty_samples_allow() -> None:
    lengths = [5] * 30 + [6] * 30 + [7] * 60 + [8] * 20
    strata = freeze_strata(pool_of(range(140), lengths))
    assert [(s.max_prompt_tokens, len(s.scores)) for s in strata] == [(6, 60), (8, 80)]
    assert strata[0].scores == tuple(range(60))


def test_sample_after_the_freeze_ranks_among_the_frozen_and_is_never_lost() -> None:
    strata = (LengthStratum(10, (1.0, 2.0, 3.0, 4.0)), LengthStratum(20, (10.0, 20.0)))
    scores, lengths = np.array([0.0, 2.0, 2.5, 9.0, 15.0]), np.array([3, 10, 10, 10, 500])
    ranks = rank_within_strata(scores, lengths, strata)
    np.testing.assert_allclose(ranks, [0.125, 0.375, 0.5, 0.875, 0.5])


def test_frozen_strata_survive_a_round_trip() -> None:
    strata = freeze_strata(pool_of(np.linspace(0, 1, 120) ** 3, range(120)))
    assert strata_from_table(strata_table(strata)) == strata


def test_debiasing_without_enough_samples_or_strata_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"selection\.debias must be none for a pool of fewer "):
        freeze_strata(pool_of(range(49), range(49)))
    with pytest.raises(SettingsError, match=r"selection\.debias must be none where no strata are"):
        weights_of(pool_of([1.0], [1]), selection(debias="length"))
