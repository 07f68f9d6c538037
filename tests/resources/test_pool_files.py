"""The pool's file: the corpus without what is taken, by id, as one table would be written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from circuitseer_assets.method.corpus import sample_from_texts
from resources import parquet_batches
from resources.parquet_batches import RowWriter, write_batches
from resources.pool_files import write_pool
from resources.sample_files import write_samples


def test_the_pool_leaves_out_what_is_taken_and_every_sample_of_a_taken_prompt(
    tmp_path: Path,
) -> None:
    samples = [
        sample_from_texts(f"Q{i}", f"A{j}", source="s", position=0, original={})
        for i in range(20)
        for j in range(3)
    ]
    write_samples(samples, tmp_path / "samples")
    dirty, probe = samples[7], samples[30]
    num_written = write_pool(
        tmp_path / "samples",
        tmp_path / "pool.parquet",
        sample_ids_taken={dirty.sample_id, "unknown"},
        prompt_ids_taken=(probe.prompt_id,),
    )
    expected = sorted(
        (s.sample_id, s.prompt_id)
        for s in samples
        if s.sample_id != dirty.sample_id and s.prompt_id != probe.prompt_id
    )
    assert num_written == len(expected) == 20 * 3 - 1 - 3
    rows = [{"sample_id": one, "prompt_id": prompt} for one, prompt in expected]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "at_once.parquet")
    assert (tmp_path / "pool.parquet").read_bytes() == (tmp_path / "at_once.parquet").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "samples",
        "pool.parquet",
        "at_once.parquet",
    }


def test_batches_give_the_bytes_of_the_whole_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_batches, "ROW_GROUP_ROWS", 1000)
    table = pa.table({"a": [f"{i * 7919 % 5000}" for i in range(4321)], "b": range(4321)})
    for size in (1, 999, 1000, 2500, 5000):
        batches = pa.Table.from_batches(table.to_batches(max_chunksize=size))
        reader = pa.RecordBatchReader.from_batches(table.schema, batches.to_batches())
        assert write_batches(reader, tmp_path / "batches.parquet") == 4321
        pq.write_table(batches, tmp_path / "at_once.parquet", row_group_size=1000)
        written = (tmp_path / "batches.parquet").read_bytes()
        assert written == (tmp_path / "at_once.parquet").read_bytes(), size


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_batches, "_BUFFERED_ROWS", 3)
    schema = pa.schema([("a", pa.int64())])
    for count in (0, 2, 3, 8):
        with RowWriter(tmp_path / "rows.parquet", schema) as writer:
            for i in range(count):
                writer.add({"a": i})
        read = pq.read_table(tmp_path / "rows.parquet")
        assert read["a"].to_pylist() == list(range(count))
        assert read.schema == schema
