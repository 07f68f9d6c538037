"""Reading and writing the scores of a pool: which are missing, which are shared, how they lie."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from circuitseer_assets.records import PoolSize, SampleScore, UnscoredSample
from resources.warehouse import Warehouse

_SCORE_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("score", pa.float64()), ("num_tokens", pa.int64())]
)
_UNSCORED_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
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


def missing_sample_ids(warehouse: Warehouse, scorer_id: str, pool: Path) -> set[str]:
    """Returns the pool samples that have neither a score by this scorer nor a reason for none."""
    params = {"scorer_id": scorer_id, "pool": str(pool)}
    return set(warehouse.query(_MISSING, params)["sample_id"].to_pylist())


def commit_shard(
    warehouse: Warehouse, scorer_id: str, shard: Sequence[SampleScore | UnscoredSample]
) -> None:
    """Returns when one shard of scores is committed; a killed run goes on behind it."""
    scored = [asdict(row) for row in shard if isinstance(row, SampleScore)]
    unscored = [asdict(row) for row in shard if isinstance(row, UnscoredSample)]
    warehouse.append_scores(
        scorer_id,
        pa.Table.from_pylist(scored, schema=_SCORE_SCHEMA),
        pa.Table.from_pylist(unscored, schema=_UNSCORED_SCHEMA),
    )


def length_rows(tokenizer_id: str, lengths: Mapping[str, tuple[int, int]]) -> pa.Table:
    """Returns the warehouse's rows for (prompt, response) lengths in tokens by sample id."""
    return pa.table(
        {
            "tokenizer_id": pa.array([tokenizer_id] * len(lengths), pa.string()),
            "sample_id": pa.array(list(lengths), pa.string()),
            "num_prompt_tokens": pa.array([pair[0] for pair in lengths.values()], pa.int64()),
            "num_response_tokens": pa.array([pair[1] for pair in lengths.values()], pa.int64()),
        }
    )


def unmeasured_sample_ids(warehouse: Warehouse, tokenizer_id: str, pool: Path) -> set[str]:
    """Returns the pool samples whose length by this tokenizer is not known."""
    sql = """
        select pool.sample_id
        from read_parquet($pool) as pool
        where not exists (
            from sample_lengths as length
            where length.tokenizer_id = $tokenizer_id and length.sample_id = pool.sample_id
        )
    """
    params = {"tokenizer_id": tokenizer_id, "pool": str(pool)}
    return set(warehouse.query(sql, params)["sample_id"].to_pylist())


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
