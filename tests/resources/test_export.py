"""Exported rows: every column of every row, and a refusal where Parquet cannot hold them."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from circuitseer_assets.errors import ArtifactError
from resources.export import _write_parquet


def test_parquet_has_the_columns_of_all_rows_in_the_order_they_appear(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "level": 1}, {"prompt": "b", "topic": "sums"}, {"level": 3}]
    assert _write_parquet(iter(rows), tmp_path / "rows.parquet") == 3
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["prompt", "level", "topic"]
    assert table.to_pylist() == [
        {"prompt": "a", "level": 1, "topic": None},
        {"prompt": "b", "level": None, "topic": "sums"},
        {"prompt": None, "level": 3, "topic": None},
    ]


def test_a_column_of_several_types_is_refused_with_a_remedy(tmp_path: Path) -> None:
    rows = [{"answer": 12}, {"answer": "twelve"}]
    with pytest.raises(ArtifactError, match=r"--format must be jsonl .*got parquet.*as jsonl"):
        _write_parquet(iter(rows), tmp_path / "rows.parquet")
    assert not list(tmp_path.iterdir())
