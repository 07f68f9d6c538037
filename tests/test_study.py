"""A study end to end: killed and gone on with, no cell twice, its figures from the definition."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from circuitseer_assets import definitions
from circuitseer_assets.assets import study
from circuitseer_assets.assets.study import COMPARISONS_FILE
from circuitseer_assets.assets.study_cell import LOSSES_FILE, load_cell
from circuitseer_assets.records import Artifact, Message
from jobs.run import PipelineFailedError, run_job
from jobs.study import make_pool_and_ranking, report_of, run_study
from resources.benchmarks import load_task
from resources.home import Home
from resources.language_model import load_language_model
from tests.conftest import small_settings, write_settings

pytestmark = pytest.mark.long

METHODS = ("circuitseer", "random", "oracle", "random_tokens", "quality")
NUM_SEEDS = 2
KILL_AFTER_CELLS = 3
PATIENCE_S = 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("study")
    values = small_settings()
    values["corpus"] = {**values["corpus"], "wrong_share": 0.4}
    values["training"] = {**values["training"], "max_steps": 4}
    values["study"] = {
        "methods": list(METHODS),
        "num_seeds": NUM_SEEDS,
        "composition_columns": ["is_planted_noise"],
    }
    write_settings(folder, values)
    return Home.prepared(folder)


def cells_of(home: Home) -> list[Artifact]:
    with home.warehouse.connect(read_only=True) as connection:
        ids = connection.sql(
            "select artifact_id from artifacts where stage = 'study_cell'"
        ).fetchall()
    found = [home.warehouse.find_artifact(row[0]) for row in ids]
    return [cell for cell in found if cell is not None]


@pytest.fixture(scope="module")
def killed(home: Home) -> dict[str, Artifact]:
    """The cells that a study had made when it was killed without warning."""
    command = [str(Path(sys.executable).with_name("circuitseer")), "study"]
    environment = {**os.environ, "CIRCUITSEER_HOME": home.path}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    made = home.folder / "artifacts" / "study_cell"
    deadline = time.monotonic() + PATIENCE_S
    while len(list(made.glob("study_cell-*"))) < KILL_AFTER_CELLS:
        assert process.poll() is None, "the study ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return {cell.artifact_id: cell for cell in cells_of(home)}


@pytest.fixture(scope="module")
def report(home: Home, killed: dict[str, Artifact]) -> str:
    return report_of(run_study(definitions.make_definitions(home), home))


def test_a_killed_study_goes_on_and_no_cell_is_made_twice(
    home: Home, killed: dict[str, Artifact], report: str
) -> None:
    assert len(killed) >= KILL_AFTER_CELLS - 1  # the last may have been killed before its row
    cells = {cell.artifact_id: cell for cell in cells_of(home)}
    made = {(cell.settings["method"], cell.settings["seed"]) for cell in cells.values()}
    assert len(cells) == len(made) == (len(METHODS) - 1) * NUM_SEEDS
    for artifact_id, cell in killed.items():
        assert cells[artifact_id] == cell
    with home.warehouse.connect(read_only=True) as connection:
        checkpoints = connection.sql("select count(*) from checkpoints").fetchall()[0][0]
    assert checkpoints == len(cells)


def test_a_method_that_cannot_serve_is_left_out(report: str) -> None:
    assert "| random_tokens |" in report
    assert "| quality |" not in report


def test_the_oracle_draws_no_wrong_solution_and_random_its_share(report: str) -> None:
    table = report.split("Share of the samples by `is_planted_noise`:")[1]
    shares = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if "%" in line}
    assert "| 100.0 % | 0.0 % |" in shares["oracle"]
    assert "100.0 %" not in shares["random"]


def test_held_out_losses_are_those_of_whole_forwards(
    home: Home, killed: dict[str, Artifact], report: str
) -> None:
    cell = cells_of(home)[0]
    checkpoint = home.warehouse.find_artifact(
        next(parent for parent in cell.parents if parent.startswith("checkpoint-"))
    )
    assert checkpoint is not None
    with home.warehouse.connect(read_only=True) as connection:
        uri = connection.sql(
            "select mlflow_model_uri from checkpoints where checkpoint_id = $id",
            params={"id": checkpoint.artifact_id},
        ).fetchall()[0][0]
    settings = home.settings()
    folder = home.tracking().model_folder(uri)
    named = settings.base_model.model_copy(update={"path": str(folder)})
    model = load_language_model(named, cache=home.models)
    task = load_task(settings.decontamination.benchmark("word_problems"), folder=home.folder)
    rows = pq.read_table(
        home.artifacts.folder("study_cell", cell.artifact_id) / LOSSES_FILE
    ).to_pylist()
    stored = {row["doc_id"]: row for row in rows}
    assert len(stored) == len(task.doc_ids) == 24
    for problem, solution in list(zip(task.problems(), task.solutions(), strict=True))[:5]:
        text = model.tokenize("x", [Message("user", problem.prompt)], solution)
        ids = torch.tensor([text.input_ids])
        with torch.inference_mode():
            logits = model.model(input_ids=ids).logits[0].log_softmax(-1)
        losses = -logits[:-1].gather(1, ids[0, 1:, None])[text.response_start - 1 :]
        assert stored[problem.doc_id]["loss_nats"] == pytest.approx(float(losses.mean()), rel=1e-4)
        assert stored[problem.doc_id]["num_tokens"] == len(losses)


def test_warehouse_marts_and_mlflow_tell_of_the_same_study(home: Home, report: str) -> None:
    with home.warehouse.connect(read_only=True) as connection:
        everyone = connection.sql("select * from study_results").to_arrow_table().to_pylist()
        pairs = connection.sql("select * from study_significance").to_arrow_table().to_pylist()
        cells = connection.sql("from study_cells").to_arrow_table().to_pylist()
    results = [row for row in everyone if row["left_out_because"] is None]
    [left_out] = [row for row in everyone if row not in results]
    assert left_out["method"] == "quality"
    assert "needs a base model that can be asked" in left_out["left_out_because"]
    assert {row["method"] for row in results} == set(METHODS) - {"quality"}
    assert {row["num_seeds"] for row in results} == {NUM_SEEDS}
    folder = home.artifacts.folder("study_results", results[0]["study_id"])
    assert len(pairs) == pq.read_metadata(folder / COMPARISONS_FILE).num_rows
    assert [p["endpoint"] for p in pairs if p["is_primary"]] == ["pass_at_1"]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=home.tracking_uri)
    for cell in cells:
        artifact = home.warehouse.find_artifact(cell["study_cell_id"])
        assert artifact is not None
        assert artifact.mlflow_run_id is not None
        run = client.get_run(artifact.mlflow_run_id)
        assert run.data.tags["dagster_asset"] == "study/study_cell"
        assert run.data.tags["dagster_run_id"] == artifact.dagster_run_id
        assert run.data.metrics["pass_at_1"] == pytest.approx(cell["pass_at_1"])
        assert run.data.tags["artifact_id"] == cell["study_cell_id"]


def test_selecting_costs_what_the_stages_it_needs_cost(home: Home, report: str) -> None:
    """By the warehouse's tables of costs and of heads, which no cell is made from."""
    [ranking] = home.warehouse.query(
        "select sum(num_probes) + max(num_probes) as num_forwards from head_importance"
    ).to_pylist()
    [cost] = home.warehouse.query(
        "select duration_s from artifact_costs join artifacts using (artifact_id) "
        "where stage = 'head_ranking'"
    ).to_pylist()
    for artifact in cells_of(home):
        cell = load_cell(home.artifacts.folder("study_cell", artifact.artifact_id))
        if cell["method"].startswith("circuitseer"):
            assert cell["num_selection_forwards"] == cell["num_pool"] + ranking["num_forwards"]
            assert cell["selection_s"] > cost["duration_s"]
        else:  # random and the oracle read nothing
            assert cell["num_selection_forwards"] == 0


