"""What the warehouse's tables hold, without a warehouse: types from migrations, words from dbt."""

import functools
from dataclasses import dataclass

import duckdb
import yaml

from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.settings import PROJECT_ROOT
from resources.warehouse_schema import apply_migrations

_STAGING = PROJECT_ROOT / "dbt_meta" / "models" / "staging" / "staging.yml"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table of the warehouse."""

    name: str
    data_type: str
    is_nullable: bool
    description: str


def columns_of(table: str) -> tuple[Column, ...]:
    """Returns the columns of one of the warehouse's tables, in its order.

    Raises:
        WarehouseError: there is no such table, or a column is not described where dbt stages it.
    """
    types, descriptions = _types().get(table), _descriptions().get(f"stg_{table}", {})
    if types is None:
        raise WarehouseError(
            f"the table must be one that a migration makes, got {table!r}; take one of "
            f"{', '.join(sorted(_types()))}"
        )
    for name in types:
        if not descriptions.get(name):
            raise WarehouseError(
                f"{table}.{name} must be described, and is not; describe it under stg_{table} in "
                f"{_STAGING.relative_to(PROJECT_ROOT)}"
            )
    return tuple(
        Column(name, data_type, is_nullable, descriptions[name])
        for name, (data_type, is_nullable) in types.items()
    )


@functools.cache
def _types() -> dict[str, dict[str, tuple[str, bool]]]:
    """Returns by table and column the type, and whether it may be null."""
    with duckdb.connect(":memory:") as connection:
        apply_migrations(connection)
        rows = connection.execute(
            "select table_name, column_name, data_type, is_nullable from duckdb_columns() "
            "where not internal order by table_name, column_index"
        ).fetchall()
    tables: dict[str, dict[str, tuple[str, bool]]] = {}
    for table, column, data_type, is_nullable in rows:
        tables.setdefault(table, {})[column] = (data_type, is_nullable)
    return tables


@functools.cache
def _descriptions() -> dict[str, dict[str, str]]:
    """Returns by model and column what dbt's documentation says of it."""
    models = yaml.safe_load(_STAGING.read_text(encoding="utf-8"))["models"]
    return {
        model["name"]: {
            column["name"]: column.get("description", "").strip() for column in model["columns"]
        }
        for model in models
    }
