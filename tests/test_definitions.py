"""What Dagster is told: the assets, their dependencies, the jobs and the blocking checks."""

from pathlib import Path
from typing import Any

import pytest

from circuitseer_assets.records import STAGES
from circuitseer_assets.settings import SLICES

STAGE_DEPENDENCIES = {
    "corpus": {"settings/corpus"},
    "probe_set": {"corpus", "settings/probe_set", "settings/decontamination"},
    "pool": {"corpus", "probe_set", "settings/probe_set", "settings/decontamination"},
    "head_ranking": {"probe_set", "settings/base_model", "settings/head_ranking"},
    "sample_scores": {"pool", "head_ranking", "settings/base_model", "settings/scoring"},
    "subset": {"sample_scores", "settings/selection"},
    "checkpoint": {"subset", "settings/base_model", "settings/training"},
    "evaluation": {
        "checkpoint",
        "settings/base_model",
        "settings/decontamination",
        "settings/evaluation",
    },
    "audit": {"evaluation", "settings/base_model"},
}
BLOCKING = {
    "scores_are_finite_and_differ",
    "one_score_a_sample",
    "subset_is_the_budget",
    "no_benchmark_problem_in_pool_or_probes",
    "checkpoint_loads_and_its_loss_fell",
}


@pytest.fixture(scope="module")
def defs(home_folder: Path) -> Any:
    from circuitseer_assets.definitions import make_definitions
    from resources.home import Home

    return make_definitions(Home.prepared(home_folder))


def test_every_stage_is_an_asset_with_exactly_its_dependencies(defs: Any) -> None:
    graph = defs.resolve_asset_graph()
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
        if key.to_user_string() in STAGE_DEPENDENCIES
    }
    assert found == STAGE_DEPENDENCIES
    assert set(STAGES) == set(STAGE_DEPENDENCIES) - {"pool"}


def test_every_settings_slice_is_an_observable_source(defs: Any) -> None:
    graph = defs.resolve_asset_graph()
    observable = {key.to_user_string() for key in graph.observable_asset_keys}
    assert observable == {f"settings/{name}" for name in SLICES}


def test_every_asset_says_what_it_is(defs: Any) -> None:
    graph = defs.resolve_asset_graph()
    for name in STAGE_DEPENDENCIES:
        node = graph.get(next(k for k in graph.get_all_asset_keys() if k.to_user_string() == name))
        assert node.description
        assert node.code_version
        assert node.kinds


@pytest.mark.parametrize(
    ("job", "first", "last", "without"),
    [
        ("curate", "corpus", "subset", "checkpoint"),
        ("train_and_evaluate", "checkpoint", "audit", "subset"),
        ("full_pipeline", "corpus", "audit", None),
    ],
)
def test_the_jobs_run_what_they_say(
    defs: Any, job: str, first: str, last: str, without: str | None
) -> None:
    layer = defs.resolve_job_def(job).asset_layer
    names = {key.to_user_string() for key in layer.selected_asset_keys}
    assert {first, last} <= names
    assert without not in names


def test_the_blocking_checks_are_these(defs: Any) -> None:
    blocking = {
        spec.name for checks in defs.asset_checks for spec in checks.check_specs if spec.blocking
    }
    assert blocking == BLOCKING


def test_the_only_sensor_that_is_on_observes_the_settings(defs: Any) -> None:
    on = [s.name for s in defs.sensors if s.default_status.value == "RUNNING"]
    assert on == ["observe_settings"]
