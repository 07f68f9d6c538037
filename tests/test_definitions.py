"""What Dagster is told: the assets, their dependencies, the jobs and the blocking checks."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from circuitseer_assets.assets.labels import (
    CELLS,
    MODEL_TAG,
    NO_STAGES,
    PART_TAG,
    STAGE_TAG,
    find_stage,
    labelled,
)
from circuitseer_assets.assets.tables import TABLES
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.records import STAGES
from circuitseer_assets.settings import SLICES, AutomationSettings

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


# every asset, whatever it is ----------------------------------------------------------------------


def specs_of(defs: Any) -> dict[str, Any]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_every_asset_has_an_owner_a_group_and_what_to_find_it_by(defs: Any) -> None:
    specs = specs_of(defs)
    for part in ("corpus", "settings/corpus", "sweep/subset", "study/study_results", "head_usage"):
        assert part in specs
    groups = {"settings", "sweep", "study", "dbt_models", *STAGES}
    for name, spec in specs.items():
        assert spec.description, name
        assert spec.group_name in groups, name
        assert list(spec.owners) == ["team:data-owners"], name
        assert spec.kinds, name
        assert spec.tags[STAGE_TAG], name
        assert spec.tags[PART_TAG] in {"graph", *NO_STAGES, *CELLS}, name
        assert spec.tags[MODEL_TAG] == ("yes" if "pytorch" in spec.kinds else "no"), name


def test_every_asset_that_is_a_table_describes_its_columns(defs: Any) -> None:
    for name, spec in specs_of(defs).items():
        if name.startswith("settings/"):  # a slice of a file
            continue
        columns = spec.metadata["dagster/column_schema"].columns
        assert columns, name
        assert all(column.description and column.type for column in columns), name
        assert spec.metadata["dagster/table_name"].startswith("warehouse.main."), name


def test_column_lineage_names_columns_that_are_there_of_assets_above(defs: Any) -> None:
    graph, specs = defs.resolve_asset_graph(), specs_of(defs)
    columns = {
        name: {column.name for column in spec.metadata["dagster/column_schema"].columns}
        for name, spec in specs.items()
        if "dagster/column_schema" in spec.metadata
    }
    for name, spec in specs.items():
        stage = find_stage(spec)
        if stage is None:
            continue
        group, table = spec.key.path[:-1], TABLES[stage]
        # What starts at a file has no columns above it, and everything else has.
        assert bool(table.columns_from) == (stage != "corpus"), name
        assert table.columns_from.keys() <= columns[name], name
        above = {key.to_user_string() for key in graph.get_ancestor_asset_keys(spec.key)}
        for source in {source for sources in table.columns_from.values() for source in sources}:
            asset, _, column = source.rpartition(".")
            own = "/".join([*group, asset])
            found = own if own in specs and own in above else asset
            assert found in above, (name, source)
            assert column in columns[found], (name, source)


def test_assets_belong_to_whom_the_settings_name() -> None:
    @dg.asset(group_name="corpus", tags={"mine": "yes"})
    def corpus() -> None: ...

    owners = AutomationSettings(owners=("team:reasoning", "ada@example.com")).owners
    [asset] = labelled([corpus], owners)
    [spec] = asset.specs
    assert list(spec.owners) == ["team:reasoning", "ada@example.com"]
    assert spec.tags["mine"] == "yes"


def test_a_stage_without_a_table_is_refused() -> None:
    @dg.asset(group_name="corpus")
    def new_stage() -> None: ...

    with pytest.raises(ArtifactError, match="every stage must have its table, and 'new_stage'"):
        labelled([new_stage], ["team:reasoning"])
