"""The pool as a Parquet file: the samples that selection may draw, by id."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import duckdb
import pyarrow as pa

from resources.parquet_batches import write_batches
from resources.sample_files import shards_of
from resources.warehouse_lock import MEMORY_LIMIT

_POOL = """
    select sample_id, prompt_id
    from read_parquet($samples)
    where
        sample_id not in (select sample_id from samples_taken)
        and prompt_id not in (select prompt_id from prompts_taken)
    order by sample_id
"""


def write_pool(
    samples: Path,
    path: Path,
    *,
    sample_ids_taken: Collection[str],
    prompt_ids_taken: Collection[str],
) -> int:
    """Returns how many samples were written: the corpus's without those, and their prompts, taken.

    They are in the order of their ids, so that a reordered corpus leaves the pool, and all scores,
    as they are.

    Args:
        samples: the folder of the corpus's samples.
        path: the file to write.
        sample_ids_taken: those that repeat a benchmark's problem.
        prompt_ids_taken: the prompts of the probes and of the control texts.

    Raises:
        ArtifactError: the folder holds no samples.
    """
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as spilled,
        duckdb.connect(
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": spilled}
        ) as connection,
    ):
        for table, column, ids in (
            ("samples_taken", "sample_id", sample_ids_taken),
            ("prompts_taken", "prompt_id", prompt_ids_taken),
        ):
            connection.register(table, pa.table({column: pa.array(list(ids), pa.string())}))
        shards = [str(shard) for shard in shards_of(samples)]
        pool = connection.sql(_POOL, params={"samples": shards})
        return write_batches(pool.to_arrow_reader(), path)
