"""Dagster on PostgreSQL as deploy/dagster.yaml says: runs and events lie there, two at a time."""

import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from circuitseer_assets.errors import TrackingError
from circuitseer_assets.method.audit import format_lineage, summarise_lineage
from circuitseer_assets.settings import PROJECT_ROOT
from resources.database_faults import database_reason
from resources.home import Home
from resources.model_registry import register_model
from resources.tracking import Tracking
from tests.chains import paper_lineage
from tests.conftest import small_settings, write_settings
from tests.deploy.services import PASSWORDS, Postgres, postgres_server

pytestmark = pytest.mark.long

RUN_CORPUS = """
import json, sys
from pathlib import Path
import dagster as dg
from circuitseer_assets.definitions import defs
from jobs.run import observe_now, run_job
from resources.home import Home
home = Home.prepared()
observe_now(home)
stages = {dg.AssetKey(name) for name in ("corpus", "probe_set", "pool")}
run = run_job(defs, home, assets=stages)
with dg.DagsterInstance.get() as instance:
    coordinator = type(instance.run_coordinator).__name__
print(json.dumps([run.run_id, run.of("corpus", "artifact_id"), coordinator]))
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_settings(folder, small_settings())
    return folder


def start(home: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT_ROOT,
        env={**os.environ, "CIRCUITSEER_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_start_together_on_an_empty_database_lose_nothing(
    postgres: Postgres, home: Path
) -> None:
    started = [start(home, "-c", RUN_CORPUS, **postgres.environment) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    runs = [json.loads(out.splitlines()[-1]) for out, _ in said]
    ids = sorted(run_id for run_id, _, _ in runs)
    assert ids[0] != ids[1]
    # Asked of the server itself, not of Dagster.
    rows = postgres.query("select run_id, status from runs order by run_id")
    assert rows == [(run_id, "SUCCESS") for run_id in ids]
    made = """
        select run_id, count(*) from event_logs
        where dagster_event_type = 'ASSET_MATERIALIZATION' group by run_id order by run_id
    """
    assert postgres.query(made) == [(run_id, 3) for run_id in ids]
    assert {artifact for _, artifact, _ in runs} == {
        row["artifact_id"]
        for row in Home.prepared(home)
        .warehouse.query("select artifact_id from artifacts where stage = 'corpus'")
        .to_pylist()
    }
    # Nothing of Dagster's history is left in the home: no SQLite beside the server.
    assert not [*(home / "dagster").rglob("*.db")]
    assert {coordinator for _, _, coordinator in runs} == {"QueuedRunCoordinator"}


def test_a_release_of_the_papers_preset_fits_into_mlflows_tables(
    postgres: Postgres, tmp_path: Path
) -> None:
    """PostgreSQL holds a description to its column's 5,000 characters; SQLite does not."""
    password = urllib.parse.quote(PASSWORDS["MLFLOW_POSTGRES_PASSWORD"], safe="")
    tracking = Tracking(f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{postgres.port}/mlflow")
    client = tracking.client()
    experiment = client.create_experiment("here", artifact_location=tmp_path.as_uri())
    model = client.create_logged_model(experiment, name="checkpoint")
    uri, lineage = f"models:/{model.model_id}", paper_lineage()

    def release(description: str) -> str:
        return register_model(tracking, uri, "solver", description=description, tags={"a": "b"})

    with pytest.raises(TrackingError, match="value too long"):
        release(format_lineage(lineage))
    assert not client.search_registered_models()
    summary = summarise_lineage(lineage, command=f"circuitseer lineage {uri}")
    assert release(summary) == "models:/solver/1"
    assert client.get_model_version("solver", "1").description == summary


def test_neither_role_reads_the_others_database(postgres: Postgres) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    for role, database in (("dagster", "mlflow"), ("mlflow", "dagster")):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            postgres.query("select 1", role, database)


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        ("1", "Connection refused"),
        (None, "dagster.yaml takes it from DAGSTER_POSTGRES_PORT: not set"),
    ],
    ids=["no-server", "no-variable"],
)
def test_why_a_storage_cannot_be_used_is_one_line_without_its_password(
    postgres: Postgres, home: Path, monkeypatch: pytest.MonkeyPatch, port: str | None, reason: str
) -> None:
    for name, value in (postgres.environment | {"DAGSTER_POSTGRES_PORT": port}).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    Home.prepared(home)
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with pytest.raises(Exception, match=r".") as refused:
        dg.DagsterInstance.get()
    said = database_reason(refused.value)
    assert said is not None
    assert reason in said
    assert "\n" not in said
    assert postgres.environment["DAGSTER_POSTGRES_PASSWORD"] not in said
