"""Base models and budgets side by side: what a sweep makes, shares and reuses."""

from pathlib import Path

import dagster as dg
import pytest

from circuitseer_assets import definitions
from jobs.run import PipelineFailedError, run_job
from jobs.staleness import asset_graph_of, find_stale
from jobs.sweep import Cell, format_sweep, run_sweep
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


def test_what_the_graph_made_is_not_made_again(cells: dict[tuple[str, str], Cell]) -> None:
    # The graph had ranked, scored and drawn with the model in use, and trained nothing.
    assert cells["in_use", "0.1"].computed == ("checkpoint", "evaluation")
    assert set(cells["other", "0.1"].computed) >= {"head_ranking", "sample_scores", "subset"}


def test_a_second_sweep_computes_nothing_and_the_graph_takes_up_its_cell(
    cells: dict[tuple[str, str], Cell], defs: dg.Definitions, home: Home
) -> None:
    again = run_sweep(defs, home)
    assert [cell.computed for cell in again] == [()] * 4
    assert format_sweep(again).count("nothing") == 4
    run = run_job(defs, home, assets=[dg.AssetKey("checkpoint"), dg.AssetKey("evaluation")])
    assert run.of("checkpoint", "reused")
    assert run.of("evaluation", "mean_pass_at_1") == cells["in_use", "0.1"].pass_at_1
    with dg.DagsterInstance.get() as instance:
        stale = find_stale(instance, asset_graph_of(defs), home)
    assert not any("sweep" in key.path for key in stale)
