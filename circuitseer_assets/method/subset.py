"""Stage `sample_scores` in, stage `subset` out: scores become weights, weights a random subset.

The draw is without replacement in proportion to weight, by exponential keys with permanent random
numbers: a hash of seed and sample gives u, the key is -ln(u)/weight, and the smallest keys win.
A sample's key does not depend on the other samples, so a new corpus moves no more than it must.

Reference: CircuitSeer, arXiv 2510.18470 (soft sampling by score); Efraimidis and Spirakis 2006
(the keys); Rosen 1997 (Pareto sampling).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from circuitseer_assets.errors import BudgetError, SettingsError
from circuitseer_assets.records import SubsetMember
from circuitseer_assets.settings import Budget, SelectionSettings

_REMEDY = "set selection.budget in circuitseer.yaml"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sample of the pool as the draw sees it; `num_tokens` are prompt and response together."""

    sample_id: str
    score: float
    weight: float
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DrawSummary:
    """What a draw did to the pool, for people to see whether it selected at all.

    Attributes:
        num_pool: samples in the pool; `num_drawable` of them have a weight above 0.
        num_samples: samples drawn.
        effective_pool_size: Kish's (sum w)^2 / sum w^2 over the pool's weights. Near `num_pool`
            the weights are near equal, and the draw is close to a uniformly random one.
        effective_sample_size: the same of the drawn samples' 1/inclusion_probability: how many
            equally likely samples estimate the pool's means as well as this subset does.
        score_tilt_sd: mean score of the subset minus that of the pool, in the pool's standard
            deviations; 0 where all scores are equal.
        random_tilt_sd: the standard deviation that `score_tilt_sd` has under a uniformly random
            draw of as many samples: a tilt within twice this is not told from random.
        mean_score, pool_mean_score: the means `score_tilt_sd` compares.
        mean_prompt_tokens, pool_mean_prompt_tokens: mean prompt length of subset and pool, None
            where lengths are not given.
    """

    num_pool: int
    num_drawable: int
    num_samples: int
    effective_pool_size: float
    effective_sample_size: float
    score_tilt_sd: float
    random_tilt_sd: float
    mean_score: float
    pool_mean_score: float
    mean_prompt_tokens: float | None
    pool_mean_prompt_tokens: float | None


# budget -------------------------------------------------------------------------------------------


def resolve_num_samples(budget: Budget, num_pool: int, num_drawable: int) -> int:
    """Returns how many samples a budget of a share or a number of samples is.

    A share is of the pool, rounded half up.

    Raises:
        BudgetError: the budget is below one sample, or above the samples that can be drawn.
    """
    if num_drawable == 0:
        raise BudgetError(
            f"at least one sample of the pool must have a weight above 0, none of {num_pool} has: "
            f"all their scores are 0; set another scoring.reading, or selection.power to 0, in "
            f"circuitseer.yaml"
        )
    if budget.samples is not None:
        name, given, num_samples = "samples", str(budget.samples), budget.samples
    else:
        share = budget.fraction or 0.0
        num_samples = math.floor(share * num_pool + 0.5)
        name, given = "fraction", f"{share:g}, which is {num_samples} samples"
    if 1 <= num_samples <= num_drawable:
        return num_samples
    size = f"between 1 and {num_drawable} ({_pool_words(num_pool, num_drawable)})"
    rule = size if name == "samples" else f"a number of samples {size}"
    raise BudgetError(f"selection.budget.{name} must be {rule}, got {given}; {_REMEDY}")


def check_token_budget(num_tokens: int, num_pool_tokens: int) -> None:
    """Returns when the samples that can be drawn hold as many tokens as the budget.

    Raises:
        BudgetError: they hold fewer.
    """
    if num_tokens > num_pool_tokens:
        raise BudgetError(
            f"selection.budget.tokens must be between 1 and {num_pool_tokens} (the pool's tokens), "
            f"got {num_tokens}; {_REMEDY}"
        )


def refuse_empty_draw(num_tokens: int, num_first_tokens: int) -> BudgetError:
    """Returns the error for a budget of tokens that the first sample drawn overflows."""
    return BudgetError(
        f"selection.budget.tokens must hold the first sample drawn ({num_first_tokens} tokens), "
        f"got {num_tokens}; {_REMEDY}"
    )


def target_inclusion(weights: Floats, num_samples: int) -> Floats:
    """Returns the inclusion probabilities n w / sum w, those above 1 set to 1 and the rest raised.

    The certain samples are taken out and what they leave of n is shared out again, until all that
    are left lie below 1. They sum to n.

    Reference: Rosen 1997, On sampling with probability proportional to size.
    """
    targets = np.zeros_like(weights)
    open_ = weights > 0
    while open_.any():
        left = num_samples - int((targets >= 1).sum())
        targets[open_] = left * weights[open_] / weights[open_].sum()
        certain = open_ & (targets >= 1)
        if not certain.any():
            break
        targets[certain] = 1.0
        open_ &= ~certain
    return targets


def refuse_pareto_tokens(settings: SelectionSettings) -> None:
    """Returns when the sampling knows how many samples to draw beforehand, or need not.

    Raises:
        SettingsError: Pareto sampling with a budget of tokens.
    """
    if settings.sampling == "pareto" and settings.budget.tokens is not None:
        raise SettingsError(
            "selection.sampling must be exponential with a budget of tokens, got 'pareto'; set "
            "selection.sampling, or a budget of samples, in circuitseer.yaml"
        )


def _pool_words(num_pool: int, num_drawable: int) -> str:
    if num_pool == num_drawable:
        return "the pool's size"
    return f"the pool's samples with a weight above 0; {num_pool} in all"


