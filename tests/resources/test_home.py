"""Which dagster.yaml a home works with: the project's, an edited copy, or the one that is named."""

from pathlib import Path

import dagster as dg
import pytest

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import PROJECT_ROOT
from resources.home import DAGSTER_VARIABLE, Home


def dagster_yaml(home: Path) -> Path:
    return home / "dagster" / "dagster.yaml"


def test_a_new_home_gets_the_projects_and_keeps_what_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DAGSTER_VARIABLE, raising=False)
    Home.prepared(tmp_path)
    assert dagster_yaml(tmp_path).read_bytes() == (PROJECT_ROOT / "dagster.yaml").read_bytes()
    dagster_yaml(tmp_path).write_text("telemetry: {enabled: false}\n")
    Home.prepared(tmp_path)
    assert dagster_yaml(tmp_path).read_text() == "telemetry: {enabled: false}\n"


def test_the_named_file_is_the_homes_for_as_long_as_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, named = tmp_path / "home", tmp_path / "ours.yaml"
    Home.prepared(home)
    named.write_text("concurrency: {runs: {max_concurrent_runs: 3}}\n")
    monkeypatch.setenv(DAGSTER_VARIABLE, str(named))
    Home.prepared(home)
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        limits = instance.get_concurrency_config().run_queue_config
    assert limits is not None
    assert limits.max_concurrent_runs == 3
    named.write_text("concurrency: {runs: {max_concurrent_runs: 4}}\n")
    Home.prepared(home)
    assert dagster_yaml(home).read_text() == named.read_text()
    # Somebody at a terminal, without the variable, works with the same storage.
    monkeypatch.delenv(DAGSTER_VARIABLE)
    Home.prepared(home)
    assert dagster_yaml(home).read_text() == named.read_text()
    assert [path.name for path in dagster_yaml(home).parent.glob("dagster.yaml*")] == [
        "dagster.yaml"
    ]


def test_a_name_that_leads_to_no_file_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Home.prepared(tmp_path)
    before = dagster_yaml(tmp_path).read_bytes()
    monkeypatch.setenv(DAGSTER_VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(
        SettingsError, match=r"CIRCUITSEER_DAGSTER_YAML must name a file, got .*gone"
    ):
        Home.prepared(tmp_path)
    assert dagster_yaml(tmp_path).read_bytes() == before
