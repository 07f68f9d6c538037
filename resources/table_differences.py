"""Where two tables of the same rows differ: row by row, by their key."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One row that two tables do not agree on; `column` is None where one has no such row."""

    key: tuple[Any, ...]
    column: str | None
    first: Any
    second: Any


def find_differences(
    first: pa.Table, second: pa.Table, key: Sequence[str]
) -> Iterator[RowDifference]:
    """Returns every value in which two tables differ, by key; rows of one alone come as a whole.

    Columns that only one of them has are left out. Numbers are compared exactly.

    Args:
        first: a table in which no two rows have the same key.
        second: another.
        key: the columns that tell rows apart; both tables have them.
    """
    shared = [name for name in first.column_names if name in second.column_names]
    values = [name for name in shared if name not in key]
    keys = ", ".join(f"coalesce(a.{name}, b.{name})" for name in key)
    pairs = "".join(f", a.{name}, b.{name}" for name in values)
    join = " and ".join(f"a.{name} is not distinct from b.{name}" for name in key)
    differs = " or ".join(
        ["a.found is null", "b.found is null"]
        + [f"a.{name} is distinct from b.{name}" for name in values]
    )
    with duckdb.connect() as connection:
        connection.register("first_rows", first)
        connection.register("second_rows", second)
        rows = connection.execute(
            f"""
            select {keys}, a.found, b.found{pairs}
            from (select *, true as found from first_rows) as a
            full outer join (select *, true as found from second_rows) as b on {join}
            where {differs}
            order by {", ".join(str(i + 1) for i in range(len(key)))}
            """
        ).fetchall()
    for row in rows:
        found, of_key = row[len(key) : len(key) + 2], row[: len(key)]
        if None in found:
            yield RowDifference(of_key, None, *(one is not None for one in found))
            continue
        for i, name in enumerate(values):
            left, right = row[len(key) + 2 + 2 * i : len(key) + 4 + 2 * i]
            if left != right:
                yield RowDifference(of_key, name, left, right)
