"""The statistics of a head ranking, on plain arrays: the race, the choice, and its evidence.

A matrix of effects (heads x probes) in; who stays in the race, who is chosen and how sure that is
out. Nothing here knows a model.

Reference: CircuitSeer, arXiv 2510.18470, for the ranking by mean effect. The race, the confirmation
and Holm's correction are this project's.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy  # its parts load when they are used, and Dagster imports this often
from numpy.typing import NDArray

from circuitseer_assets.errors import SettingsError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

# How many degrees of freedom the median spread is worth against a head's own.
_PRIOR_DEGREES = 4.0


def num_chosen_heads(fraction: float, num_heads_total: int) -> int:
    """Returns k = floor(fraction * heads + 0.5), the number of reasoning heads.

    Raises:
        SettingsError: `fraction` is too small to choose one head.
    """
    chosen = math.floor(fraction * num_heads_total + 0.5)
    if chosen < 1:
        raise SettingsError(
            f"head_ranking.fraction must choose at least one of the model's {num_heads_total} "
            f"heads, got {fraction}; set it to at least {0.5 / num_heads_total:.4g}"
        )
    return chosen


def round_ends(num_probes: int, first: int) -> Iterator[int]:
    """Returns after how many probes each round of the race ends: first, a quarter more, ..., all.

    Short rounds let heads go early. On exhaustive matrices they cost a tenth less than doubling
    ones, and find the same set as often.
    """
    end = first
    while end < num_probes:
        yield end
        end = math.ceil(1.25 * end)
    yield num_probes


def run_race(
    measure: Callable[[int, BoolArray], FloatArray],
    *,
    num_heads: int,
    num_probes: int,
    k: int,
    first_round_probes: int,
    z: float,
) -> BoolArray:
    """Returns which heads were never dropped, (heads,): the `k` best are among them.

    Equals the full measurement's set on these probes with nominal probability 1 - delta (normal
    approximation), where delta follows from `z`; how often it does on a given model is measured by
    replaying an exhaustive matrix of effects in many orders of the probes.

    Args:
        measure: takes how many probes are to be seen and which heads still run; returns the effects
            on these probes, (heads, probes). Of heads that no longer run nothing is read.
        num_heads: how many heads start.
        num_probes: how many probes there are.
        k: how many heads are wanted.
        first_round_probes: how many probes all heads see.
        z: the half-width of an interval, in standard errors.
    """
    running: BoolArray = np.ones(num_heads, dtype=np.bool_)
    for end in round_ends(num_probes, first_round_probes):
        effects = measure(end, running.copy())
        running[running] = race_survivors(effects[running], num_probes=num_probes, k=k, z=z)
    return running


def replay_race(
    effects: FloatArray, *, k: int, first_round_probes: int, z: float
) -> tuple[IntArray, int]:
    """Returns the `k` heads a race on known effects ends with, and how many effects it looks at.

    Args:
        effects: the effects of all heads on all probes, (heads, probes), in the order of the race.
        k: how many heads are wanted.
        first_round_probes: how many probes all heads see.
        z: the half-width of an interval, in standard errors.
    """
    seen = looked_at = 0

    def measure(end: int, running: BoolArray) -> FloatArray:
        nonlocal seen, looked_at
        looked_at += int(running.sum()) * (end - seen)
        seen = end
        return effects[:, :end]

    num_heads, num_probes = effects.shape
    running = run_race(
        measure,
        num_heads=num_heads,
        num_probes=num_probes,
        k=k,
        first_round_probes=first_round_probes,
        z=z,
    )
    return top_heads(np.where(running, effects.mean(axis=1), np.nan), k), looked_at


def race_survivors(effects: FloatArray, *, num_probes: int, k: int, z: float) -> BoolArray:
    """Returns which heads may still be among the `k` best once all probes are seen, (heads,).

    The interval of a head after n of N common probes is mean +- z s sqrt((1 - n/N) / n), with the
    spread s drawn towards the median of all; it closes at n = N. A head is out when its upper
    bound lies below the k-th largest lower bound, so at least k stay. With all probes seen nobody
    is dropped who has not been before.

    Args:
        effects: the effects on the probes seen so far, (heads, n), of the heads still running.
        num_probes: N, how many probes there are.
        k: how many heads are wanted.
        z: the half-width of an interval, in standard errors.
    """
    num_heads, seen = effects.shape
    if num_heads <= k or seen >= num_probes:
        return np.ones(num_heads, dtype=np.bool_)
    mean = effects.mean(axis=1)
    half_width = z * _shrunk_spread(effects) * math.sqrt((1 - seen / num_probes) / seen)
    threshold = np.partition(mean - half_width, num_heads - k)[num_heads - k]
    survivors: BoolArray = mean + half_width >= threshold
    return survivors


def _shrunk_spread(effects: FloatArray) -> FloatArray:
    own = effects.var(axis=1, ddof=1)
    median = np.median(np.sqrt(own)) ** 2
    degrees = effects.shape[1] - 1
    spread: FloatArray = np.sqrt(
        (_PRIOR_DEGREES * median + degrees * own) / (_PRIOR_DEGREES + degrees)
    )
    return spread


def top_heads(values: FloatArray, k: int) -> IntArray:
    """Returns the indices of the `k` largest values, largest first, ties by index; NaN is last."""
    order = np.lexsort((np.arange(len(values)), -np.nan_to_num(values, nan=-np.inf)))
    return order[:k]


def t_interval(values: FloatArray, *, level: float = 0.95) -> tuple[float, float, float]:
    """Returns the mean's standard error and its Student interval: (stderr, low, high).

    A single value has no spread: all of stderr, low and high are then NaN.
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan, math.nan
    mean, stderr = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count)
    reach = float(scipy.stats.t.ppf(0.5 + level / 2, count - 1)) * stderr
    return stderr, mean - reach, mean + reach


def paired_t_p_value(differences: FloatArray) -> float:
    """Returns the one-sided p-value of a paired t-test that the mean difference is above zero."""
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0:
        return 0.0 if mean > 0 else 1.0
    statistic = mean / (spread / math.sqrt(len(differences)))
    return float(scipy.stats.t.sf(statistic, len(differences) - 1))


def holm_adjusted(p_values: FloatArray) -> FloatArray:
    """Returns Holm's step-down adjustment of `p_values`, in the order given.

    Reference: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def split_half_overlap(effects: FloatArray, k: int) -> float | None:
    """Returns the share of the `k` best heads that both halves of the probes agree on.

    Even and odd probes are the halves. A head dropped from the race counts with the probes it saw
    (the others are NaN); None where a half would be empty.
    """
    halves = effects[:, 0::2], effects[:, 1::2]
    if any(np.isnan(half).all(axis=1).any() for half in halves):
        return None
    first, second = (set(top_heads(np.nanmean(half, axis=1), k).tolist()) for half in halves)
    return len(first & second) / k
