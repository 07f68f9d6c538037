"""Parquet files written a piece at a time, so that a table of any size never lies in memory."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 1_048_576
_BUFFERED_ROWS = 4_096


def write_batches(batches: pa.RecordBatchReader, path: Path) -> int:
    """Returns how many rows were written; the file is the one that the whole table would give."""
    num_rows = 0
    with pq.ParquetWriter(path, batches.schema) as writer:
        for group in _row_groups(batches):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            num_rows += group.num_rows
    return num_rows


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in batches:
        waiting.append(batch)
        num_waiting += batch.num_rows
        while num_waiting >= ROW_GROUP_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, ROW_GROUP_ROWS)
            waiting = table.slice(ROW_GROUP_ROWS).to_batches()
            num_waiting -= ROW_GROUP_ROWS
    if num_waiting:
        yield pa.Table.from_batches(waiting)


class RowWriter:
    """Rows written to one Parquet file as they come; with none it is a file without rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)
        self._schema = schema
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Takes one row, by column."""
        self._waiting.append(row)
        if len(self._waiting) == _BUFFERED_ROWS:
            self._write()

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()
