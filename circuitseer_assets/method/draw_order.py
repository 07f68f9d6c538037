"""A whole pool in the order of the draw: who came in, who would have been next, and by what key.

The draw itself stores its members only; the rest follow from the same weights and numbers.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from circuitseer_assets.method.subset import permanent_random_number, target_inclusion
from circuitseer_assets.settings import SelectionSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """One sample's place in a draw.

    Attributes:
        sample_id: the sample's.
        order: 1 for the smallest key; None for a weight of 0, which is never drawn.
        weight, sampling_key: as the draw has them; the key is None for a weight of 0.
        inclusion_probability: given everybody else's keys: 1 - exp(-w tau), tau being the key that
            the last place would go for without this sample. Pareto sampling has its target, `top`
            0 or 1.
        is_drawn: whether it is one of the subset.
    """

    sample_id: str
    order: int | None
    weight: float
    sampling_key: float | None
    inclusion_probability: float
    is_drawn: bool


def order_draw(pool: pa.Table, settings: SelectionSettings, num_drawn: int) -> tuple[Place, ...]:
    """Returns the place of every sample, in the order of the draw, those never drawn last.

    Args:
        pool: columns `sample_id` and `weight`, of `weigh_samples`.
        settings: the slice `selection` of the draw.
        num_drawn: how many samples the subset has.
    """
    ids = pool["sample_id"].to_pylist()
    weights = np.asarray(pool["weight"].to_numpy(zero_copy_only=False), dtype=np.float64)
    targets = (
        dict(zip(ids, target_inclusion(weights, num_drawn).tolist(), strict=True))
        if settings.sampling == "pareto"
        else {}
    )
    keyed = sorted(
        (_key(sample_id, weight, settings, targets.get(sample_id, 0.0)), sample_id, weight)
        for sample_id, weight in zip(ids, weights.tolist(), strict=True)
        if weight > 0
    )
    keys = [key for key, _, _ in keyed]
    places = []
    for i, (key, sample_id, weight) in enumerate(keyed):
        is_drawn = i < num_drawn
        if settings.sampling == "pareto":
            chance = targets[sample_id]
        elif settings.sampling == "top":
            chance = float(is_drawn)
        else:
            # Without this sample, the last place goes for the key after the last one drawn, or,
            # where it was not drawn itself, for that last one's.
            threshold = num_drawn if is_drawn else num_drawn - 1
            tau = keys[threshold] if threshold < len(keys) else math.inf
            chance = 1 - math.exp(-weight * tau)
        places.append(Place(sample_id, i + 1, weight, key, chance, is_drawn))
    never = sorted(one for one, weight in zip(ids, weights.tolist(), strict=True) if weight == 0)
    return (*places, *(Place(sample_id, None, 0.0, None, 0.0, False) for sample_id in never))


def _key(sample_id: str, weight: float, settings: SelectionSettings, target: float) -> float:
    if settings.sampling == "top":
        return -weight
    u = permanent_random_number(settings.seed, sample_id)
    if settings.sampling == "pareto":
        return ((1 - u) / u) * ((1 - target) / target) if target > 0 else math.inf
    return -math.log(u) / weight
