"""Reading and writing the scores of a pool: which are missing, which are shared, how they lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from circuitseer_assets.records import PoolSize, SampleLength, SampleScore, UnscoredSample
from resources.parquet_batches import write_batches
from resources.sample_files import first_rows_of
from resources.warehouse import Warehouse
from resources.warehouse_lock import MEMORY_LIMIT

Rows: TypeAlias = NDArray[np.bool_]
"""Of each sample of a corpus, in its order, whether it is meant."""

_SCORE_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("score", pa.float64()), ("num_tokens", pa.int64())]
)
_UNSCORED_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
_LENGTH_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("num_prompt_tokens", pa.int64()),
        ("num_response_tokens", pa.int64()),
    ]
)

_NOT_LOOKED_AT = """
    not exists (
        from sample_scores as own
        where own.scorer_id = $scorer_id and own.sample_id = pool.sample_id
    ) and not exists (
        from unscored_samples as own
        where own.scorer_id = $scorer_id and own.sample_id = pool.sample_id
    )
"""

_MISSING = f"select pool.sample_id from read_parquet($pool) as pool where {_NOT_LOOKED_AT}"

_UNMEASURED = """
    select pool.sample_id
    from read_parquet($pool) as pool
    where not exists (
        from sample_lengths as length
        where length.tokenizer_id = $tokenizer_id and length.sample_id = pool.sample_id
    )
"""

_PLACES = """
    select shards.first_row + file.file_row_number as place, file.prompt_id
    from read_parquet($shards, filename = true, file_row_number = true) as file
    inner join shards on file.filename = shards.path
"""

_SHARED_SCORES = f"""
    select distinct on (pool.sample_id) pool.sample_id, done.score, done.num_tokens
    from read_parquet($pool) as pool
    inner join samples as twin on pool.prompt_id = twin.prompt_id
    inner join sample_scores as done
        on twin.sample_id = done.sample_id and done.scorer_id = $scorer_id
    where {_NOT_LOOKED_AT}
    order by pool.sample_id, twin.sample_id
"""

# Where one twin has a score and another a reason, the score is taken.
_SHARED_REASONS = f"""
    select distinct on (pool.sample_id) pool.sample_id, done.reason, done.detail
    from read_parquet($pool) as pool
    inner join samples as twin on pool.prompt_id = twin.prompt_id
    inner join unscored_samples as done
        on twin.sample_id = done.sample_id and done.scorer_id = $scorer_id
    where {_NOT_LOOKED_AT} and not exists (
        from sample_scores as scored
        inner join samples as other on scored.sample_id = other.sample_id
        where scored.scorer_id = $scorer_id and other.prompt_id = pool.prompt_id
    )
    order by pool.sample_id, twin.sample_id
"""

_POOL_SCORES = """
    select
        pool.sample_id,
        done.score,
        done.num_tokens as num_scored_tokens,
        length.num_prompt_tokens,
        length.num_prompt_tokens + length.num_response_tokens as num_tokens
    from read_parquet($pool) as pool
    inner join sample_scores as done
        on pool.sample_id = done.sample_id and done.scorer_id = $scorer_id
    inner join sample_lengths as length
        on pool.sample_id = length.sample_id and length.tokenizer_id = $tokenizer_id
    order by pool.sample_id
