"""The warehouse: one DuckDB file with what people query, opened for short transactions only.

DuckDB lets one process write, or several read, so every method opens, does its work and closes.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.records import Artifact
from resources.warehouse_artifacts import (
    DOWNSTREAM,
    UPSTREAM,
    fetch_artifacts,
    find_artifacts,
    insert_artifact,
    settings_text,
    supersede,
)
from resources.warehouse_lock import open_waiting
from resources.warehouse_removal import refuse_gaps, remove_artifacts
from resources.warehouse_rows import FileRows, append_rows
from resources.warehouse_schema import (
    MIGRATIONS,
    apply_migrations,
    list_migrations,
    refuse_newer,
    schema_version,
)


class Warehouse:
    """The tables in `migrations/`, in the DuckDB file at `path`; made at first use.

    Args:
        path: the file, on a local disk.
        wait_s: how long to wait for another process to let go of the file.
        migrations: where the numbered SQL files are.
    """

    def __init__(self, path: Path, *, wait_s: float = 60.0, migrations: Path = MIGRATIONS) -> None:
        self.path = path
        self.wait_s = wait_s
        self.migrations = migrations

    @contextlib.contextmanager
    def connect(self, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yields a connection that is closed, and rolled back, however the block ends.

        Raises:
            WarehouseError: another process kept the file locked, the file is not a warehouse of
                this code's version or older, or DuckDB refused a statement.
        """
        if read_only and not self.path.exists():
            self.migrate()
        connection = self._open(read_only)
        try:
            if read_only and self._is_behind(connection):
                connection.close()
                self.migrate()
                connection = self._open(read_only)
            if not read_only:
                apply_migrations(connection, self.migrations)
            yield connection
        except duckdb.Error as error:
            reason = " ".join(str(error).split())
            raise WarehouseError(f"the warehouse {self.path} refused a statement: {reason}") from (
                error
            )
        finally:
            connection.close()

    def migrate(self) -> None:
        """Returns when the file exists and has this code's schema.

        Raises:
            WarehouseError: as `connect`.
        """
        with self.connect():
            pass

    def query(self, sql: str, params: Mapping[str, Any] | None = None) -> pa.Table:
        """Returns the result of one read-only statement; `params` fill its `$names`.

        Raises:
            WarehouseError: as `connect`.
        """
        with self.connect(read_only=True) as connection:
            relation = connection.sql(sql, params=dict(params or {}))
            return relation.to_arrow_table()

    def record(
        self,
        artifact: Artifact,
        rows: Mapping[str, pa.Table | FileRows] | None = None,
        *,
        mlflow_run_id: str | None = None,
    ) -> Artifact:
        """Returns the artifact as it now stands, after writing it and all its rows in one go.

        Recording the same content again changes nothing and returns what was stored first. With
        another `data_version` (a checkpoint trained anew after its files were lost) the old row
        and everything made from it move to `superseded_artifacts`, their own rows are removed.

        Raises:
            WarehouseError: a table or column is unknown, a row breaks a rule of its table, or
                belongs to another artifact; nothing is written then.
        """
        with self._transaction() as connection:
            stored = find_artifacts(
                connection, "where artifact_id = $id", {"id": artifact.artifact_id}
            )
            if stored and stored[0].data_version == artifact.data_version:
                return stored[0]
            if stored:
                supersede(connection, artifact.artifact_id)
            for table, content in (rows or {}).items():
                append_rows(connection, table, content, owner=artifact.artifact_id)
            insert_artifact(connection, artifact, mlflow_run_id)
            return find_artifacts(
                connection, "where artifact_id = $id", {"id": artifact.artifact_id}
            )[0]

    def remove(self, artifact_ids: Sequence[str], *, dry_run: bool = False) -> dict[str, int]:
        """Returns how many rows of each table went with the artifacts, deleted in one go.

        Of shared rows only those go that nothing needs any more. With `dry_run` all stay.

        Raises:
            WarehouseError: something that stays was made from one of them; nothing is deleted then.
        """
        with self.connect() as connection:
            connection.execute("begin transaction")
            removed = remove_artifacts(connection, artifact_ids)
            refuse_gaps(connection, artifact_ids)
            connection.execute("rollback" if dry_run else "commit")
            return removed

    def append_scores(
        self, scorer_id: str, scores: pa.Table, unscored: pa.Table | None = None
    ) -> int:
        """Returns how many scores were new, after committing them: one call is one shard.

        Args:
            scorer_id: the identity of model, heads and formula.
            scores: columns `sample_id`, `score`, `num_tokens`; rows already there are left alone.
            unscored: columns `sample_id`, `reason`, `detail`, for prompts without a score.

        Raises:
            WarehouseError: a sample is there with another score; nothing is written then.
        """
        with self._transaction() as connection:
            num_new = append_rows(connection, "sample_scores", _with_scorer(scores, scorer_id))
            if unscored is not None:
                append_rows(connection, "unscored_samples", _with_scorer(unscored, scorer_id))
            return num_new

    def append_lengths(self, lengths: pa.Table) -> int:
        """Returns how many lengths were new, after committing them.

        Args:
            lengths: columns `tokenizer_id`, `sample_id`, `num_prompt_tokens`,
                `num_response_tokens`; rows already there are left alone.

        Raises:
            WarehouseError: a sample is there with another length; nothing is written then.
        """
        with self._transaction() as connection:
            return append_rows(connection, "sample_lengths", lengths)

    def scored_sample_ids(
        self, scorer_id: str, sample_ids: Sequence[str] | None = None
    ) -> frozenset[str]:
        """Returns the samples that have a score by this scorer, of those given or of all."""
        return self._sample_ids("sample_scores", scorer_id, sample_ids)

    def unscored_sample_ids(
        self, scorer_id: str, sample_ids: Sequence[str] | None = None
    ) -> frozenset[str]:
        """Returns the samples this scorer could not score, of those given or of all."""
        return self._sample_ids("unscored_samples", scorer_id, sample_ids)

    def find_artifact(self, artifact_id: str) -> Artifact | None:
        """Returns the artifact with this id, or None where there is none."""
        found = self._artifacts("where artifact_id = $id", {"id": artifact_id})
        return found[0] if found else None

    def copy_to(self, destination: Path) -> None:
        """Returns when `destination` is the warehouse as it is at one moment.

        Nobody writes meanwhile: a reader keeps every other process's writer waiting.

        Raises:
            WarehouseError: as `connect`.
        """
        with self.connect(read_only=True):
            # What a killed writer has committed lies in the log until the next writer opens it. The
            # file itself comes last: closing it here gives up this process's lock on it.
            for name in (f"{self.path.name}.wal", self.path.name):
                source = self.path.with_name(name)
                if source.exists():
                    target = destination.with_name(name.replace(self.path.name, destination.name))
                    shutil.copyfile(source, target)

    def artifacts(self) -> list[Artifact]:
        """Returns all artifacts, the oldest first."""
        return self._artifacts("order by created_at, rowid", {})

    def models_of_checkpoints(self) -> dict[str, str]:
        """Returns the id of every checkpoint's model in MLflow, by the checkpoint's."""
        rows = self.query("select checkpoint_id, mlflow_model_uri from checkpoints").to_pylist()
        return {
            row["checkpoint_id"]: row["mlflow_model_uri"].removeprefix("models:/") for row in rows
        }

    def mlflow_runs_of(self, artifact_ids: Sequence[str]) -> list[str]:
        """Returns the runs of MLflow that made these artifacts, or made what they superseded."""
        sql = """
            select distinct mlflow_run_id from (
                select artifact_id, mlflow_run_id from artifacts
                union all
                select artifact_id, mlflow_run_id from superseded_artifacts
            )
            where mlflow_run_id is not null and list_contains($ids::varchar[], artifact_id)
        """
        runs = self.query(sql, {"ids": list(artifact_ids)})["mlflow_run_id"].to_pylist()
        return [str(run_id) for run_id in runs]

    def latest_artifacts(self, stage: str, limit: int | None = None) -> list[Artifact]:
        """Returns the artifacts of one stage, the newest first."""
        clause = "where stage = $stage order by created_at desc, rowid desc limit $limit"
        return self._artifacts(clause, {"stage": stage, "limit": limit})

    def find_probe_sets(self, settings: Mapping[str, Any], code_version: str) -> list[Artifact]:
        """Returns the probe sets drawn with exactly these settings and code, the newest first."""
        clause = """
            where stage = 'probe_set' and settings::varchar = $settings and code_version = $code
            order by created_at desc, rowid desc
        """
        return self._artifacts(clause, {"settings": settings_text(settings), "code": code_version})

    def lineage(self, artifact_id: str) -> list[Artifact]:
        """Returns the artifact and everything it was made from, each before its parents."""
        with self.connect(read_only=True) as connection:
            return fetch_artifacts(connection, UPSTREAM, {"artifact_id": artifact_id})

    def descendants(self, artifact_id: str) -> list[Artifact]:
        """Returns everything made from the artifact, itself left out, parents first."""
        with self.connect(read_only=True) as connection:
            return fetch_artifacts(connection, DOWNSTREAM, {"artifact_id": artifact_id})

    def _artifacts(self, clause: str, params: Mapping[str, Any]) -> list[Artifact]:
        with self.connect(read_only=True) as connection:
            return find_artifacts(connection, clause, params)

    def _sample_ids(
        self, table: str, scorer_id: str, sample_ids: Sequence[str] | None
    ) -> frozenset[str]:
        sql = f"select sample_id from {table} where scorer_id = $scorer_id"
        params: dict[str, Any] = {"scorer_id": scorer_id}
        with self.connect(read_only=True) as connection:
            if sample_ids is not None:
                wanted = pa.table({"sample_id": pa.array(sample_ids, pa.string())})
                connection.register("wanted", wanted)
                sql += " and sample_id in (select sample_id from wanted)"
            return frozenset(row[0] for row in connection.execute(sql, params).fetchall())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self.connect() as connection:
            connection.execute("begin transaction")
            yield connection
            connection.execute("commit")

    def _is_behind(self, connection: duckdb.DuckDBPyConnection) -> bool:
        latest = len(list_migrations(self.migrations))
        version = schema_version(connection)
        refuse_newer(version, latest)
        return version < latest

    def _open(self, read_only: bool) -> duckdb.DuckDBPyConnection:
        if not read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        return open_waiting(self.path, read_only=read_only, limit_s=self.wait_s)


def _with_scorer(rows: pa.Table, scorer_id: str) -> pa.Table:
    names = pa.array([scorer_id] * rows.num_rows, pa.string())
    return rows.append_column("scorer_id", names)
