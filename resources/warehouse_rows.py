"""Adding rows to the warehouse: what belongs to one artifact, and what all of them share.

The large tables have no index: that a row is there once is seen to here, by a join.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from circuitseer_assets.errors import WarehouseError
from resources.warehouse_schema import LARGE_OWNED_TABLES, OWNED_TABLES, SHARED_TABLES

# The same prompt in another batch is rounded otherwise; a stale score differs by far more.
_SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FileRows:
    """Rows that lie in Parquet files, from where the warehouse takes them without a detour.

    Attributes:
        pattern: a glob of the files, inside `folder`.
        columns: those of the files that are taken.
        constants: further columns, each of one value.
        folder: where the files are; an artifact's own, once they are in place.
    """

    pattern: str
    columns: Sequence[str]
    constants: Mapping[str, str]
    folder: Path = Path()

    def inside(self, folder: Path) -> "FileRows":
        """Returns the rows of the same files in another folder."""
        return replace(self, folder=folder)

    def of(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """Returns the rows as a relation, of which nothing is read yet."""
        files = [str(path) for path in sorted(self.folder.glob(self.pattern))]
        return connection.read_parquet(files).select(
            *(duckdb.ColumnExpression(name) for name in self.columns),
            *(
                duckdb.ConstantExpression(value).alias(name)
                for name, value in self.constants.items()
            ),
        )


def append_rows(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    rows: pa.Table | FileRows,
    owner: str | None = None,
) -> int:
    """Returns how many rows were new, after adding them within the open transaction.

    Rows of a shared table that are there already are left alone.

    Args:
        connection: with an open transaction.
        table: one of `OWNED_TABLES` or `SHARED_TABLES`.
        rows: columns by name; those left out are null.
        owner: the id of the artifact the rows belong to, for an owned table.

    Raises:
        WarehouseError: the table or a column is unknown, a row belongs to another artifact, or
            would change a row that may not change.
    """
    if isinstance(rows, FileRows):
        rows.of(connection).create_view("incoming")
    else:
        connection.register("incoming", rows)
    _check_columns(connection, table)
    if table in SHARED_TABLES:
        num_new = _append_shared(connection, table)
    else:
        num_new = _append_owned(connection, table, owner)
    connection.execute("drop view incoming")
    return num_new


def _append_owned(connection: duckdb.DuckDBPyConnection, table: str, owner: str | None) -> int:
    _refuse_foreign(connection, table, owner)
    if table in LARGE_OWNED_TABLES:
        _refuse_repeated(connection, table, (OWNED_TABLES[table], "sample_id"))
    inserted = connection.execute(f"insert into {table} by name from incoming").fetchall()
    return int(inserted[0][0])


def _append_shared(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    key = ", ".join(SHARED_TABLES[table][0])
    num_rows, num_keys = _count_keys(connection, SHARED_TABLES[table][0])
    first = f"distinct on ({key}) *" if num_keys < num_rows else "*"
    inserted = connection.execute(
        f"insert into {table} by name select {first} from incoming anti join {table} using ({key})"
    ).fetchall()
    num_new = int(inserted[0][0])
    if num_new < num_rows:  # only then is there anything to compare in a large table
        _refuse_changed(connection, table)
    return num_new


def _count_keys(connection: duckdb.DuckDBPyConnection, key: Sequence[str]) -> tuple[int, int]:
    """Returns how many rows come in, and how many different keys they have."""
    [(num_rows, num_keys)] = connection.execute(
        f"select (select count(*) from incoming), "
        f"(select count(*) from (select distinct {', '.join(key)} from incoming))"
    ).fetchall()
    return int(num_rows), int(num_keys)


def _refuse_repeated(
    connection: duckdb.DuckDBPyConnection, table: str, key: tuple[str, str]
) -> None:
    num_rows, num_keys = _count_keys(connection, key)
    if num_keys < num_rows:
        raise WarehouseError(
            f"each {key[1]} must be in {table} once for one {key[0]}, got {num_rows} rows of "
            f"{num_keys} samples; give every row once"
        )


def _check_columns(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    known_tables = sorted([*OWNED_TABLES, *SHARED_TABLES])
    if table not in known_tables:
        raise WarehouseError(
            f"rows must be for one of the tables {', '.join(known_tables)}, got {table!r}; "
            f"add a migration and the table's key for a new one"
        )
    columns, given = (
        [row[0] for row in connection.execute(f"describe {name}").fetchall()]
        for name in (table, "incoming")
    )
    unknown = sorted(set(given) - set(columns))
    if unknown:
        raise WarehouseError(
            f"the columns of {table} must be among {', '.join(columns)}, got {unknown[0]!r}; "
            f"rename it, or add a migration"
        )


def _refuse_foreign(connection: duckdb.DuckDBPyConnection, table: str, owner: str | None) -> None:
    column = OWNED_TABLES[table]
    foreign = connection.execute(
        f"select {column} from incoming where {column} is distinct from ? limit 1", [owner]
    ).fetchall()
    if foreign:
        raise WarehouseError(
            f"{table}.{column} must be the recorded artifact's id {owner!r}, got {foreign[0][0]!r};"
            f" record the rows with the artifact they belong to"
        )


def _refuse_changed(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    key, fixed = SHARED_TABLES[table]
    for column in fixed:
        differs = f"stored.{column} is distinct from incoming.{column}"
        if column == "score":
            largest = f"greatest(abs(stored.{column}), abs(incoming.{column}))"
            differs = f"abs(stored.{column} - incoming.{column}) > {_SCORE_TOLERANCE} * {largest}"
        changed = connection.execute(
            f"""
            select {", ".join(f"stored.{name}" for name in key)}, stored.{column}, incoming.{column}
            from incoming inner join {table} as stored using ({", ".join(key)})
            where {differs} limit 1
            """
        ).fetchall()
        if changed:
            *ids, old, new = changed[0]
            where = ", ".join(f"{name} {value}" for name, value in zip(key, ids, strict=True))
            raise WarehouseError(
                f"{table}.{column} must stay {old!r} for {where}, got {new!r}; "
                f"give what changed another {key[0]}"
            )
