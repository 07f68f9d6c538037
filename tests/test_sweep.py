"""Base models and budgets side by side: what a sweep makes, shares and reuses."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from circuitseer_assets import definitions
from jobs.run import PipelineFailedError, run_job
from jobs.staleness import asset_graph_of, find_stale
from jobs.sweep import Cell, run_sweep, sweep_rows
from resources.home import Home
from tests.conftest import small_settings, write_settings

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, other_model: Path) -> Home:
    folder = tmp_path_factory.mktemp("swept")
    values = small_settings()
    values["evaluation"] = {**values["evaluation"], "max_problems": 12}
    values["sweep"] = {
        "base_models": {"other": {"source": "local", "path": str(other_model)}},
        "budget_fractions": [0.1, 0.14],
    }
    write_settings(folder, values)
    return Home.prepared(folder)


@pytest.fixture(scope="module")
def defs(home: Home) -> dg.Definitions:
    return definitions.make_definitions(home)


@pytest.fixture(scope="module")
def cells(defs: dg.Definitions, home: Home) -> dict[tuple[str, str], Cell]:
    with pytest.raises(PipelineFailedError, match="corpus must be fresh before a sweep"):
        run_sweep(defs, home)
    run_job(defs, home, "curate")
    return {(cell.base_model, cell.budget_fraction): cell for cell in run_sweep(defs, home)}


def test_every_model_meets_every_budget(cells: dict[tuple[str, str], Cell]) -> None:
    assert set(cells) == {(m, b) for m in ("in_use", "other") for b in ("0.1", "0.14")}
    assert cells["in_use", "0.1"].num_samples == cells["other", "0.1"].num_samples
    assert cells["in_use", "0.14"].num_samples > cells["in_use", "0.1"].num_samples
    assert all(0 <= cell.pass_at_1 <= 1 for cell in cells.values())


def test_a_cells_columns_come_from_the_cells_own_assets(
    cells: dict[tuple[str, str], Cell], home: Home
) -> None:
    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        sources = {
            name: lineage_of(instance, dg.AssetKey(["sweep", name]))
            for name in ("head_ranking", "sample_scores", "subset", "checkpoint", "evaluation")
        }
    assert sources["head_ranking"] == {"probe_set"}
    assert sources["sample_scores"] == {"pool", "corpus", "sweep/head_ranking"}
    assert sources["subset"] == {"sweep/sample_scores"}
    assert sources["checkpoint"] == {"sweep/subset"}
    assert sources["evaluation"] == {"sweep/checkpoint"}


def lineage_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    event = instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["dagster/column_schema"].value
    assert isinstance(metadata["dagster/row_count"].value, int)
    lineage: Any = metadata["dagster/column_lineage"].value
    return {s.asset_key.to_user_string() for of in lineage.deps_by_column.values() for s in of}


def test_what_the_graph_made_is_not_made_again(cells: dict[tuple[str, str], Cell]) -> None:
    # The graph had ranked, scored and drawn with the model in use, and trained nothing.
    assert cells["in_use", "0.1"].computed == ("checkpoint", "evaluation")
    assert set(cells["other", "0.1"].computed) >= {"head_ranking", "sample_scores", "subset"}


def test_a_second_sweep_computes_nothing_and_the_graph_takes_up_its_cell(
    cells: dict[tuple[str, str], Cell], defs: dg.Definitions, home: Home
) -> None:
    again = run_sweep(defs, home)
    assert [cell.computed for cell in again] == [()] * 4
    assert [row[-1] for row in sweep_rows(again)] == ["nothing"] * 4
    run = run_job(defs, home, assets=[dg.AssetKey("checkpoint"), dg.AssetKey("evaluation")])
    assert run.of("checkpoint", "reused")
    assert run.of("evaluation", "mean_pass_at_1") == cells["in_use", "0.1"].pass_at_1
    with dg.DagsterInstance.get() as instance:
        stale = find_stale(instance, asset_graph_of(defs), home)
    assert not any("sweep" in key.path for key in stale)