def test_its_assets_show_their_tables(home: Home, report: str) -> None:
    home.set_environment()
    for name, num_rows in (("study_cell", 1), ("study_results", None), ("sample_scores", None)):
        with dg.DagsterInstance.get() as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey(["study", name]))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        columns: Any = metadata["dagster/column_schema"].value
        assert all(column.description for column in columns.columns)
        assert metadata["dagster/row_count"].value == num_rows or num_rows is None
        lineage: Any = metadata["dagster/column_lineage"].value
        assert {column.name for column in columns.columns} >= lineage.deps_by_column.keys()
    costs = home.warehouse.query("from run_costs where stage = 'study_cell'").to_pylist()
    assert costs
    assert all(row["num_forwards"] > 0 for row in costs)


def test_a_second_study_computes_nothing(home: Home, report: str) -> None:
    defs = definitions.make_definitions(home)
    before = {cell.artifact_id for cell in cells_of(home)}
    assert report_of(run_study(defs, home)) == report
    assert {cell.artifact_id for cell in cells_of(home)} == before
    with dg.DagsterInstance.get() as instance:
        key = dg.AssetKey(["study", "study_results"])
        event = instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["reused"].value


def test_a_method_that_cannot_serve_is_named_with_its_reason(report: str) -> None:
    [claim] = [line for line in report.splitlines() if "circuitseer - quality" in line]
    assert "not applicable: scoring.scorer 'quality' needs" in claim


