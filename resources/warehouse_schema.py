"""The warehouse's schema: its migrations, and which column ties each table to what made its rows.

Migrations are numbered SQL files; each is applied once, in a transaction of its own.
"""

import re
from pathlib import Path

import duckdb

from circuitseer_assets.errors import WarehouseError

MIGRATIONS = Path(__file__).parent / "migrations"
_FILE_NAME = re.compile(r"(?P<version>\d{4})_[a-z0-9_]+\.sql")

# Tables whose rows belong to one artifact, with the column that holds its id.
OWNED_TABLES = {
    "artifact_costs": "artifact_id",
    "artifact_evidence": "artifact_id",
    "corpus_members": "corpus_id",
    "quarantined_samples": "corpus_id",
    "probe_members": "probe_set_id",
    "pool_members": "pool_id",
    "head_rankings": "head_ranking_id",
    "head_importance": "head_ranking_id",
    "subset_members": "subset_id",
    "checkpoints": "checkpoint_id",
    "evaluation_outcomes": "evaluation_id",
    "study_cells": "study_cell_id",
    "study_comparisons": "study_id",
}

# Those of them with a row a sample: they have no key, and adding to them sees to it.
LARGE_OWNED_TABLES = ("corpus_members", "pool_members", "subset_members")

# Tables whose rows outlive every artifact, with their key and the columns that may never change.
SHARED_TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "base_models": (("model_digest",), ()),
    "samples": (("sample_id",), ("prompt_id",)),
    "sample_lengths": (
        ("tokenizer_id", "sample_id"),
        ("num_prompt_tokens", "num_response_tokens"),
    ),
    "sample_scores": (("scorer_id", "sample_id"), ("score", "num_tokens")),
    "unscored_samples": (("scorer_id", "sample_id"), ("reason",)),
}


def list_migrations(folder: Path = MIGRATIONS) -> dict[int, Path]:
    """Returns the migration files by their version, in order.

    Raises:
        WarehouseError: a name is not `NNNN_what_it_does.sql`, or the numbers are not 1, 2, 3 ...
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise WarehouseError(f"a migration must be named NNNN_words.sql, got {path.name}")
        files[int(match["version"])] = path
    if list(files) != list(range(1, len(files) + 1)):
        raise WarehouseError(f"migrations must be numbered 1, 2, 3 ..., got {list(files)}")
    return files


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """Returns the version of the last migration applied; 0 for an empty file."""
    try:
        rows = connection.execute("select max(version) from schema_migrations").fetchall()
    except duckdb.CatalogException:
        return 0
    return int(rows[0][0] or 0)


def apply_migrations(
    connection: duckdb.DuckDBPyConnection, folder: Path = MIGRATIONS
) -> tuple[int, ...]:
    """Returns the versions applied to bring the warehouse to the code's version.

    Raises:
        WarehouseError: the warehouse is newer than the code.
    """
    files = list_migrations(folder)
    current = schema_version(connection)
    refuse_newer(current, len(files))
    pending = tuple(version for version in files if version > current)
    for version in pending:
        _apply(connection, version, files[version].read_text(encoding="utf-8"))
    return pending


def refuse_newer(warehouse_version: int, code_version: int) -> None:
    """Returns when the code knows the warehouse's version.

    Raises:
        WarehouseError: the warehouse is newer than the code.
    """
    if warehouse_version > code_version:
        raise WarehouseError(
            f"the warehouse's schema version must be at most {code_version} (this code's), "
            f"got {warehouse_version}; use the newer CircuitSeer that wrote it, "
            f"or another CIRCUITSEER_HOME"
        )


def _apply(connection: duckdb.DuckDBPyConnection, version: int, sql: str) -> None:
    connection.execute("begin transaction")
    try:
        connection.execute(
            "create table if not exists schema_migrations "
            "(version integer primary key, applied_at timestamp not null)"
        )
        connection.execute(sql)
        connection.execute(
            "insert into schema_migrations values (?, now() at time zone 'utc')", [version]
        )
        connection.execute("commit")
    except BaseException:
        connection.execute("rollback")
        raise
