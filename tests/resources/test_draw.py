"""The draw in SQL against its reference in Python, and what a draw must do at scale."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare, hypergeom

from circuitseer_assets.errors import SettingsError, WarehouseError
from circuitseer_assets.method.subset import Candidate
from circuitseer_assets.method.subset import draw_subset as draw_reference
from circuitseer_assets.method.weights import freeze_strata, weigh_samples
from circuitseer_assets.settings import Budget, SelectionSettings
from resources.draw import draw_subset

COLUMNS = ["sample_id", "score", "weight", "sampling_key", "inclusion_probability"]


def scored_pool(size: int, seed: int = 0, prefix: str = "s") -> pa.Table:
    generator = np.random.default_rng(seed)
    prompt = generator.integers(20, 200, size)
    scores = generator.gamma(2, 1e-4, size)
    scores[::97] = 0.0
    return pa.table(
        {
            "sample_id": [f"{prefix}{i}é" for i in range(size)],
            "score": scores,
            "num_prompt_tokens": prompt,
            "num_tokens": prompt + generator.integers(20, 200, size),
        }
    )


def weighed_pool(weights: list[float]) -> pa.Table:
    ids = [f"s{i}" for i in range(len(weights))]
    return pa.table({"sample_id": ids, "score": weights, "weight": pa.array(weights, pa.float64())})


def ids(members: pa.Table) -> list[str]:
    return members["sample_id"].to_pylist()


def test_columns_and_order() -> None:
    members = draw_subset(
        weighed_pool([1.0, 2.0, 3.0]), SelectionSettings(budget=Budget(samples=2))
    )
    assert members.column_names == COLUMNS
    keys = members["sampling_key"].to_pylist()
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": Budget(samples=400)},
        {"budget": Budget(samples=3959), "seed": 3},
        {"budget": Budget(samples=3958), "seed": 3},
        {"budget": Budget(fraction=0.1), "power": 2.5, "seed": 2**32 - 1},
        {"budget": Budget(fraction=0.1), "power": 0.0},
        {"budget": Budget(tokens=40_000)},
        {"budget": Budget(samples=400), "weights": "softmax", "temperature": 1e-4},
        {"budget": Budget(samples=400), "debias": "length"},
        {"budget": Budget(samples=400), "sampling": "pareto"},
        {"budget": Budget(samples=3000), "sampling": "pareto", "power": 2.0},
        {"budget": Budget(samples=400), "sampling": "top"},
        {"budget": Budget(tokens=20_000), "sampling": "top", "power": 2.0},
    ],
    ids=str,
)
def test_sql_draws_exactly_what_the_reference_draws(changes) -> None:
    settings = SelectionSettings(**changes)
    scored = scored_pool(4001)
    pool = weigh_samples(scored, settings, freeze_strata(scored))
    columns = ("sample_id", "score", "weight", "num_tokens")
    candidates = [Candidate(*(row[name] for name in columns)) for row in pool.to_pylist()]
    expected = draw_reference(candidates, settings)
    members = draw_subset(pool, settings)
    assert ids(members) == [member.sample_id for member in expected]
    for column in COLUMNS[1:3]:
        assert members[column].to_pylist() == [getattr(member, column) for member in expected]
    for column in COLUMNS[3:]:
        np.testing.assert_allclose(
            members[column].to_numpy(),
            [getattr(member, column) for member in expected],
            rtol=1e-12,
            atol=1e-15,
        )


def test_parquet_file_gives_what_the_table_gives(tmp_path: Path) -> None:
    settings = SelectionSettings(budget=Budget(samples=50), seed=5)
    pool = weigh_samples(scored_pool(500), settings)
    pq.write_table(pool, tmp_path / "it's a pool.parquet")
    assert draw_subset(tmp_path / "it's a pool.parquet", settings).equals(
        draw_subset(pool, settings)
    )


def test_same_seed_same_subset_and_another_seed_another() -> None:
    pool = weighed_pool(np.linspace(1, 2, 200).tolist())
    first, again, other = (
        draw_subset(pool, SelectionSettings(budget=Budget(samples=20), seed=seed))
        for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert set(ids(first)) != set(ids(other))
    shuffled = pool.take(np.random.default_rng(0).permutation(200))
    assert draw_subset(shuffled, SelectionSettings(budget=Budget(samples=20), seed=1)).equals(first)


def test_frequencies_are_those_of_successive_sampling() -> None:
    """One draw of 5000 groups of three: the keys order each group as a draw of its own would."""
    weights, num_groups = [1.0, 2.0, 5.0], 5000
    expected = {
        order: weights[order[0]] / 8 * weights[order[1]] / (8 - weights[order[0]])
        for order in itertools.permutations(range(3))
    }
    pool = weighed_pool(weights * num_groups)
    drawn = draw_subset(pool, SelectionSettings(budget=Budget(samples=3 * num_groups)))
    groups: dict[int, list[int]] = {}
    for number in (int(sample_id[1:]) for sample_id in ids(drawn)):
        groups.setdefault(number // 3, []).append(number % 3)
    counts = Counter(map(tuple, groups.values()))
    observed = [counts[order] for order in expected]
    assert sum(observed) == num_groups
    assert chisquare(observed, [num_groups * p for p in expected.values()]).pvalue > 0.001
    assert chisquare(observed).pvalue < 1e-9  # the test can tell


@pytest.mark.parametrize("sampling", ["exponential", "pareto", "top"])
def test_weight_zero_is_never_drawn(sampling: str) -> None:
    pool = weighed_pool([0.0, 1e-300, 1.0, 0.0])
    settings = SelectionSettings(budget=Budget(samples=2), sampling=sampling)
    members = draw_subset(pool, settings)
    assert sorted(ids(members)) == ["s1", "s2"]
    assert members["inclusion_probability"].to_pylist() == [1.0, 1.0]


def test_one_percent_of_like_scored_new_rows_displaces_about_one_percent() -> None:
    """Of a fixed number of members: each new row that is drawn takes one old member's place.

    New rows scored like the old are as likely to be drawn, so their number is hypergeometric.
    """
    num_old, num_new, num_members, num_draws = 10_000, 100, 1000, 20
    shares = []
    for seed in range(num_draws):
        settings = SelectionSettings(budget=Budget(samples=num_members), seed=seed)
        old = scored_pool(num_old, seed=2 * seed)
        new = scored_pool(num_new, seed=2 * seed + 1, prefix="new")
        before = ids(draw_subset(weigh_samples(old, settings), settings))
        after = ids(draw_subset(weigh_samples(pa.concat_tables([old, new]), settings), settings))
        joined, left = set(after) - set(before), set(before) - set(after)
        assert len(joined) == len(left)
        assert all(sample_id.startswith("new") for sample_id in joined)
        assert left == set(before[num_members - len(left) :])  # those whose keys were the largest
        shares.append(len(left) / num_members)
    expected = hypergeom(num_old + num_new, num_new, num_members)
    error = expected.std() / num_members / num_draws**0.5
    assert np.mean(shares) == pytest.approx(expected.mean() / num_members, abs=3 * error)


def test_token_budget_stops_at_the_first_overflow() -> None:
    pool = weigh_samples(scored_pool(1000), SelectionSettings(budget=Budget(samples=1)))
    whole = draw_subset(pool, SelectionSettings(budget=Budget(samples=900)))
    tokens = dict(zip(ids(pool), pool["num_tokens"].to_pylist(), strict=True))
    running = np.cumsum([tokens[sample_id] for sample_id in ids(whole)])
    for budget in (500, 20_000, int(running[99]), int(running[99]) - 1):
        members = draw_subset(pool, SelectionSettings(budget=Budget(tokens=budget)))
        assert ids(members) == ids(whole)[: int((running <= budget).sum())]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"samples": 9000},
            "selection.budget.samples must be between 1 and 3 (the pool's size), got 9000; "
            "set selection.budget in circuitseer.yaml",
        ),
        (
            {"tokens": 31},
            "selection.budget.tokens must be between 1 and 30 (the pool's tokens), got 31; "
            "set selection.budget in circuitseer.yaml",
        ),
        (
            {"tokens": 9},
            "selection.budget.tokens must hold the first sample drawn (10 tokens), got 9; "
            "set selection.budget in circuitseer.yaml",
        ),
    ],
)
def test_impossible_budget_is_refused_as_the_reference_does(budget, message: str) -> None:
    pool = weighed_pool([1.0, 2.0, 3.0]).append_column("num_tokens", pa.array([10, 10, 10]))
    with pytest.raises(SettingsError) as caught:
        draw_subset(pool, SelectionSettings(budget=Budget(**budget)))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            weighed_pool([1.0]).drop_columns(["weight"]),
            r"the pool cannot be drawn from: .*\"weight\" not found",
        ),
        (
            pa.concat_tables([weighed_pool([1.0, 2.0]), weighed_pool([1.0])]),
            r"each sample must be in the pool once, got 3 rows of 2 samples; draw from distinct",
        ),
        (weighed_pool([1.0, float("nan")]), r"finite number of at least 0, got 1 that are not"),
        (weighed_pool([1.0, -1.0]), r"finite number of at least 0, got 1 that are not; compute"),
    ],
)
def test_pool_that_is_no_pool_is_refused(pool: pa.Table, message: str) -> None:
    with pytest.raises(WarehouseError, match=message):
        draw_subset(pool, SelectionSettings(budget=Budget(samples=1)))
