"""Scores in, weights out: how much likelier one sample of the pool is drawn than another.

A weight is a function of the sample's own score and length, never of the rest of the pool, so
that new samples leave the old ones' weights alone.

Reference: CircuitSeer, arXiv 2510.18470 (in proportion to the score: power 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import SelectionSettings

MIN_STRATUM_ROWS = 50

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthStratum:
    """The frozen scores, ascending, of the first pool's samples of up to so many prompt tokens.

    The last stratum of a pool takes every longer prompt as well.
    """

    max_prompt_tokens: int
    scores: tuple[float, ...]


def weigh_samples(
    pool: pa.Table, settings: SelectionSettings, strata: Sequence[LengthStratum] = ()
) -> pa.Table:
    """Returns `pool` with the column `weight`, a function of the sample's own score and length.

    Weights are computed here and nowhere else, and stored: powers are rounded differently
    elsewhere.

    Args:
        pool: columns `score` and, for `debias: length`, `num_prompt_tokens`.
        settings: the slice `selection`.
        strata: what `freeze_strata` returned at the first draw, for `debias: length`.

    Raises:
        SettingsError: a score cannot be weighed this way.
    """
    scores = _floats(pool, "score")
    if settings.debias == "length":
        scores = rank_within_strata(scores, _integers(pool, "num_prompt_tokens"), strata)
    return pool.append_column("weight", pa.array(_weights(scores, settings), pa.float64()))


def freeze_strata(pool: pa.Table) -> tuple[LengthStratum, ...]:
    """Returns strata of prompt length with at least 50 samples each, as few tokens wide as can be.

    Args:
        pool: columns `score` and `num_prompt_tokens`.

    Raises:
        SettingsError: the pool has fewer than 50 samples.
    """
    scores, lengths = _floats(pool, "score"), _integers(pool, "num_prompt_tokens")
    if len(scores) < MIN_STRATUM_ROWS:
        raise SettingsError(
            f"selection.debias must be none for a pool of fewer than {MIN_STRATUM_ROWS} samples, "
            f"got 'length' for {len(scores)}; set it in circuitseer.yaml"
        )
    upper_bounds, size = [], 0
    distinct, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        size += count
        if size >= MIN_STRATUM_ROWS:
            upper_bounds.append(length)
            size = 0
    upper_bounds[-1] = int(distinct[-1])  # what is left over is too few for a stratum of its own
    of_sample = np.searchsorted(upper_bounds, lengths)
    return tuple(
        LengthStratum(bound, tuple(np.sort(scores[of_sample == i]).tolist()))
        for i, bound in enumerate(upper_bounds)
    )


def strata_table(strata: Sequence[LengthStratum]) -> pa.Table:
    """Returns the strata as rows of `max_prompt_tokens` and `scores`, to be kept as an artifact."""
    return pa.table(
        {
            "max_prompt_tokens": pa.array([s.max_prompt_tokens for s in strata], pa.int64()),
            "scores": pa.array([s.scores for s in strata], pa.list_(pa.float64())),
        }
    )


def strata_from_table(table: pa.Table) -> tuple[LengthStratum, ...]:
    """Returns the strata that `strata_table` made the table of."""
    return tuple(
        LengthStratum(row["max_prompt_tokens"], tuple(row["scores"])) for row in table.to_pylist()
    )


def rank_within_strata(
    scores: Floats, num_prompt_tokens: Integers, strata: Sequence[LengthStratum]
) -> Floats:
    """Returns each score's mid-rank (r - 0.5)/n among the frozen scores of its length, in (0, 1).

    A score that came after the freeze ranks among the frozen ones without moving them; below all
    of them it counts as the lowest, so that it can still be drawn.

    Raises:
        SettingsError: there are no strata.
    """
    if not strata:
        raise SettingsError(
            "selection.debias must be none where no strata are frozen, got 'length'; freeze them "
            "at the first draw"
        )
    upper_bounds = [stratum.max_prompt_tokens for stratum in strata]
    of_sample = np.minimum(np.searchsorted(upper_bounds, num_prompt_tokens), len(strata) - 1)
    ranks = np.empty_like(scores)
    for i in np.unique(of_sample):
        frozen = np.asarray(strata[i].scores)
        here = of_sample == i
        below = np.searchsorted(frozen, scores[here], side="left")
        up_to = np.searchsorted(frozen, scores[here], side="right")
        middle = (below + up_to) / 2 / len(frozen)
        ranks[here] = np.clip(middle, 0.5 / len(frozen), 1 - 0.5 / len(frozen))
    return ranks


def _weights(scores: Floats, settings: SelectionSettings) -> Floats:
    if not np.isfinite(scores).all():
        num_bad = int((~np.isfinite(scores)).sum())
        raise SettingsError(
            f"every score must be a finite number, got {num_bad} of {scores.size} that are not; "
            f"quarantine these samples instead"
        )
    with np.errstate(over="ignore", under="ignore"):
        if settings.weights == "softmax":
            weights = np.exp(scores / settings.temperature)
            name, value = "temperature", settings.temperature
        else:
            if scores.size and scores.min() < 0:
                raise SettingsError(
                    f"selection.weights must be softmax for scores below 0, got 'power' with a "
                    f"score of {scores.min():.6g}; set it in circuitseer.yaml"
                )
            weights = np.power(scores, settings.power)
            name, value = "power", settings.power
    if not np.isfinite(weights).all():
        raise SettingsError(
            f"selection.{name} must keep every weight finite, got {value} for scores up to "
            f"{scores.max():.6g}; set it in circuitseer.yaml"
        )
    return weights


def _floats(table: pa.Table, column: str) -> Floats:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), dtype=np.float64)


def _integers(table: pa.Table, column: str) -> Integers:
    return np.asarray(table[column].to_numpy(zero_copy_only=False), dtype=np.int64)
