"""Where single samples stand in a scored pool: by score, and in the draw of a subset.

The draw stores its members only; the rest follow from the same weights and numbers. DuckDB orders
the pool, so that no sample but those asked for becomes an object, whatever the pool's size.
"""

import math
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from circuitseer_assets.method.explanation import Place, Standing
from circuitseer_assets.method.subset import target_inclusion
from circuitseer_assets.settings import SelectionSettings
from resources.draw import RANDOM_NUMBER
from resources.warehouse_lock import MEMORY_LIMIT

_KEYS = {
    "exponential": "-ln(u) / weight",
    "pareto": "((1 - u) / u) * ((1 - target) / target)",
    "top": "-weight",
}
_KEYED = """
create temp view keyed as
select sample_id, weight, target, {key} as sampling_key
from (select *, {u} as u from pool where weight > 0)
"""
_PLACES = """
select
    own.*,
    count(*) filter (
        other.sampling_key < own.sampling_key
        or (other.sampling_key = own.sampling_key and other.sample_id <= own.sample_id)
    ) as place
from keyed as own cross join keyed as other
where list_contains($sample_ids::varchar[], own.sample_id)
group by all
"""
_IN_ORDER = """
select sample_id, sampling_key from keyed
order by sampling_key, sample_id limit $number offset $first
"""
_NEVER_DRAWN = """
select sample_id from pool
where weight = 0 and list_contains($sample_ids::varchar[], sample_id)
"""
_STANDINGS = """
select
    own.sample_id,
    own.score,
    own.num_scored_tokens as num_tokens,
    count(*) filter (
        other.score > own.score or (other.score = own.score and other.sample_id <= own.sample_id)
    ) as rank,
    count(*) as num_scored
from pool as own cross join pool as other
where list_contains($sample_ids::varchar[], own.sample_id)
group by all
"""


@dataclass(frozen=True)
class PoolOrder:
    """A scored pool and the draw of a subset from it.

    Attributes:
        pool: columns `sample_id`, `score`, `num_scored_tokens` and `weight`, of `weigh_samples`.
        selection: the slice `selection` of the draw.
        num_drawn: how many samples the subset has.
    """

    pool: pa.Table
    selection: SelectionSettings
    num_drawn: int

    def standings(self, sample_ids: Collection[str]) -> dict[str, Standing]:
        """Returns score and rank by id, of those samples that have a score."""
        with self._connect() as connection:
            rows = _rows(connection, _STANDINGS, sample_ids=list(sample_ids))
        return {row.pop("sample_id"): Standing(**row) for row in rows}

    def places(self, sample_ids: Collection[str]) -> dict[str, Place]:
        """Returns the place in the draw by id, of those samples that have a score."""
        with self._connect() as connection:
            wanted = {"sample_ids": list(sample_ids)}
            keyed = _rows(connection, _PLACES, **wanted)
            never = _rows(connection, _NEVER_DRAWN, **wanted)
            last_and_next = _rows(connection, _IN_ORDER, first=self.num_drawn - 1, number=2)
        keys = [row["sampling_key"] for row in last_and_next]
        last, following = (*keys, math.inf)[:2]
        places = {
            row["sample_id"]: Place(row["sample_id"], None, 0.0, None, 0.0, False) for row in never
        }
        for row in keyed:
            is_drawn = row["place"] <= self.num_drawn
            # Without this sample, the last place goes for the key after the last one drawn, or,
            # where it was not drawn itself, for that last one's.
            chance = {
                "exponential": 1 - math.exp(-row["weight"] * (following if is_drawn else last)),
                "pareto": row["target"],
                "top": float(is_drawn),
            }[self.selection.sampling]
            places[row["sample_id"]] = Place(
                row["sample_id"], row["place"], row["weight"], row["sampling_key"], chance, is_drawn
            )
        return places

    def in_order(self, first: int, number: int) -> list[str]:
        """Returns so many samples in the order of the draw, from place `first` + 1 on."""
        with self._connect() as connection:
            rows = _rows(connection, _IN_ORDER, first=first, number=number)
        return [row["sample_id"] for row in rows]

    @contextmanager
    def _connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        sampling = self.selection.sampling
        weights = np.asarray(self.pool["weight"].to_numpy(), dtype=np.float64)
        targets = np.zeros_like(weights)
        if sampling == "pareto":
            targets = target_inclusion(weights, self.num_drawn)
        with duckdb.connect(
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": tempfile.gettempdir()}
        ) as connection:
            connection.register("pool", self.pool.append_column("target", pa.array(targets)))
            # A view takes no parameters; the seed is a number.
            u = RANDOM_NUMBER.replace("$seed", f"'{self.selection.seed:d}'")
            connection.execute(_KEYED.format(key=_KEYS[sampling], u=u))
            yield connection


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, **params: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(sql, params=params).to_arrow_table().to_pylist()
    return rows
