"""The dbt project on a warehouse small enough to compute every mart by hand, and on none at all."""

import json
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dagster_dbt import DbtProject
from scipy.stats import binomtest

from circuitseer_assets.assets.dbt_models import parsed_manifest
from circuitseer_assets.method.evaluation import summarise
from circuitseer_assets.records import Outcome
from circuitseer_assets.settings import PROJECT_ROOT
from resources.warehouse import Warehouse
from tests.dbt.conftest import run_dbt

MARTS = (
    "artifact_lineage",
    "evaluation_summary",
    "head_usage",
    "run_costs",
    "score_distribution",
    "score_length_bias",
    "study_results",
    "study_significance",
    "subset_length_bias",
    "subset_lineage",
    "subset_overlap",
)


def test_a_manifest_parsed_anew_replaces_the_one_others_read(tmp_path: Path) -> None:
    shutil.copytree(
        PROJECT_ROOT / "dbt_meta",
        tmp_path / "dbt_meta",
        ignore=shutil.ignore_patterns("target", "logs"),
    )
    project = DbtProject(tmp_path / "dbt_meta", profiles_dir=tmp_path / "dbt_meta")
    manifest = parsed_manifest(project)
    with manifest.open() as another_process:
        (tmp_path / "dbt_meta/models/later.sql").write_text("select 1 as one")
        assert "later" in parsed_manifest(project).read_text()
        before = json.load(another_process)
    assert not any(name.endswith(".later") for name in before["nodes"])
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]


def test_empty_warehouse_gives_empty_marts(full_build, tmp_path: Path) -> None:
    """Runs what dbt compiled, in dbt's order: a second dbt would take another quarter minute."""
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    with warehouse.connect() as connection:
        for node in compiled_nodes(full_build):
            if node["resource_type"] == "model":
                connection.execute(f"create table {node['name']} as {node['compiled_code']}")
            else:
                assert connection.execute(node["compiled_code"]).fetchall() == [], node["name"]
        for mart in MARTS:
            assert connection.execute(f"from {mart}").fetchall() == []


def compiled_nodes(build) -> list[dict[str, Any]]:
    run = json.loads((build.target / "run_results.json").read_text())["results"]
    nodes = json.loads((build.target / "manifest.json").read_text())["nodes"]
    return [
        {**nodes[result["unique_id"]], **result}
        for result in run
        if result["unique_id"] in nodes  # an exposure is no node
    ]


def test_every_model_and_test_passes_on_the_fixture(full_build) -> None:
    assert set(full_build.statuses.values()) == {"success", "pass"}
    models = {path.stem for path in (PROJECT_ROOT / "dbt_meta" / "models").rglob("*.sql")}
    assert models <= full_build.statuses.keys()


def test_subset_lineage_names_everything_the_subset_stands_on(full_build) -> None:
    first, second = full_build.rows("from subset_lineage order by subset_id")
    assert first == {
        "subset_id": "subset-1",
        "num_samples": 2,
        "num_tokens": 58,
        "num_pool": 5,
        "base_model": "org/model",
        "base_model_revision": "abc",
        "model_digest": "model-digest",
        "tokenizer_id": "tokenizer-1",
        "num_reasoning_heads": 2,
        "reasoning_heads": "0.0, 1.1",
        "scorer_id": "scorer-1",
        "scorer": "attention",
        "score_reading": "attention_variance",
        "score_heads": "reasoning",
        "seed": 7,
        "budget_fraction": 0.5,
        "budget_samples": None,
        "budget_tokens": None,
        "weights": "power",
        "power": 1.0,
        "temperature": 1.0,
        "debias": "none",
        "sampling": "exponential",
        "mean_score": 3.5,
        "corpus_id": "corpus-1",  # the pool's, not the older one the probes were drawn from
        "corpus_source": "files",
        "corpus_name": "a.jsonl, b.jsonl",
        "corpus_revision": None,
        "corpus_data_version": "version of corpus-1",
        "pool_id": "pool-1",
        "probe_set_id": "probe_set-1",
        "head_ranking_id": "head_ranking-1",
        "sample_scores_id": "sample_scores-1",
        "data_version": "version of subset-1",
        "code_version": "1",
        "dagster_run_id": "run of subset-1",
        "training_mlflow_run_ids": "training of checkpoint-1",
        "created_at": datetime(2026, 1, 1, 7),
    }
    assert second["training_mlflow_run_ids"] is None
    assert (second["num_samples"], second["budget_samples"], second["mean_score"]) == (1, 1, 5.0)
    assert second["budget_fraction"] is None


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ({"source": "hub", "repo_id": "org/set", "revision": "abc"}, "org/set"),
        ({"source": "reasoning_gym", "dataset": "gsm_symbolic"}, "gsm_symbolic"),
        ({"source": "word_problems"}, "word_problems"),
    ],
)
def test_subset_lineage_names_the_corpus(full_build, tmp_path: Path, corpus, name: str) -> None:
    with connect_to_copy(full_build, tmp_path) as connection:
        connection.execute(
            "update artifacts set settings = ? where artifact_id = 'corpus-1'",
            [json.dumps({"corpus": corpus})],
        )
        sql = compiled_sql(full_build, "subset_lineage")
        found = connection.execute(f"select distinct corpus_name from ({sql})").fetchall()
    assert found == [(name,)]


