"""The place of every sample in a draw, against the draw itself and the definition."""

import math
import random

import pyarrow as pa
import pytest

from circuitseer_assets.method.draw_order import order_draw
from circuitseer_assets.method.subset import Candidate, draw_subset, permanent_random_number
from circuitseer_assets.settings import Budget, SelectionSettings


def make_pool(number: int) -> list[Candidate]:
    numbers = random.Random(3)
    return [
        Candidate(f"{i:04x}", 1.0, 0.0 if i % 9 == 0 else numbers.random() ** 3)
        for i in range(number)
    ]


def table_of(pool: list[Candidate]) -> pa.Table:
    return pa.table({"sample_id": [c.sample_id for c in pool], "weight": [c.weight for c in pool]})


@pytest.mark.parametrize("sampling", ["exponential", "pareto", "top"])
@pytest.mark.parametrize("number", [1, 20, 80])
def test_the_first_places_are_the_draw(sampling: str, number: int) -> None:
    pool = make_pool(90)
    settings = SelectionSettings(budget=Budget(samples=number), sampling=sampling, seed=5)
    members = draw_subset(pool, settings)
    places = order_draw(table_of(pool), settings, len(members))
    drawn = [place for place in places if place.is_drawn]
    assert [p.sample_id for p in drawn] == [m.sample_id for m in members]
    assert [p.order for p in drawn] == list(range(1, number + 1))
    for place, member in zip(drawn, members, strict=True):
        assert place.weight == member.weight
        assert place.sampling_key == pytest.approx(member.sampling_key, rel=1e-12)
        assert place.inclusion_probability == pytest.approx(member.inclusion_probability)


def test_the_chance_of_one_left_out_is_that_of_beating_the_last_one_drawn() -> None:
    pool = make_pool(60)
    settings = SelectionSettings(budget=Budget(samples=12), seed=1)
    keys = {
        c.sample_id: -math.log(permanent_random_number(1, c.sample_id)) / c.weight
        for c in pool
        if c.weight > 0
    }
    places = {place.sample_id: place for place in order_draw(table_of(pool), settings, 12)}
    for candidate in pool:
        place = places[candidate.sample_id]
        if candidate.weight == 0:
            assert (place.order, place.sampling_key, place.inclusion_probability) == (None, None, 0)
            continue
        others = sorted(key for one, key in keys.items() if one != candidate.sample_id)
        expected = 1 - math.exp(-candidate.weight * others[11])
        assert place.inclusion_probability == pytest.approx(expected)


def test_every_sample_has_one_place_and_those_never_drawn_come_last() -> None:
    pool = make_pool(40)
    settings = SelectionSettings(budget=Budget(samples=5))
    places = order_draw(table_of(pool), settings, 5)
    assert sorted(p.sample_id for p in places) == sorted(c.sample_id for c in pool)
    orders = [p.order for p in places]
    num_drawable = sum(c.weight > 0 for c in pool)
    assert orders == [*range(1, num_drawable + 1), *[None] * (len(pool) - num_drawable)]
