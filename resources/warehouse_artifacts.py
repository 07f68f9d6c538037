"""The table `artifacts`: reading its rows, writing them, and walking from one to its relatives."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb

from circuitseer_assets.records import Artifact
from resources.warehouse_schema import OWNED_TABLES

_COLUMNS = (
    "artifact_id, stage, data_version, parents, settings, code_version, "
    "dagster_run_id, mlflow_run_id, created_at"
)

UPSTREAM = f"""
with recursive upstream(artifact_id, depth) as (
    select $artifact_id::varchar, 0
    union
    select unnest(a.parents), u.depth + 1
    from upstream as u inner join artifacts as a using (artifact_id)
),
depths as (select artifact_id, max(depth) as depth from upstream group by artifact_id)
select {_COLUMNS} from artifacts inner join depths using (artifact_id)
order by depth, created_at desc, artifact_id
"""

DOWNSTREAM = f"""
with recursive downstream(artifact_id, depth) as (
    select $artifact_id::varchar, 0
    union
    select a.artifact_id, d.depth + 1
    from downstream as d inner join artifacts as a on list_contains(a.parents, d.artifact_id)
),
depths as (select artifact_id, max(depth) as depth from downstream group by artifact_id)
select {_COLUMNS} from artifacts inner join depths using (artifact_id)
where artifact_id <> $artifact_id
order by depth, created_at, artifact_id
"""


def settings_text(settings: Mapping[str, Any]) -> str:
    """Returns the settings as the one text they are stored and compared as."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def find_artifacts(
    connection: duckdb.DuckDBPyConnection, clause: str, params: Mapping[str, Any]
) -> list[Artifact]:
    """Returns the artifacts that a `where ... order by ...` clause leaves."""
    return fetch_artifacts(connection, f"select {_COLUMNS} from artifacts {clause}", params)


def fetch_artifacts(
    connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, Any]
) -> list[Artifact]:
    """Returns the rows of a statement that selects the columns of `artifacts`."""
    return [_artifact(row) for row in connection.execute(sql, dict(params)).fetchall()]


def _artifact(row: tuple[Any, ...]) -> Artifact:
    artifact_id, stage, data_version, parents, settings, code, dagster_run, mlflow_run, made = row
    return Artifact(
        artifact_id=artifact_id,
        stage=stage,
        data_version=data_version,
        parents=tuple(parents),
        settings=json.loads(settings),
        code_version=code,
        dagster_run_id=dagster_run,
        mlflow_run_id=mlflow_run,
        created_at=made.replace(tzinfo=UTC),
    )


def insert_artifact(
    connection: duckdb.DuckDBPyConnection, artifact: Artifact, mlflow_run_id: str | None
) -> None:
    """Returns after writing the artifact's row; without a time of its own it was made now."""
    created_at = artifact.created_at or datetime.now(UTC)
    connection.execute(
        f"insert into artifacts ({_COLUMNS}) values (?, ?, ?, ?::varchar[], ?, ?, ?, ?, ?)",
        [
            artifact.artifact_id,
            artifact.stage,
            artifact.data_version,
            list(artifact.parents),
            settings_text(artifact.settings),
            artifact.code_version,
            artifact.dagster_run_id,
            mlflow_run_id or artifact.mlflow_run_id,
            created_at.astimezone(UTC).replace(tzinfo=None),
        ],
    )


def supersede(connection: duckdb.DuckDBPyConnection, artifact_id: str) -> None:
    """Returns after moving the artifact and all made from it out of the way, with their rows."""
    made_from_it = fetch_artifacts(connection, DOWNSTREAM, {"artifact_id": artifact_id})
    ids = [artifact_id, *(artifact.artifact_id for artifact in made_from_it)]
    connection.execute(
        f"""
        insert into superseded_artifacts ({_COLUMNS}, superseded_at)
        select {_COLUMNS}, now() at time zone 'utc' from artifacts
        where list_contains($ids::varchar[], artifact_id)
        """,
        {"ids": ids},
    )
    for table, column in {"artifacts": "artifact_id", **OWNED_TABLES}.items():
        connection.execute(
            f"delete from {table} where list_contains($ids::varchar[], {column})", {"ids": ids}
        )