def connect_to_copy(build, folder: Path) -> duckdb.DuckDBPyConnection:
    copy = folder / "warehouse.duckdb"  # the file's name is part of what dbt compiles
    shutil.copyfile(build.warehouse.path, copy)
    return duckdb.connect(str(copy))


def compiled_sql(build, name: str) -> str:
    (path,) = (p for p in build.target.rglob(f"compiled/**/{name}.sql") if p.is_file())
    return path.read_text()


def test_artifact_lineage_takes_the_shortest_way(full_build) -> None:
    rows = full_build.rows("from artifact_lineage where artifact_id = 'subset-1'")
    assert {row["ancestor_id"]: row["distance"] for row in rows} == {
        "subset-1": 0,
        "sample_scores-1": 1,
        "pool-1": 2,
        "head_ranking-1": 2,
        "corpus-1": 3,
        "probe_set-1": 3,
        "corpus-0": 4,
    }


def test_head_usage_counts_rankings_and_subsets(full_build) -> None:
    rows = full_build.rows("from head_usage order by head_ranking_id, layer, head")
    columns = (
        "head_name",
        "importance_rank",
        "is_reasoning_head",
        "is_confirmed",
        "num_subsets",
        "num_rankings_of_model",
        "num_rankings_choosing",
    )
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("0.0", 1, True, True, 2, 2, 2),
        ("0.1", 3, False, False, 0, 2, 0),
        ("1.0", 4, False, False, 0, 2, 0),
        ("1.1", 2, True, False, 2, 2, 1),
        ("0.0", 1, True, True, 0, 2, 2),
        ("0.1", 2, False, False, 0, 2, 0),
        ("1.0", 4, False, False, 0, 2, 0),
        ("1.1", 3, False, False, 0, 2, 1),
    ]


def test_score_distribution_has_twenty_bins_a_scorer(full_build) -> None:
    rows = full_build.rows("from score_distribution where scorer_id = 'scorer-1' order by bin")
    assert [row["bin"] for row in rows] == list(range(1, 21))
    # Scores 1, 2, 3 and 5 from 1 to 5: bins are 0.2 wide.
    held = {row["bin"]: row["num_samples"] for row in rows if row["num_samples"]}
    assert held == {1: 1, 6: 1, 11: 1, 20: 1}
    assert rows[5]["score_from"] == pytest.approx(2.0)
    assert rows[5]["score_to"] == pytest.approx(2.2)
    assert rows[5]["share_of_samples"] == 0.25
    assert rows[6]["mean_num_tokens"] is None
    (flat,) = full_build.rows(
        "from score_distribution where scorer_id = 'scorer-2' and num_samples > 0"
    )
    assert (flat["bin"], flat["num_samples"], flat["mean_num_tokens"]) == (1, 2, 6.0)


def test_evaluation_summary_is_pass_at_1_of_each_model_and_task(full_build) -> None:
    rows = full_build.rows("from evaluation_summary order by task, answered_by")
    columns = ("task", "answered_by", "subset_id", "pass_at_1", "truncation_rate", "num_problems")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("gsm8k", "base_model", None, 3 / 8, 1 / 8, 4),
        ("gsm8k", "checkpoint", "subset-1", 5 / 8, 1 / 8, 4),
        ("svamp", "base_model", None, 0.0, 0.0, 2),
        ("svamp", "checkpoint", "subset-1", 1.0, 0.0, 2),
    ]
    assert {row["num_repeats"] for row in rows} == {2}
    assert [row["base_evaluation_id"] for row in rows] == [None, "evaluation-0"] * 2