# draw ---------------------------------------------------------------------------------------------


def permanent_random_number(seed: int, sample_id: str) -> float:
    """Returns the sample's own uniform number for this seed, the same on every machine, in (0, 1).

    It is ((h >> 11) + 0.5) * 2^-53 with h the first 8 bytes, little-endian, of the MD5 of
    `seed:sample_id`; DuckDB's `md5_number_upper` is the same h.
    """
    digest = hashlib.md5(f"{seed}:{sample_id}".encode(), usedforsecurity=False).digest()
    return ((int.from_bytes(digest[:8], "little") >> 11) + 0.5) * 2.0**-53


def draw_subset(
    candidates: Sequence[Candidate], settings: SelectionSettings
) -> tuple[SubsetMember, ...]:
    """Returns the drawn samples by (sampling_key, sample_id): the reference of the draw in SQL.

    A weight of 0 is never drawn. A budget of tokens stops at the first sample that overflows it,
    since skipping would favour short ones. `inclusion_probability` is 1 - exp(-w tau) given tau,
    the next key (1 where everything is drawn); for Pareto sampling the target it was drawn with.
    `top` draws nothing: the highest weights are taken, the key is -weight and the probability 1.

    Raises:
        SettingsError: the budget is above what can be drawn, or holds no sample.
    """
    refuse_pareto_tokens(settings)
    drawable = [candidate for candidate in candidates if candidate.weight > 0]
    if settings.sampling == "pareto":
        return _draw_pareto(candidates, drawable, settings)
    is_top = settings.sampling == "top"
    keyed = sorted(
        (
            -candidate.weight if is_top else _exponential_key(candidate, settings.seed),
            candidate.sample_id,
            candidate,
        )
        for candidate in drawable
    )
    if settings.budget.tokens is None:
        count = resolve_num_samples(settings.budget, len(candidates), len(drawable))
    else:
        count = _count_within_tokens([row[2].num_tokens for row in keyed], settings.budget.tokens)
    tau = keyed[count][0] if count < len(keyed) and not is_top else math.inf
    return tuple(
        SubsetMember(sample_id, c.score, c.weight, key, 1 - math.exp(-c.weight * tau))
        for key, sample_id, c in keyed[:count]
    )


def _exponential_key(candidate: Candidate, seed: int) -> float:
    return -math.log(permanent_random_number(seed, candidate.sample_id)) / candidate.weight


def _draw_pareto(
    candidates: Sequence[Candidate], drawable: Sequence[Candidate], settings: SelectionSettings
) -> tuple[SubsetMember, ...]:
    count = resolve_num_samples(settings.budget, len(candidates), len(drawable))
    targets = target_inclusion(np.array([c.weight for c in drawable]), count).tolist()
    members = []
    for candidate, target in zip(drawable, targets, strict=True):
        u = permanent_random_number(settings.seed, candidate.sample_id)
        key = ((1 - u) / u) * ((1 - target) / target) if target > 0 else math.inf
        members.append(
            SubsetMember(candidate.sample_id, candidate.score, candidate.weight, key, target)
        )
    members.sort(key=lambda member: (member.sampling_key, member.sample_id))
    return tuple(members[:count])


def _count_within_tokens(num_tokens: Sequence[int], budget: int) -> int:
    check_token_budget(budget, sum(num_tokens))
    running = 0
    for count, tokens in enumerate(num_tokens):
        running += tokens
        if running > budget:
            if count == 0:
                raise refuse_empty_draw(budget, tokens)
            return count
    return len(num_tokens)


# summary ------------------------------------------------------------------------------------------


def summarize_draw(pool: pa.Table, members: pa.Table) -> DrawSummary:
    """Returns how far the subset leans from the pool, and how unequal the weights were.

    Args:
        pool: columns `sample_id`, `score`, `weight` and, where known, `num_prompt_tokens`.
        members: columns `sample_id` and `inclusion_probability`.
    """
    scores, weights = _floats(pool, "score"), _floats(pool, "weight")
    is_drawn = pc.is_in(pool["sample_id"], value_set=members["sample_id"])
    drawn = np.asarray(is_drawn.to_numpy(), dtype=bool)
    num_pool, num_samples = len(scores), int(drawn.sum())
    spread = float(scores.std())
    tilt = float(scores[drawn].mean() - scores.mean()) / spread if spread > 0 else 0.0
    lengths = (
        _floats(pool, "num_prompt_tokens") if "num_prompt_tokens" in pool.schema.names else None
    )
    return DrawSummary(
        num_pool=num_pool,
        num_drawable=int((weights > 0).sum()),
        num_samples=num_samples,
        effective_pool_size=_kish(weights),
        effective_sample_size=_kish(1 / _floats(members, "inclusion_probability")),
        score_tilt_sd=tilt,
        random_tilt_sd=_random_tilt(num_samples, num_pool),
        mean_score=float(scores[drawn].mean()),
        pool_mean_score=float(scores.mean()),
        mean_prompt_tokens=None if lengths is None else float(lengths[drawn].mean()),
        pool_mean_prompt_tokens=None if lengths is None else float(lengths.mean()),
    )


def _random_tilt(num_samples: int, num_pool: int) -> float:
    if num_pool < 2:
        return 0.0
    return math.sqrt((num_pool - num_samples) / (num_samples * (num_pool - 1)))


def _kish(weights: Floats) -> float:
    largest = weights.max()  # divided out, or the squares of small weights vanish
    scaled = weights / largest
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def _floats(table: pa.Table, column: str) -> Floats:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), dtype=np.float64)
