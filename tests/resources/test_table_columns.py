"""What is said of the warehouse's tables is what a warehouse has."""

from pathlib import Path

import pytest

from circuitseer_assets.assets.tables import TABLES
from circuitseer_assets.errors import WarehouseError
from resources.table_columns import columns_of
from resources.warehouse import Warehouse


@pytest.mark.parametrize("table", sorted({table.name for table in TABLES.values()}))
def test_columns_are_those_of_a_warehouse(table: str, tmp_path: Path) -> None:
    described = Warehouse(tmp_path / "warehouse.duckdb").query(f"describe {table}").to_pylist()
    found = [(c.name, c.data_type, "YES" if c.is_nullable else "NO") for c in columns_of(table)]
    assert found == [(row["column_name"], row["column_type"], row["null"]) for row in described]
    assert all(column.description for column in columns_of(table))


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(WarehouseError, match=r"got 'cats'; take one of .*subset_members"):
        columns_of("cats")


def test_a_table_that_dbt_does_not_stage_is_refused() -> None:
    with pytest.raises(
        WarehouseError, match=r"superseded_artifacts\.artifact_id must be described"
    ):
        columns_of("superseded_artifacts")
