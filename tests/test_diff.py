"""The shift of scores between two draws, against the definition and scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from circuitseer_assets.method.subset_changes import Draw
from circuitseer_assets.settings import SelectionSettings
from jobs.diff import measure_shift

SELECTION = SelectionSettings.model_validate({"budget": {"samples": 2}})


def draw(scores: dict[str, float]) -> Draw:
    return Draw(SELECTION, scores, frozenset(list(scores)[:2]))


def test_the_shift_is_that_of_the_samples_both_have() -> None:
    values = np.random.default_rng(3).normal(size=(2, 40)).round(1)
    before = {f"s{i}": float(value) for i, value in enumerate(values[0])}
    after = {f"s{i}": float(value) for i, value in enumerate(values[1]) if i >= 10}
    after["s12"] = before["s12"]
    after["new"] = 99.0
    shared = [f"s{i}" for i in range(10, 40)]
    old, new = [before[name] for name in shared], [after[name] for name in shared]
    shift = measure_shift(draw(before), draw(after))
    assert shift.num_samples == 30
    assert shift.num_changed == sum(a != b for a, b in zip(old, new, strict=True)) < 30
    assert shift.mean_before == pytest.approx(np.mean(old))
    assert shift.mean_after == pytest.approx(np.mean(new))
    assert shift.rank_correlation == pytest.approx(spearmanr(old, new).statistic)


def test_without_common_samples_or_spread_nothing_is_made_up() -> None:
    nothing = measure_shift(draw({"a": 1.0, "b": 2.0}), draw({"c": 1.0, "d": 2.0}))
    assert (nothing.num_samples, nothing.mean_before, nothing.rank_correlation) == (0, None, None)
    flat = measure_shift(draw({"a": 1.0, "b": 1.0}), draw({"a": 1.0, "b": 2.0}))
    assert (flat.num_changed, flat.rank_correlation) == (1, None)
