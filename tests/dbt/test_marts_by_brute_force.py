"""The marts on random warehouses, each against its definition in pandas, scipy or plain sets."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from circuitseer_assets.records import MAX_LENGTH_CORRELATION
from resources.warehouse import Warehouse
from tests.dbt.random_warehouse import RANKINGS, SCORERS, SHAPES, RandomWarehouse
from tests.dbt.test_dbt_models import compiled_nodes

Row = dict[str, Any]


@pytest.fixture(scope="module", params=[0, 1])
def warehouse(request, full_build, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A random warehouse with its marts, by the SQL that dbt compiled; all its tests hold."""
    folder: Path = tmp_path_factory.mktemp("random")
    made = RandomWarehouse(folder / "warehouse.duckdb", seed=request.param).warehouse
    with made.connect() as connection:
        for node in compiled_nodes(full_build):
            if node["resource_type"] == "model":
                connection.execute(f"create table {node['name']} as {node['compiled_code']}")
            else:
                broken = connection.execute(node["compiled_code"]).fetchall()
                assert broken == [], node["name"]
    return made


def read(warehouse: Warehouse, sql: str) -> list[Row]:
    return warehouse.query(sql).to_pylist()


def frame(warehouse: Warehouse, sql: str) -> pd.DataFrame:
    return warehouse.query(sql).to_pandas()


def members_of(warehouse: Warehouse, table: str, owner: str) -> dict[str, set[str]]:
    rows = frame(warehouse, f"select {owner}, sample_id from {table}")
    return {str(key): set(group["sample_id"]) for key, group in rows.groupby(owner)}


def test_overlap_is_that_of_sets_and_of_draws_by_lot(warehouse: Warehouse) -> None:
    drawn = members_of(warehouse, "subset_members", "subset_id")
    pools = members_of(warehouse, "pool_members", "pool_id")
    about = {row["subset_id"]: row for row in read(warehouse, "from subset_lineage")}
    expected = {}
    for one, other in itertools.combinations(sorted(about, key=lambda i: int(i[7:])), 2):
        if about[one]["corpus_id"] != about[other]["corpus_id"]:
            continue
        common = drawn[one] & drawn[other]
        by_lot = None
        if (pool := about[one]["pool_id"]) in pools and about[other]["pool_id"] in pools:
            other_pool = pools[about[other]["pool_id"]]
            # The chance of each sample to be in both draws, summed up one after the other.
            by_lot = sum(
                (sample in pools[pool]) * len(drawn[one]) / len(pools[pool])
                * (sample in other_pool) * len(drawn[other]) / len(other_pool)
                for sample in pools[pool] | other_pool
            )  # fmt: skip
        expected[one, other] = {
            "corpus_id": about[one]["corpus_id"],
            "is_same_scorer": about[one]["scorer_id"] == about[other]["scorer_id"],
            "is_same_seed": about[one]["seed"] == about[other]["seed"],
            "num_samples": len(drawn[one]),
            "other_num_samples": len(drawn[other]),
            "num_common": len(common),
            "jaccard": pytest.approx(len(common) / len(drawn[one] | drawn[other])),
            "num_common_at_random": by_lot if by_lot is None else pytest.approx(by_lot),
            "lift": by_lot if by_lot is None else pytest.approx(len(common) / by_lot),
        }
    found = {
        (row.pop("subset_id"), row.pop("other_subset_id")): row
        for row in read(warehouse, "from subset_overlap")
    }
    assert found == expected
    assert len(expected) == 66 + 6  # pairs of 12 subsets of one corpus, of 4 of the other
    assert {row["lift"] is None for row in found.values()} == {True, False}


def test_bias_is_scipys_rank_correlation(warehouse: Warehouse) -> None:
    found = {row["scorer_id"]: row for row in read(warehouse, "from score_length_bias")}
    assert found.keys() == SCORERS.keys()
    scores = frame(warehouse, "from sample_scores")
    lengths = frame(warehouse, "from sample_lengths")
    for scorer, (_, tokenizer, _) in SCORERS.items():
        both = scores[scores["scorer_id"] == scorer].merge(
            lengths[lengths["tokenizer_id"] == tokenizer], on="sample_id"
        )
        row = found[scorer]
        assert (row["tokenizer_id"], row["num_samples"]) == (tokenizer, len(both))
        assert row["mean_num_prompt_tokens"] == pytest.approx(both["num_prompt_tokens"].mean())
        if scorer in ("flat", "by-one-length"):
            assert row["score_length_spearman"] is None
            assert row["follows_length"] is None
        else:
            rho = spearmanr(both["score"], both["num_prompt_tokens"]).statistic
            assert row["score_length_spearman"] == pytest.approx(rho, abs=1e-12)
            assert row["follows_length"] == (abs(rho) > MAX_LENGTH_CORRELATION)


