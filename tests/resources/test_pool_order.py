"""The standing and the place of every sample of a pool, against the draw and the definition."""

import math
import random

import numpy as np
import pyarrow as pa
import pytest

from circuitseer_assets.method.explanation import Place
from circuitseer_assets.method.subset import (
    Candidate,
    draw_subset,
    permanent_random_number,
    target_inclusion,
)
from circuitseer_assets.settings import Budget, SelectionSettings
from resources.pool_order import PoolOrder


def make_pool(number: int) -> list[Candidate]:
    """Returns candidates of which some have no weight, and some the weight of others."""
    numbers = random.Random(3)
    weights = [
        0.0 if i % 9 == 0 else max(round(numbers.random() ** 3, 2), 0.01) for i in range(number)
    ]
    pool = [Candidate(f"{i:04x}", weight, weight, i) for i, weight in enumerate(weights)]
    numbers.shuffle(pool)
    return pool


def order_of(pool: list[Candidate], settings: SelectionSettings, num_drawn: int) -> PoolOrder:
    table = pa.table(
        {
            "sample_id": [c.sample_id for c in pool],
            "score": [c.score for c in pool],
            "num_scored_tokens": [c.num_tokens for c in pool],
            "weight": [c.weight for c in pool],
        }
    )
    return PoolOrder(table, settings, num_drawn)


def places_of(
    pool: list[Candidate], settings: SelectionSettings, num_drawn: int
) -> dict[str, Place]:
    return order_of(pool, settings, num_drawn).places([c.sample_id for c in pool])


def keys_of(
    pool: list[Candidate], settings: SelectionSettings, num_drawn: int
) -> list[tuple[float, str]]:
    """Returns key and id of all that can be drawn, in the order of the draw, by the definition."""
    targets = target_inclusion(np.array([c.weight for c in pool]), num_drawn).tolist()
    keyed = []
    for candidate, target in zip(pool, targets, strict=True):
        u = permanent_random_number(settings.seed, candidate.sample_id)
        if candidate.weight > 0:
            key = {
                "exponential": lambda u=u, w=candidate.weight: -math.log(u) / w,
                "pareto": lambda u=u, t=target: (1 - u) / u * (1 - t) / t,
                "top": lambda w=candidate.weight: -w,
            }[settings.sampling]()
            keyed.append((key, candidate.sample_id))
    return sorted(keyed)


@pytest.mark.parametrize("sampling", ["exponential", "pareto", "top"])
@pytest.mark.parametrize("number", [1, 20, 80])
def test_the_first_places_are_the_draw_and_the_rest_follow_by_key(
    sampling: str, number: int
) -> None:
    pool = make_pool(90)
    settings = SelectionSettings(budget=Budget(samples=number), sampling=sampling, seed=5)
    members = draw_subset(pool, settings)
    assert len(members) == number
    places = places_of(pool, settings, number)
    assert places.keys() == {c.sample_id for c in pool}
    for i, member in enumerate(members):
        place = places[member.sample_id]
        assert (place.is_drawn, place.order) == (True, i + 1)
        assert place.weight == member.weight
        assert place.sampling_key == pytest.approx(member.sampling_key, rel=1e-12)
        assert place.inclusion_probability == pytest.approx(member.inclusion_probability)

    keyed = keys_of(pool, settings, number)
    for i, (key, sample_id) in enumerate(keyed):
        place = places[sample_id]
        assert (place.order, place.is_drawn) == (i + 1, i < number)
        assert place.sampling_key == pytest.approx(key, rel=1e-12)
    never = [c.sample_id for c in pool if c.weight == 0]
    assert len(never) + len(keyed) == len(pool)
    for sample_id in never:
        assert places[sample_id] == Place(sample_id, None, 0.0, None, 0.0, False)

    in_order = [sample_id for _, sample_id in keyed]
    order = order_of(pool, settings, number)
    assert order.in_order(0, len(pool)) == in_order
    assert order.in_order(number - 1, 3) == in_order[number - 1 : number + 2]


def test_the_chance_of_one_left_out_is_that_of_beating_the_last_one_drawn() -> None:
    pool = make_pool(60)
    settings = SelectionSettings(budget=Budget(samples=12), seed=1)
    keyed = keys_of(pool, settings, 12)
    places = places_of(pool, settings, 12)
    for candidate in pool:
        if candidate.weight > 0:
            others = [key for key, one in keyed if one != candidate.sample_id]
            expected = 1 - math.exp(-candidate.weight * others[11])
            chance = places[candidate.sample_id].inclusion_probability
            assert chance == pytest.approx(expected)


def test_a_rank_counts_the_higher_scores_and_of_equal_ones_the_ids_before() -> None:
    pool = make_pool(60)
    settings = SelectionSettings(budget=Budget(samples=12))
    ranked = sorted(pool, key=lambda c: (-c.score, c.sample_id))
    standings = order_of(pool, settings, 12).standings([*(c.sample_id for c in pool), "nobody"])
    assert standings.keys() == {c.sample_id for c in pool}
    for i, candidate in enumerate(ranked):
        standing = standings[candidate.sample_id]
        assert (standing.rank, standing.num_scored) == (i + 1, 60)
        assert (standing.score, standing.num_tokens) == (candidate.score, candidate.num_tokens)
