"""Taking artifacts out of the warehouse: their own rows, and of shared rows those nobody needs.

A shared row goes only where it belongs to what is removed and to nothing that stays. What belongs
to neither, such as the scores a killed run has committed so far, stays.
"""

from collections.abc import Sequence

import duckdb

from circuitseer_assets.errors import WarehouseError
from resources.warehouse_schema import OWNED_TABLES

# Who is asked for a shared row, by the table: the key in the settings of what the rows are for.
_BY_SETTING = {
    "sample_scores": ("scorer_id", "scorer_id"),
    "unscored_samples": ("scorer_id", "scorer_id"),
    "sample_lengths": ("tokenizer_id", "tokenizer_id"),
}

# A corpus that goes takes along the samples that no corpus, probe set or subset that stays has.
_SAMPLES_LEFT_ALONE = """
create or replace temp table samples_left_alone as
with gone as (
    select sample_id from corpus_members where corpus_id in (select artifact_id from going)
    union
    select sample_id from samples where corpus_id in (select artifact_id from going)
)
select sample_id from gone
where sample_id not in (
    select sample_id from corpus_members where corpus_id not in (select artifact_id from going)
    union all
    select sample_id from probe_members where probe_set_id not in (select artifact_id from going)
    union all
    select sample_id from subset_members where subset_id not in (select artifact_id from going)
)
"""

_SETTINGS_LEFT_ALONE = """
create or replace temp table settings_left_alone as
select settings ->> '$.{key}' as value from artifacts
where artifact_id in (select artifact_id from going) and settings ->> '$.{key}' is not null
except
select settings ->> '$.{key}' from artifacts
where artifact_id not in (select artifact_id from going)
"""


def remove_artifacts(
    connection: duckdb.DuckDBPyConnection, artifact_ids: Sequence[str]
) -> dict[str, int]:
    """Returns how many rows of each table went, after deleting them within the open transaction.

    Args:
        connection: with an open transaction.
        artifact_ids: those that go; nothing that stays may be made from one of them.
    """
    connection.execute("create or replace temp table going (artifact_id varchar primary key)")
    connection.execute(
        "insert into going select distinct unnest($ids::varchar[])", {"ids": list(artifact_ids)}
    )
    # What is shared first: it is found through the rows that name what goes.
    removed = _remove_shared(connection)
    owned = {**OWNED_TABLES, "superseded_artifacts": "artifact_id", "artifacts": "artifact_id"}
    for table, column in owned.items():
        condition = f"{column} in (select artifact_id from going)"
        removed[table] = _delete(connection, table, condition)
    for table in ("going", "samples_left_alone", "settings_left_alone"):
        connection.execute(f"drop table {table}")
    return {table: num_rows for table, num_rows in sorted(removed.items()) if num_rows}


def refuse_gaps(connection: duckdb.DuckDBPyConnection, artifact_ids: Sequence[str]) -> None:
    """Returns when nothing that is left was made from one of these.

    Raises:
        WarehouseError: something was.
    """
    gaps = connection.execute(
        """
        with edges as (select artifact_id, unnest(parents) as parent from artifacts)
        select artifact_id, parent from edges
        where list_contains($ids::varchar[], parent)
        """,
        {"ids": list(artifact_ids)},
    ).fetchall()
    if gaps:
        raise WarehouseError(
            f"what is removed must not be what others were made from, got {gaps[0][1]}, which "
            f"{gaps[0][0]} was; remove that one as well, or neither"
        )


def _remove_shared(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    removed = {}
    connection.execute(_SAMPLES_LEFT_ALONE)
    for table, (column, key) in _BY_SETTING.items():
        connection.execute(_SETTINGS_LEFT_ALONE.format(key=key))
        condition = (
            f"{column} in (select value from settings_left_alone) "
            f"or sample_id in (select sample_id from samples_left_alone)"
        )
        removed[table] = _delete(connection, table, condition)
    condition = "sample_id in (select sample_id from samples_left_alone)"
    removed["samples"] = _delete(connection, "samples", condition)
    return removed


def _delete(connection: duckdb.DuckDBPyConnection, table: str, condition: str) -> int:
    [(num_rows,)] = connection.execute(f"delete from {table} where {condition}").fetchall()
    return int(num_rows)