"""


def share_scores(warehouse: Warehouse, scorer_id: str, pool: Path) -> int:
    """Returns how many pool samples took over the score of a sample with the same prompt.

    Those whose prompt could not be scored take over the reason. Only for a scorer that reads the
    prompt alone: one that reads the response has something else to say of each.
    """
    params = {"scorer_id": scorer_id, "pool": str(pool)}
    with warehouse.connect(read_only=True) as connection:
        scores = connection.sql(_SHARED_SCORES, params=params).to_arrow_table()
        reasons = connection.sql(_SHARED_REASONS, params=params).to_arrow_table()
    if not scores.num_rows and not reasons.num_rows:
        return 0
    return warehouse.append_scores(scorer_id, scores, reasons)


def missing_rows(warehouse: Warehouse, scorer_id: str, pool: Path, samples: Path) -> Rows:
    """Returns where in the corpus the pool samples are that this scorer has not looked at.

    They have neither a score nor a reason for none. Of each of the corpus's samples, in the folder
    `samples`, it says whether it is one of them: a bit of text for each would be too much to hold.
    """
    params = {"scorer_id": scorer_id, "pool": str(pool)}
    with warehouse.connect(read_only=True) as connection:
        return _rows_among(connection, samples, _MISSING, params)


def unmeasured_rows(warehouse: Warehouse, tokenizer_id: str, pool: Path, samples: Path) -> Rows:
    """Returns where in the corpus the pool samples are whose length in tokens is not known."""
    params = {"tokenizer_id": tokenizer_id, "pool": str(pool)}
    with warehouse.connect(read_only=True) as connection:
        return _rows_among(connection, samples, _UNMEASURED, params)


def pool_rows(warehouse: Warehouse, pool: Path, samples: Path) -> Rows:
    """Returns where in the corpus the pool samples are."""
    with warehouse.connect(read_only=True) as connection:
        sql = "select sample_id from read_parquet($pool)"
        return _rows_among(connection, samples, sql, {"pool": str(pool)})


def first_of_each_prompt(warehouse: Warehouse, samples: Path, rows: Rows) -> Rows:
    """Returns where in the corpus the first of these samples with each prompt is."""
    with warehouse.connect(read_only=True) as connection:
        connection.register("wanted", pa.table({"place": np.flatnonzero(rows)}))
        sql = f"""
            select min(place) as place from ({_PLACES}) semi join wanted using (place)
            group by prompt_id
        """
        return _marked(connection, samples, sql, {})


def _rows_among(
    connection: duckdb.DuckDBPyConnection, samples: Path, ids: str, params: Mapping[str, Any]
) -> Rows:
    sql = f"select place from ({_PLACES} where file.sample_id in ({ids}))"
    return _marked(connection, samples, sql, params)


def _marked(
    connection: duckdb.DuckDBPyConnection, samples: Path, sql: str, params: Mapping[str, Any]
) -> Rows:
    """Returns a mask of the corpus's samples, set where the query's `place` says."""
    first_rows = first_rows_of(samples)
    rows = np.zeros(first_rows.pop(samples), bool)
    shards = {"path": [str(path) for path in first_rows], "first_row": list(first_rows.values())}
    connection.register("shards", pa.table(shards))
    found = connection.sql(sql, params={**params, "shards": shards["path"]})
    for batch in found.to_arrow_reader():
        rows[batch.column("place").to_numpy()] = True
    return rows


def commit_shard(
    warehouse: Warehouse, scorer_id: str, shard: Sequence[SampleScore | UnscoredSample]
) -> None:
    """Returns when these scores are committed; a killed run goes on behind them."""
    scored = [row for row in shard if isinstance(row, SampleScore)]
    unscored = [row for row in shard if isinstance(row, UnscoredSample)]
    warehouse.append_scores(
        scorer_id, _columns_of(scored, _SCORE_SCHEMA), _columns_of(unscored, _UNSCORED_SCHEMA)
    )


def _columns_of(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def length_rows(tokenizer_id: str, lengths: Sequence[SampleLength]) -> pa.Table:
    """Returns the warehouse's rows for lengths in tokens."""
    tokenizer_ids = pa.array([tokenizer_id] * len(lengths), pa.string())
    return _columns_of(lengths, _LENGTH_SCHEMA).add_column(0, "tokenizer_id", tokenizer_ids)


def measure_pool(warehouse: Warehouse, scorer_id: str, tokenizer_id: str, pool: Path) -> PoolSize:
    """Returns how large a pool is, and how many of its samples have a score by this scorer."""
    sql = """
        select
            count(*) as num_samples,
            count(done.sample_id) as num_scored,
            coalesce(sum(length.num_prompt_tokens + length.num_response_tokens), 0)::bigint
                as num_tokens
        from read_parquet($pool) as pool
        left join sample_scores as done
            on pool.sample_id = done.sample_id and done.scorer_id = $scorer_id
        left join sample_lengths as length
            on pool.sample_id = length.sample_id and length.tokenizer_id = $tokenizer_id
    """
    params = {"scorer_id": scorer_id, "tokenizer_id": tokenizer_id, "pool": str(pool)}
    [row] = warehouse.query(sql, params).to_pylist()
    return PoolSize(**row)


def read_pool_scores(
    warehouse: Warehouse, scorer_id: str, tokenizer_id: str, pool: Path
) -> pa.Table:
    """Returns the scored samples of the pool by sample id, with their lengths in tokens."""
    return warehouse.query(
        _POOL_SCORES,
        {"scorer_id": scorer_id, "tokenizer_id": tokenizer_id, "pool": str(pool)},
    )


def write_pool_scores(
    warehouse: Warehouse, scorer_id: str, tokenizer_id: str, pool: Path, path: Path
) -> int:
    """Returns how many rows of `read_pool_scores` were written to `path`, never all in memory."""
    params = {"scorer_id": scorer_id, "tokenizer_id": tokenizer_id, "pool": str(pool)}
    with warehouse.connect(read_only=True) as connection:
        return write_batches(connection.sql(_POOL_SCORES, params=params).to_arrow_reader(), path)


def read_extremes(scores: Path, number: int) -> dict[int, dict[str, Any]]:
    """Returns the highest and the lowest so many rows of a file of scores, by rank from 0.

    Equal scores are in the order of the sample ids.
    """
    order, back = "score desc, sample_id", "score, sample_id desc"
    with duckdb.connect(config={"memory_limit": MEMORY_LIMIT}) as connection:
        [(num_rows,)] = connection.execute(
            "select count(*) from read_parquet($scores)", {"scores": str(scores)}
        ).fetchall()
        highest, lowest = (
            connection.sql(
                f"from read_parquet($scores) order by {by} limit $number",
                params={"scores": str(scores), "number": number},
            )
            .to_arrow_table()
            .to_pylist()
            for by in (order, back)
        )
    ranked = dict(enumerate(highest))
    return ranked | {num_rows - 1 - i: row for i, row in reversed(list(enumerate(lowest)))}