def test_evaluation_interval_is_wilsons_over_what_the_repeats_are_worth(full_build) -> None:
    rows = full_build.rows("from evaluation_summary order by task, answered_by")
    # All or none right: repeats add nothing, so 0 and 2 of 2 problems.
    for row, successes in ((rows[2], 0), (rows[3], 2)):
        interval = binomtest(successes, 2).proportion_ci(method="wilson")
        assert row["ci_low"] == pytest.approx(interval.low, abs=1e-9)
        assert row["ci_high"] == pytest.approx(interval.high, abs=1e-9)
    # Shares 1, 1/2, 0, 0: their mean has variance 11/192, so (15/64) / (11/192) = 45/11 answers.
    p, n, z_squared = 3 / 8, 45 / 11, 1.959963984540054**2
    for bound in (rows[0]["ci_low"], rows[0]["ci_high"]):
        # Wilson's bounds are where the normal test of the true share just rejects p.
        assert (p - bound) ** 2 == pytest.approx(z_squared * bound * (1 - bound) / n)


def test_evaluation_summary_is_the_methods_own(full_build) -> None:
    outcomes = full_build.rows("from stg_evaluation_outcomes where checkpoint_id is null")
    names = ("task", "doc_id", "repeat", "correct", "truncated")
    summaries = summarise([Outcome(*(row[name] for name in names)) for row in outcomes])
    rows = full_build.rows("from evaluation_summary where answered_by = 'base_model' order by task")
    for row, summary in zip(rows, sorted(summaries, key=lambda s: s.task), strict=True):
        for name, value in asdict(summary).items():
            assert row[name] == pytest.approx(value), name


def test_staging_and_marts_lie_unqualified_beside_the_tables(full_build) -> None:
    kinds = full_build.rows(
        "select table_name, table_type from information_schema.tables where table_schema = 'main'"
    )
    found = {row["table_name"]: row["table_type"] for row in kinds}
    assert {found[mart] for mart in MARTS} == {"BASE TABLE"}
    assert {kind for name, kind in found.items() if name.startswith("stg_")} == {"VIEW"}


@pytest.mark.parametrize(
    ("harm", "test"),
    [
        (
            "update subset_members set score = 9 where sample_id = 's2'",
            "subset_members_have_their_score",
        ),
        (
            "insert into probe_members values ('probe_set-1', 's2', 'ranking')",
            "subset_members_are_no_probes",
        ),
        (
            "delete from corpus_members where corpus_id = 'corpus-1' and sample_id = 's4'",
            "subset_members_are_in_their_corpus",
        ),
        ("delete from artifacts where artifact_id = 'corpus-0'", "artifact_parents_are_recorded"),
        (
            "insert into unscored_samples values ('scorer-1', 's1', 'too_short', '')",
            "unscored_samples_have_no_score",
        ),
        ("delete from head_importance where layer = 1 and head = 1", "rankings_measure_every_head"),
        ("update head_importance set is_reasoning_head = false", "rankings_measure_every_head"),
        (
            "delete from evaluation_outcomes where doc_id = 'p1' and \"repeat\" = 1",
            "problems_are_answered_equally_often",
        ),
        ("delete from pool_members where sample_id = 's4'", "subset_members_are_in_their_pool"),
        ("update subset_lineage set corpus_id = null", "subsets_know_what_they_stand_on"),
        (
            "update head_usage set share_of_rankings_choosing = 1 where head_name = '0.1'",
            "choices_are_shared_out_over_the_heads",
        ),
        ("delete from subset_overlap", "subsets_overlap_once_and_as_sets_can"),
        ("update subset_overlap set num_common = 2", "subsets_overlap_once_and_as_sets_can"),
        (
            "update subset_overlap set num_common = 0, num_samples = 5",
            "subsets_overlap_once_and_as_sets_can",
        ),
        ("delete from sample_scores where sample_id = 's2'", "every_score_has_a_length"),
        (
            "delete from subset_length_bias where subset_id = 'subset-2'",
            "tenths_hold_pool_and_subset",
        ),
        ("update subset_length_bias set num_drawn = 0", "tenths_hold_pool_and_subset"),
        (
            "delete from evaluation_summary where task = 'svamp'",
            "intervals_hold_their_pass_at_1",
        ),
        ("update evaluation_summary set ci_high = 0", "intervals_hold_their_pass_at_1"),
        ("delete from run_costs where stage = 'subset'", "costs_of_a_run_add_up"),
        ("update run_costs set share_of_run_duration = 0.5", "costs_of_a_run_add_up"),
        (
            "update subset_members set inclusion_probability = 1.5",
            "accepted_range_stg_subset_members_0__1__inclusion_probability",
        ),
        ("update sample_scores set score = 'nan'", "accepted_range_stg_sample_scores_score"),
    ],
)
def test_broken_invariant_is_found(full_build, tmp_path: Path, harm: str, test: str) -> None:
    sql = compiled_sql(full_build, test)
    with connect_to_copy(full_build, tmp_path) as connection:
        assert connection.execute(sql).fetchall() == []
        connection.execute(harm)
        assert connection.execute(sql).fetchall() != []


