"""Adding rows to the warehouse: what belongs to one artifact, and what all of them share."""

import duckdb
import pyarrow as pa

from circuitseer_assets.errors import WarehouseError
from resources.warehouse_schema import OWNED_TABLES, SHARED_TABLES

# The same prompt in another batch is rounded otherwise; a stale score differs by far more.
_SCORE_TOLERANCE = 1e-3


def append_rows(
    connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table, owner: str | None = None
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
    _check_columns(connection, table, rows)
    connection.register("incoming", rows)
    is_shared = table in SHARED_TABLES
    if not is_shared:
        _refuse_foreign(connection, table, owner)
    inserted = connection.execute(
        f"insert into {table} by name select * from incoming "
        f"{'on conflict do nothing' if is_shared else ''}"
    ).fetchall()
    num_new = int(inserted[0][0])
    if num_new < rows.num_rows:  # only then is there anything to compare in a large table
        _refuse_changed(connection, table)
    connection.unregister("incoming")
    return num_new


def _check_columns(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    known_tables = sorted([*OWNED_TABLES, *SHARED_TABLES])
    if table not in known_tables:
        raise WarehouseError(
            f"rows must be for one of the tables {', '.join(known_tables)}, got {table!r}; "
            f"add a migration and the table's key for a new one"
        )
    columns = [row[0] for row in connection.execute(f"describe {table}").fetchall()]
    unknown = sorted(set(rows.column_names) - set(columns))
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
