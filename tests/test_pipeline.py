"""The whole graph in a temporary home: it ends, it is recorded, and it computes nothing twice."""

import itertools
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.definitions import make_definitions
from circuitseer_assets.records import STAGES
from jobs.backup import back_up
from jobs.lineage import read_lineage
from jobs.prune import prune
from jobs.reconcile import reconcile
from jobs.run import run_job
from resources.benchmarks import benchmark_digest
from resources.dead_runs import PID_TAG, end_dead_runs, process_tags
from resources.home import Home
from resources.warehouse_schema import OWNED_TABLES
from tests.conftest import small_settings
from tests.test_cli import circuitseer

UPSTREAM_OF_THE_SUBSET = ("corpus", "probe_set", "pool", "head_ranking", "sample_scores")
RunGraph = Callable[..., Any]


def reused(run: Any) -> dict[str, bool]:
    return {
        asset: bool(values["reused"])
        for asset, values in run.metadata.items()
        if "reused" in values
    }


@pytest.fixture
def home(home_folder: Path) -> Home:
    return Home.prepared(home_folder)


def test_the_first_run_makes_every_stage(first_run: Any) -> None:
    made = reused(first_run)
    assert set(STAGES) | {"pool"} == set(made)
    assert not any(made.values())


def test_every_artifact_is_recorded_with_parents_that_exist(first_run: Any, home: Home) -> None:
    artifacts = {a["artifact_id"]: a for a in home.warehouse.query("from artifacts").to_pylist()}
    assert {a["stage"] for a in artifacts.values()} == set(STAGES) | {"pool"}
    for artifact in artifacts.values():
        assert set(artifact["parents"]) <= set(artifacts)
        assert artifact["dagster_run_id"] == first_run.run_id
        home.artifacts.verify(artifact["stage"], artifact["artifact_id"])


def test_the_subset_is_the_budget_and_comes_from_the_pool(first_run: Any, home: Home) -> None:
    subset = Path(first_run.of("subset", "folder")) / "subset_members.parquet"
    members = pq.read_table(subset)["sample_id"].to_pylist()
    pool_file = Path(first_run.of("pool", "folder")) / "pool.parquet"
    pool = pq.read_table(pool_file)["sample_id"].to_pylist()
    assert len(members) == len(set(members)) == round(0.1 * len(pool))
    assert set(members) <= set(pool)
    probes = home.warehouse.query("select sample_id from probe_members")["sample_id"].to_pylist()
    assert not set(probes) & set(pool)


def test_subset_lineage_names_all_that_made_the_subset(first_run: Any, home: Home) -> None:
    [row] = home.warehouse.query("select * from subset_lineage").to_pylist()
    assert row["subset_id"] == first_run.of("subset", "artifact_id")
    assert row["dagster_run_id"] == first_run.run_id
    heads = first_run.of("head_ranking", "reasoning_heads")
    for head in heads:
        assert head in str(row["reasoning_heads"])
    assert row["scorer_id"] == first_run.of("sample_scores", "scorer_id")
    assert row["model_digest"]


def latest_metadata() -> dict[str, dict[str, Any]]:
    """Returns what every asset said of itself when it was last made."""
    with dg.DagsterInstance.get() as instance:
        found = {
            key: instance.get_latest_materialization_event(key) for key in instance.all_asset_keys()
        }
    return {
        key.to_user_string(): dict(event.asset_materialization.metadata)
        for key, event in found.items()
        if event is not None and event.asset_materialization is not None
    }


def test_every_materialisation_shows_its_columns_its_rows_and_where_they_come_from(
    first_run: Any, home: Home
) -> None:
    made = latest_metadata()
    graph = make_definitions(home).resolve_asset_graph()
    everything = {
        key.to_user_string()
        for key in graph.materializable_asset_keys
        if key.path[0] not in ("sweep", "study")
    }
    assert made.keys() == everything
    for name, metadata in made.items():
        columns = columns_in(metadata)
        assert columns, name
        assert all(column.type and column.description for column in columns.values()), name
        assert metadata["dagster/row_count"].value >= 0, name
        if name == "corpus":  # it comes from files
            assert "dagster/column_lineage" not in metadata
            continue
        sources = metadata["dagster/column_lineage"].value.deps_by_column
        # The UI itself shows no column lineage: it stands there in words as well.
        assert metadata["columns_come_from"].value == {
            column: sorted(f"{s.asset_key.to_user_string()}.{s.column_name}" for s in of_column)
            for column, of_column in sources.items()
        }
        assert any(sources.values()), name
        assert sources.keys() <= columns.keys(), name
        for source in itertools.chain.from_iterable(sources.values()):
            if name.startswith("stg_"):  # of a table that its asset may write beside its own
                key = dg.AssetKey.from_user_string(name)
                assert source.asset_key in graph.get(key).parent_keys, name
                assert source.column_name in columns, (name, source)
            else:
                above = columns_in(made[source.asset_key.to_user_string()])
                assert source.column_name in above, (name, source)