def test_every_model_and_column_is_described_and_states_its_grain(full_build) -> None:
    manifest = json.loads((full_build.target / "manifest.json").read_text())
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    for model in models:
        assert model["description"].startswith("One row per "), model["name"]
        described = {name for name, column in model["columns"].items() if column["description"]}
        assert described == column_names(full_build, model["name"]), model["name"]


def column_names(full_build, table: str) -> set[str]:
    rows: list[dict[str, Any]] = full_build.rows(f"describe {table}")
    return {row["column_name"] for row in rows}


def test_every_source_is_the_asset_that_writes_it(full_build) -> None:
    manifest = json.loads((full_build.target / "manifest.json").read_text())
    assets = {
        source["name"]: source["config"]["meta"]["dagster"]["asset_key"]
        for source in manifest["sources"].values()
    }
    tables = full_build.rows(
        "select table_name from duckdb_tables() where not internal and table_name not in "
        f"('schema_migrations', 'superseded_artifacts', {', '.join(map(repr, MARTS))})"
    )
    assert assets.keys() == {row["table_name"] for row in tables}
    assert assets["subset_members"] == ["subset"]
    assert assets["artifacts"] == ["evaluation"]


def test_study_results_are_means_over_a_methods_seeds(full_build) -> None:
    (row,) = full_build.rows("from study_results where left_out_because is null")
    assert (row["study_id"], row["method"], row["num_seeds"]) == (
        "study_results-1",
        "circuitseer",
        2,
    )
    assert row["pass_at_1"] == pytest.approx(0.6)
    assert row["pass_at_1_sd"] == pytest.approx(0.1 * 2**0.5)
    assert row["held_out_loss_nats"] is None
    assert row["effective_share_of_pool"] == 0.75
    assert row["training_s"] == 1.5


def test_a_method_left_out_of_a_study_has_a_row_with_its_reason(full_build) -> None:
    (row,) = full_build.rows("from study_results where left_out_because is not null")
    assert (row["study_id"], row["method"], row["num_seeds"]) == ("study_results-1", "quality", 0)
    assert row["left_out_because"] == 'it can\'t be asked: "yes" is no token'
    assert row["pass_at_1"] is None
    assert row["created_at"] is not None


def test_study_significance_tells_hypotheses_from_explorations(full_build) -> None:
    rows = full_build.rows("from study_significance")
    primary = {row["endpoint"]: row["is_primary"] for row in rows}
    assert primary == {"pass_at_1": True, "held_out_log_likelihood_nats": False}
    assert {row["dagster_run_id"] for row in rows} == {"run of study_results-1"}


def test_documentation_has_every_model_with_its_columns_and_who_uses_it(
    full_build, tmp_path: Path
) -> None:
    # On a copy: the files of the build itself are read by other tests.
    shutil.copyfile(full_build.warehouse.path, tmp_path / "warehouse.duckdb")
    run_dbt(Warehouse(tmp_path / "warehouse.duckdb"), tmp_path, "docs", "generate", "--static")
    catalog = json.loads((tmp_path / "target" / "catalog.json").read_text())
    assert catalog["errors"] is None
    found = {node["metadata"]["name"]: node["columns"].keys() for node in catalog["nodes"].values()}
    models = {path.stem for path in (PROJECT_ROOT / "dbt_meta" / "models").rglob("*.sql")}
    assert found.keys() == models
    for mart in MARTS:
        assert found[mart] == column_names(full_build, mart)
    page = (tmp_path / "target" / "static_index.html").read_text()
    assert all(mart in page for mart in MARTS)


def test_every_mart_is_somebodys_who_is_named(full_build) -> None:
    manifest = json.loads((full_build.target / "manifest.json").read_text())
    exposures = {exposure["name"]: exposure for exposure in manifest["exposures"].values()}
    assert exposures.keys() == {"audit_report", "dagster_ui"}
    used = set()
    for exposure in exposures.values():
        assert exposure["description"]
        assert exposure["owner"]["name"]
        used |= {node.rpartition(".")[2] for node in exposure["depends_on"]["nodes"]}
    assert used == set(MARTS)