@pytest.mark.parametrize(
    ("slice_", "change"),
    [
        ("corpus", {"seed": 2}),
        ("head_ranking", {"fraction": 0.25}),
        ("scoring", {"min_tokens": 9}),
        ("selection", {"power": 2.0}),
        ("training", {"epochs": 3.0}),
        ("evaluation", {"max_new_tokens": 63}),
        ("study", {"composition_columns": ["family"]}),
    ],
)
def test_cells_of_other_settings_are_not_compared(
    home: Home, report: str, slice_: str, change: dict[str, Any]
) -> None:
    values = home.settings().model_dump(mode="json")
    write_settings(home.folder, {**values, slice_: {**values[slice_], **change}})
    defs = definitions.make_definitions(home)
    try:
        make_pool_and_ranking(defs, home)
        with pytest.raises(PipelineFailedError, match="cell of every seed, got none"):
            run_job(defs, home, "study_results")
    finally:
        write_settings(home.folder, values)
        make_pool_and_ranking(defs, home)


def test_cells_of_other_code_are_not_compared(
    home: Home, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(study._CODE_VERSIONS, "subset", "of another day")
    with pytest.raises(PipelineFailedError, match="cell of every seed, got none"):
        run_job(definitions.make_definitions(home), home, "study_results")


def test_repeats_of_a_problem_count_as_a_share_of_right_answers(tmp_path: Path) -> None:
    rows = [("a", 0, True), ("a", 1, False), ("a", 2, True), ("b", 0, False), ("b", 1, False)]
    rows.append(("b", 2, False))
    table = [{"task": "t", "doc_id": d, "repeat": r, "correct": c} for d, r, c in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "outcomes.parquet")
    assert study._share_correct(tmp_path / "outcomes.parquet") == {
        ("t", "a"): pytest.approx(2 / 3),
        ("t", "b"): 0,
    }


def test_overlap_is_the_mean_of_the_seeds_jaccard_overlaps() -> None:
    one = [frozenset("abcd"), frozenset("ab")]
    other = [frozenset("cdef"), frozenset("ab")]
    assert study._overlaps({"one": one, "other": other}) == {
        ("one", "other"): pytest.approx((2 / 6 + 1) / 2)
    }


def test_a_scorer_that_leaves_samples_out_draws_as_many_as_random(tmp_path: Path) -> None:
    """Two thirds of the pool are too long to be scored; of the rest a share would be too few."""
    values = small_settings()
    values["training"] = {**values["training"], "max_steps": 1}
    values["scoring"] = {"max_tokens": 130}
    values["study"] = {"methods": ["circuitseer", "random"], "num_seeds": 2}
    write_settings(tmp_path, values)
    home = Home.prepared(tmp_path)
    run_study(definitions.make_definitions(home), home)
    drawn = {
        (cell.settings["method"], cell.settings["seed"]): load_cell(
            home.artifacts.folder("study_cell", cell.artifact_id)
        )
        for cell in cells_of(home)
    }
    assert drawn["circuitseer", 0]["num_pool"] < drawn["random", 0]["num_pool"]
    assert len({cell["num_samples"] for cell in drawn.values()}) == 1


def test_a_scorer_that_leaves_too_few_is_left_out_and_the_study_goes_on(tmp_path: Path) -> None:
    values = small_settings()
    values["training"] = {**values["training"], "max_steps": 1}
    values["scoring"] = {"max_tokens": 130}
    values["selection"] = {**values["selection"], "budget": {"fraction": 0.9}}
    values["study"] = {"methods": ["circuitseer", "random", "length"], "num_seeds": 2}
    write_settings(tmp_path, values)
    home = Home.prepared(tmp_path)
    report = report_of(run_study(definitions.make_definitions(home), home))
    assert "not applicable: selection.budget.samples must be between 1 and" in report
    assert {cell.settings["method"] for cell in cells_of(home)} == {"random", "length"}