def columns_in(metadata: dict[str, Any]) -> dict[str, dg.TableColumn]:
    return {column.name: column for column in metadata["dagster/column_schema"].value.columns}


def test_row_counts_are_those_of_the_warehouse(first_run: Any, home: Home) -> None:
    for stage in (*STAGES, "pool"):
        metadata = latest_metadata()[stage]
        artifact_id, counted = metadata["artifact_id"].value, metadata["dagster/row_count"].value
        name = metadata["dagster/table_name"].value.rpartition(".")[2]
        if stage == "audit":  # everything there is in a home of one run
            sql = "select count(*) as n from artifacts where stage <> 'audit'"
        elif stage == "corpus":
            sql = "select count(*) as n from corpus_members where corpus_id = $id"
        elif stage == "sample_scores":
            sql = "select count(*) as n from sample_scores"
        else:
            sql = f"select count(*) as n from {name} where {OWNED_TABLES[name]} = $id"
        params = {"id": artifact_id} if "$id" in sql else {}
        assert home.warehouse.query(sql, params)["n"].to_pylist() == [counted], stage


PLOTS = {
    "head_ranking": "heat_map_md",
    "sample_scores": "score_against_length_md",
    "subset": "score_histogram_md",
    "checkpoint": "loss_curve_md",
    "evaluation": "pass_at_1_md",
}


def test_plots_are_on_the_assets_own_page(first_run: Any) -> None:
    for stage, name in PLOTS.items():
        shown = latest_metadata()[stage][name]
        assert isinstance(shown, dg.MarkdownMetadataValue)
        assert re.search(r"!\[[^]]+\]\(data:image/\w+;base64,[\w+/=]{1000,}\)", shown.value), stage


def test_dbt_and_dagster_agree_on_every_column(first_run: Any, home: Home) -> None:
    log = (home.folder / "last_run.log").read_text()
    assert "An error occurred while" not in log
    assert "implicitly aliased" not in log


