"""Differences of tables, against a comparison of dictionaries."""

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.table_differences import RowDifference, find_differences

rows = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2)),
    st.tuples(st.sampled_from([0.1, 0.1 + 1e-17, 0.2, None]), st.sampled_from(["x", "y", None])),
    max_size=6,
)
SCHEMA = [("name", pa.string()), ("part", pa.int64())]
VALUES = [("score", pa.float64()), ("why", pa.string())]


def table(values: dict[Any, Any], more: str) -> pa.Table:
    records = [
        {"name": k[0], "part": k[1], "score": v[0], "why": v[1], more: 1} for k, v in values.items()
    ]
    return pa.Table.from_pylist(records, schema=pa.schema([*SCHEMA, *VALUES, (more, pa.int64())]))


@settings(deadline=None)  # the first call starts DuckDB
@given(rows, rows)
def test_every_difference_is_found_and_no_other(
    first: dict[Any, Any], second: dict[Any, Any]
) -> None:
    expected = []
    for key in sorted({*first, *second}):
        if key not in first or key not in second:
            expected.append(RowDifference(key, None, key in first, key in second))
            continue
        for i, name in enumerate(("score", "why")):
            if first[key][i] != second[key][i]:
                expected.append(RowDifference(key, name, first[key][i], second[key][i]))
    found = find_differences(
        table(first, "only_here"), table(second, "only_there"), ["name", "part"]
    )
    assert list(found) == expected