def test_tenths_are_those_of_the_lengths_middle_places(warehouse: Warehouse) -> None:
    drawn = members_of(warehouse, "subset_members", "subset_id")
    pools = members_of(warehouse, "pool_members", "pool_id")
    lengths = frame(warehouse, "from sample_lengths")
    scores = frame(warehouse, "from sample_scores")
    found = {
        (row.pop("subset_id"), row.pop("decile")): row
        for row in read(warehouse, "from subset_length_bias")
    }
    expected = {}
    for row in read(warehouse, "from subset_lineage where num_pool is not null"):
        pool = lengths[
            (lengths["tokenizer_id"] == row["tokenizer_id"])
            & lengths["sample_id"].isin(pools[row["pool_id"]])
        ]
        of_scorer = scores[scores["scorer_id"] == row["scorer_id"]]
        pool = pool.merge(of_scorer, on="sample_id", how="left", suffixes=("", "_"))
        places = rankdata(pool["num_prompt_tokens"], method="average")
        pool["decile"] = (1 + 10 * (places - 0.5) / len(pool)).astype(int)
        share = len(drawn[row["subset_id"]]) / len(pool)
        for decile, tenth in pool.groupby("decile"):
            num_drawn = tenth["sample_id"].isin(drawn[row["subset_id"]]).sum()
            mean = tenth["score"].mean()
            expected[row["subset_id"], decile] = {
                "min_num_prompt_tokens": tenth["num_prompt_tokens"].min(),
                "max_num_prompt_tokens": tenth["num_prompt_tokens"].max(),
                "num_pool_samples": len(tenth),
                "num_scored": tenth["score"].count(),
                "mean_score": None if pd.isna(mean) else pytest.approx(mean),
                "num_drawn": num_drawn,
                "share_drawn": pytest.approx(num_drawn / len(tenth)),
                "lift": pytest.approx(num_drawn / len(tenth) / share),
            }
    assert found == expected
    assert len({subset for subset, _ in found}) == 12  # the old pool's have none


def test_head_usage_tells_how_stable_a_head_is(warehouse: Warehouse) -> None:
    heads = frame(warehouse, "from head_importance")
    heads["model"] = heads["head_ranking_id"].map(RANKINGS)
    heads["shape"] = heads["model"].map(SHAPES)
    by_ranking = heads.groupby("head_ranking_id")
    heads["rank"] = by_ranking["delta_loss_nats"].rank(method="min", ascending=False).astype(int)
    heads["by_lot"] = by_ranking["is_reasoning_head"].transform("mean")
    found = {
        (row["head_ranking_id"], row["layer"], row["head"]): row
        for row in read(warehouse, "from head_usage")
    }
    assert len(found) == len(heads) == 4 * 6 + 6
    for head in heads.to_dict("records"):
        row = found[head["head_ranking_id"], head["layer"], head["head"]]
        namesakes = heads[(heads["layer"] == head["layer"]) & (heads["head"] == head["head"])]
        same = namesakes[namesakes["model"] == head["model"]]
        alike = namesakes[namesakes["shape"] == head["shape"]]
        assert row["importance_rank"] == head["rank"]
        assert row["num_rankings_of_model"] == len(same)
        assert row["num_rankings_choosing"] == same["is_reasoning_head"].sum()
        assert row["share_of_rankings_choosing"] == pytest.approx(same["is_reasoning_head"].mean())
        assert row["share_choosing_at_random"] == pytest.approx(same["by_lot"].mean())
        assert row["best_importance_rank"] == same["rank"].min()
        assert row["worst_importance_rank"] == same["rank"].max()
        assert row["num_models_of_shape"] == alike["model"].nunique()
        choosing = alike[alike["is_reasoning_head"]]
        assert row["num_models_choosing"] == choosing["model"].nunique()


def test_subset_lineage_counts_the_subsets_tokens_and_its_pool(warehouse: Warehouse) -> None:
    drawn = members_of(warehouse, "subset_members", "subset_id")
    pools = members_of(warehouse, "pool_members", "pool_id")
    lengths = frame(warehouse, "from sample_lengths")
    lengths["num_tokens"] = lengths["num_prompt_tokens"] + lengths["num_response_tokens"]
    rows = read(warehouse, "from subset_lineage")
    assert {row["subset_id"] for row in rows} == drawn.keys()
    for row in rows:
        own = lengths[
            (lengths["tokenizer_id"] == row["tokenizer_id"])
            & lengths["sample_id"].isin(drawn[row["subset_id"]])
        ]
        assert row["num_samples"] == len(own)
        assert row["num_tokens"] == own["num_tokens"].sum()
        pool = pools.get(row["pool_id"])
        assert row["num_pool"] == (None if pool is None else len(pool))


def test_costs_are_shared_out_over_a_run(warehouse: Warehouse) -> None:
    costs = {row["artifact_id"]: row for row in read(warehouse, "from artifact_costs")}
    artifacts = read(warehouse, "select artifact_id, dagster_run_id from artifacts")
    of_run: dict[str, float] = {}
    for artifact in artifacts:
        took = costs.get(artifact["artifact_id"], {}).get("duration_s", 0)
        of_run[artifact["dagster_run_id"]] = of_run.get(artifact["dagster_run_id"], 0) + took
    found = {row["artifact_id"]: row for row in read(warehouse, "from run_costs")}
    assert found.keys() == {artifact["artifact_id"] for artifact in artifacts}
    for artifact_id, row in found.items():
        cost = costs.get(artifact_id, dict.fromkeys(("duration_s", "num_forwards", "num_tokens")))
        assert all(row[name] == value for name, value in cost.items() if name != "artifact_id")
        took, whole = cost["duration_s"], of_run[row["dagster_run_id"]]
        if took is None or whole == 0:
            assert row["share_of_run_duration"] is None
        else:
            assert row["share_of_run_duration"] == pytest.approx(took / whole)
        if took and cost["num_tokens"] is not None:
            assert row["num_tokens_per_s"] == pytest.approx(cost["num_tokens"] / took)
        else:
            assert row["num_tokens_per_s"] is None
