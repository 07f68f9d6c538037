"""The draw of a subset as one SQL query: ORDER BY key LIMIT n over a table of any size.

`circuitseer_assets.method.subset` defines the draw and is its reference.
"""

import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.method.subset import (
    check_token_budget,
    refuse_empty_draw,
    refuse_pareto_tokens,
    resolve_num_samples,
    target_inclusion,
)
from circuitseer_assets.settings import SelectionSettings

_MEMORY_LIMIT = "1500MB"

RANDOM_NUMBER = """
((md5_number_upper($seed || ':' || sample_id) >> 11)::double + 0.5::double)
* 1.1102230246251565e-16::double
"""
"""The permanent random number of `sample_id` for $seed, a text."""

_NUMBERED = f"""
with numbered as (
    select {{columns}}, {RANDOM_NUMBER} as u
    from candidates
    where weight > 0
)
"""

_EXPONENTIAL = (
    _NUMBERED.format(columns="sample_id, score, weight")
    + """,
first as (
    select *, -ln(u) / weight as sampling_key
    from numbered
    order by sampling_key, sample_id
    limit $num_samples + 1
),
threshold as (
    select sampling_key as tau from first order by sampling_key, sample_id
    limit 1 offset $num_samples
)
select
    sample_id, score, weight, sampling_key,
    case when tau is null then 1 else 1 - exp(-weight * tau) end as inclusion_probability
from first left join threshold on true
order by sampling_key, sample_id
limit $num_samples
"""
)

_TOP = """
select sample_id, score, weight, -weight as sampling_key, 1::double as inclusion_probability
from candidates
where weight > 0
order by sampling_key, sample_id
limit $num_samples
"""

_PARETO = (
    _NUMBERED.format(columns="sample_id, score, weight, target")
    + """
select
    sample_id, score, weight,
    ((1 - u) / u) * ((1 - target) / target) as sampling_key,
    target as inclusion_probability
from numbered
order by sampling_key, sample_id
limit $num_samples
"""
)

_COUNT_WITHIN_TOKENS = (
    _NUMBERED.format(columns="sample_id, weight, num_tokens")
    + """
select
    count(*) filter (where running <= $num_tokens) as num_samples,
    min(running) as num_first_tokens
from (
    select sum(num_tokens) over (
        order by
            case when $is_top then -weight else -ln(u) / weight end, sample_id
            rows unbounded preceding
    ) as running
    from numbered
)
"""
)


def draw_subset(candidates: Path | pa.Table, settings: SelectionSettings) -> pa.Table:
    """Returns the drawn samples by (sampling_key, sample_id).

    The columns are `sample_id`, `score`, `weight`, `sampling_key` and `inclusion_probability`.

    Args:
        candidates: the pool, as a table or a Parquet file, with the columns `sample_id`, `score`,
            `weight` (of `weigh_samples`) and, for a budget of tokens, `num_tokens`: those of
            prompt and response together.
        settings: the slice `selection`.

    Raises:
        SettingsError: the budget is above what can be drawn, or holds no sample.
        WarehouseError: a column is missing, a sample is there twice, or a weight is no weight.
    """
    refuse_pareto_tokens(settings)
    # Ten million distinct ids and a sort: beyond its share of memory DuckDB goes on, on disk.
    connection = duckdb.connect(
        config={"memory_limit": _MEMORY_LIMIT, "temp_directory": tempfile.gettempdir()}
    )
    try:
        _register(connection, candidates)
        num_pool, num_drawable = _check_candidates(connection)
        if settings.budget.tokens is None:
            num_samples = resolve_num_samples(settings.budget, num_pool, num_drawable)
        else:
            num_samples = _count_within_tokens(connection, settings.budget.tokens, settings)
        if settings.sampling == "pareto":
            _add_targets(connection, num_samples)
        params: dict[str, Any] = {"num_samples": num_samples}
        if settings.sampling != "top":
            params["seed"] = str(settings.seed)
        sql = {"exponential": _EXPONENTIAL, "pareto": _PARETO, "top": _TOP}[settings.sampling]
        return connection.sql(sql, params=params).to_arrow_table()
    except duckdb.Error as error:
        reason = " ".join(str(error).split())
        raise WarehouseError(f"the pool cannot be drawn from: {reason}") from error
    finally:
        connection.close()


def _register(connection: duckdb.DuckDBPyConnection, candidates: Path | pa.Table) -> None:
    if isinstance(candidates, Path):
        connection.read_parquet(str(candidates)).create_view("candidates")
    else:
        connection.register("candidates", candidates)


def _check_candidates(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    counts = connection.execute(
        """
        select
            count(*), count(distinct sample_id), count(*) filter (where weight > 0),
            count(*) filter (where weight is null or not isfinite(weight) or weight < 0)
        from candidates
        """
    ).fetchall()[0]
    num_pool, num_distinct, num_drawable, num_bad = (int(count) for count in counts)
    if num_distinct != num_pool:
        raise WarehouseError(
            f"each sample must be in the pool once, got {num_pool} rows of {num_distinct} samples; "
            f"draw from distinct sample_ids"
        )
    if num_bad:
        raise WarehouseError(
            f"every weight must be a finite number of at least 0, got {num_bad} that are not; "
            f"compute them with weigh_samples"
        )
    return num_pool, num_drawable


def _count_within_tokens(
    connection: duckdb.DuckDBPyConnection, num_tokens: int, settings: SelectionSettings
) -> int:
    total = connection.execute(
        "select coalesce(sum(num_tokens), 0) from candidates where weight > 0"
    ).fetchall()[0][0]
    check_token_budget(num_tokens, int(total))
    params = {
        "seed": str(settings.seed),
        "num_tokens": num_tokens,
        "is_top": settings.sampling == "top",
    }
    num_samples, num_first_tokens = connection.execute(_COUNT_WITHIN_TOKENS, params).fetchall()[0]
    if num_samples == 0:
        raise refuse_empty_draw(num_tokens, int(num_first_tokens))
    return int(num_samples)


def _add_targets(connection: duckdb.DuckDBPyConnection, num_samples: int) -> None:
    # The targets depend on each other, so they are computed once, by the method, and not in SQL.
    pool = connection.sql("select * from candidates where weight > 0").to_arrow_table()
    weights = np.asarray(pool["weight"].to_numpy(), dtype=np.float64)
    targets = pa.array(target_inclusion(weights, num_samples), pa.float64())
    connection.execute("drop view candidates")
    connection.register("candidates", pool.append_column("target", targets))