def test_costs_are_kept_of_every_artifact(first_run: Any, home: Home) -> None:
    rows = home.warehouse.query("from run_costs order by created_at").to_pylist()
    assert len(rows) == len(STAGES) + 2  # the pool, and the base model's own evaluation
    assert all(row["duration_s"] >= 0 for row in rows)
    by_stage = {row["stage"]: row for row in rows}
    uses_a_model = {"head_ranking", "sample_scores", "checkpoint", "evaluation"}
    for stage, row in by_stage.items():
        assert (row["num_forwards"] is not None) == (stage in uses_a_model), stage
    # Batches of 8; the last batch of an epoch holds what is left.
    size = first_run.of("subset", "num_samples")
    epochs, rest = divmod(small_settings()["training"]["max_steps"], -(-size // 8))
    assert by_stage["checkpoint"]["num_forwards"] == epochs * size + min(8 * rest, size)
    # Scores read up to the deepest of the chosen heads, of six layers, once each prompt.
    deepest = 1 + max(
        int(head.split(".")[0]) for head in first_run.of("head_ranking", "reasoning_heads")
    )
    prompts = home.warehouse.query(
        "select count(distinct prompt_id) as n from pool_members join samples using (sample_id)"
    )["n"].to_pylist()[0]
    assert by_stage["sample_scores"]["num_forwards"] == pytest.approx(
        prompts * deepest / 6, abs=1.01
    )  # and one to see what the model is


def test_a_second_run_computes_nothing(first_run: Any, run_graph: RunGraph) -> None:
    again = run_graph()
    assert all(reused(again).values())
    for asset, values in again.metadata.items():
        if "artifact_id" in values:
            assert values["artifact_id"] == first_run.of(asset, "artifact_id")


@pytest.mark.long
def test_another_budget_makes_only_the_subset_and_after_and_back_again_nothing(
    first_run: Any, run_graph: RunGraph
) -> None:
    more = run_graph(selection={"budget": {"samples": 30}})
    made = reused(more)
    assert all(made[asset] for asset in UPSTREAM_OF_THE_SUBSET)
    assert not any(made[asset] for asset in ("subset", "checkpoint", "evaluation", "audit"))
    assert more.of("subset", "num_samples") == 30
    back = run_graph()
    assert all(reused(back).values())
    assert back.of("subset", "artifact_id") == first_run.of("subset", "artifact_id")


def test_the_checkpoint_generates_in_a_fresh_process(first_run: Any, home: Home) -> None:
    program = f"""
import mlflow
mlflow.set_tracking_uri({home.tracking_uri!r})
model = mlflow.transformers.load_model({first_run.of("checkpoint", "mlflow_model_uri")!r})
chat = [{{"role": "user", "content": "Ann has 3 pens and buys 4 more. How many has she?"}}]
print("ANSWER", repr(model(chat, max_new_tokens=24)[0]["generated_text"][-1]["content"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "ANSWER" in done.stdout, done.stderr[-2000:]


def mlflow_run_of(home: Home, run: Any, asset: str) -> Any:
    return home.tracking().client().get_run(run.of(asset, "mlflow_run_id"))


def test_every_mlflow_run_names_its_dagster_run_asset_and_artifact(
    first_run: Any, home: Home
) -> None:
    client = home.tracking().client()
    [experiment] = client.search_experiments(filter_string="name = 'circuitseer'")
    runs = client.search_runs([experiment.experiment_id])
    made_here = [run for run in runs if run.data.tags["dagster_run_id"] == first_run.run_id]
    assets = sorted(run.data.tags["dagster_asset"] for run in made_here)
    assert assets == ["checkpoint", "evaluation", "evaluation"]  # of base model and checkpoint
    for run in runs:
        artifact = home.warehouse.find_artifact(run.data.tags["artifact_id"])
        assert artifact is not None
        assert artifact.mlflow_run_id == run.info.run_id
        assert artifact.dagster_run_id == run.data.tags["dagster_run_id"]
        described = run.data.tags["mlflow.note.content"]
        assert f"/runs/{artifact.dagster_run_id})" in described
        assert f"/assets/{run.data.tags['dagster_asset']})" in described
        assert artifact.artifact_id in described


def test_every_materialisation_links_to_its_mlflow_run(first_run: Any, home: Home) -> None:
    for asset, values in first_run.metadata.items():
        artifact = home.warehouse.find_artifact(values.get("artifact_id", ""))
        tracked = artifact.mlflow_run_id if artifact else None
        assert (asset in ("checkpoint", "evaluation", "audit")) == (tracked is not None)
        assert values.get("mlflow_run_id") == tracked
        assert tracked is None or values["mlflow_run"].endswith(f"/runs/{tracked}")
    assert first_run.of("evaluation", "base_mlflow_run") != first_run.of("evaluation", "mlflow_run")
    # The page lies with the training: it is the model whose users look for it.
    assert first_run.of("audit", "mlflow_run") == first_run.of("checkpoint", "mlflow_run")


def test_the_training_runs_data_set_is_the_subset_by_its_digest(first_run: Any, home: Home) -> None:
    [given] = mlflow_run_of(home, first_run, "checkpoint").inputs.dataset_inputs
    subset = home.warehouse.find_artifact(first_run.of("subset", "artifact_id"))
    assert subset is not None
    assert (given.dataset.name, given.dataset.digest) == (subset.artifact_id, subset.data_version)
    num_samples = first_run.of("subset", "num_samples")
    assert json.loads(given.dataset.profile) == {"num_rows": num_samples}


def test_the_evaluations_run_names_its_benchmark_and_the_model_asked(
    first_run: Any, home: Home
) -> None:
    run = mlflow_run_of(home, first_run, "evaluation")
    [given] = run.inputs.dataset_inputs
    [benchmark] = home.settings().decontamination.benchmarks
    assert (given.dataset.name, given.dataset.digest) == (
        "word_problems",
        benchmark_digest(benchmark),
    )
    other = benchmark.model_copy(update={"seed": benchmark.seed + 1})
    assert benchmark_digest(other) != given.dataset.digest
    [asked] = run.inputs.model_inputs
    assert f"models:/{asked.model_id}" == first_run.of("checkpoint", "mlflow_model_uri")
    assert run.data.tags["checkpoint_id"] == first_run.of("checkpoint", "artifact_id")
    assert run.data.metrics["mean_pass_at_1"] == first_run.of("evaluation", "mean_pass_at_1")


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_the_export_holds_the_original_columns_in_corpus_order(
    first_run: Any, home: Home, tmp_path: Path, file_format: Any
) -> None:
    from resources.export import export_subset

    path, num_rows = export_subset(
        home, first_run.of("subset", "artifact_id"), file_format, tmp_path / f"out.{file_format}"
    )
    rows = (
        [json.loads(line) for line in path.read_text().splitlines()]
        if file_format == "jsonl"
        else pq.read_table(path).to_pylist()
    )
    assert len(rows) == num_rows == first_run.of("subset", "num_samples")
    positions = home.warehouse.query("select sample_id, position from samples").to_pylist()
    position_of = {row["sample_id"]: row["position"] for row in positions}
    order = [position_of[row["circuitseer_sample_id"]] for row in rows]
    assert order == sorted(order)
    assert {"family", "template_id", "num_steps"} <= set(rows[0])
    assert not list(tmp_path.glob("*.part"))


def test_importing_the_definitions_loads_no_heavy_library(home_folder: Path) -> None:
    program = (
        "import sys, circuitseer_assets.definitions\n"
        "heavy = {'torch', 'transformers', 'trl', 'lm_eval', 'mlflow', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
def test_one_dbt_model_can_be_made_alone_though_no_other_is_there(
    first_run: Any, home: Home
) -> None:
    with home.warehouse.connect() as connection:
        views = connection.execute("select view_name from duckdb_views() where not internal")
        for (name,) in views.fetchall():
            connection.execute(f"drop view {name} cascade")
    run = run_job(make_definitions(home), home, assets={dg.AssetKey("subset_lineage")})
    assert list(run.metadata) == ["subset_lineage"]


@pytest.mark.long
def test_nothing_is_stale_after_a_whole_run(
    first_run: Any, run_graph: RunGraph, home: Home
) -> None:
    run_graph()
    done = reconcile(make_definitions(home), home)
    assert done.run_ids == ()


@pytest.mark.long
def test_a_pruned_home_and_its_backup_are_fresh_and_name_nothing_that_is_gone(
    first_run: Any, run_graph: RunGraph, home: Home, tmp_path: Path
) -> None:
    more = run_graph(selection={"budget": {"samples": 28}})
    run_graph()
    gone, kept = (run.of("subset", "artifact_id") for run in (more, first_run))
    done = prune(make_definitions(home), home, num_newest=0)
    assert done.removed["subset"].count >= 1
    subsets = home.warehouse.query("select subset_id from subset_lineage")["subset_id"].to_pylist()
    assert subsets == [kept] != [gone]
    lineage = read_lineage(home, first_run.of("audit", "artifact_id"))
    assert lineage.missing == ()
    recorded = {artifact.artifact_id for artifact in home.warehouse.artifacts()}
    assert recorded == {artifact.artifact_id for artifact in lineage.artifacts}
    assert reconcile(make_definitions(home), home).run_ids == ()
    assert prune(make_definitions(home), home, num_newest=0).removed == {}

    assert back_up(home, tmp_path / "backup").incomplete == ()
    plan = circuitseer(tmp_path / "backup", "plan", "--json")
    assert plan.returncode == 0, plan.stderr
    assert [step["action"] for step in json.loads(plan.stdout)] == ["fresh"] * 9


@pytest.mark.long
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
def test_a_run_whose_process_died_is_ended_and_holds_no_slot(
    first_run: Any, home: Home, status: dg.DagsterRunStatus
) -> None:
    home.set_environment()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with dg.DagsterInstance.get() as instance:
        job = make_definitions(home).resolve_job_def("curate")
        run_id = str(uuid.uuid4())
        tags = {**process_tags(run_id), PID_TAG: f"{run_id}:{dead.pid}"}
        run = instance.create_run_for_job(job, run_id=run_id, tags=tags, status=status)
        again = instance.create_run_for_job(job, tags=tags, status=status)  # inherits the tags
        storage = instance.event_log_storage
        storage.set_concurrency_slots("duckdb", 1)
        claim = storage.claim_concurrency_slot("duckdb", run.run_id, "dbt_models")
        assert claim.is_claimed
        assert end_dead_runs(instance) == [run.run_id]
        assert end_dead_runs(instance) == []
        [left] = instance.get_runs(dg.RunsFilter(run_ids=[run.run_id]))
        assert left.status == dg.DagsterRunStatus.FAILURE
        assert storage.get_concurrency_info("duckdb").active_slot_count == 0
        [running] = instance.get_runs(dg.RunsFilter(run_ids=[again.run_id]))
        assert running.status == status
        # One that somebody else reported as failed, as the server of the UI does, without its slot.
        assert storage.claim_concurrency_slot("duckdb", again.run_id, "dbt_models").is_claimed
        instance.report_run_failed(running)
        assert end_dead_runs(instance) == []
        assert storage.get_concurrency_info("duckdb").active_slot_count == 0
